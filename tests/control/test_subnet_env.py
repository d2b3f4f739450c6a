"""subnet.env, as flannel writes it."""

from __future__ import annotations

import os
import stat
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from control.lease import NodeSubnet
from control.network_config import NetworkConfig
from control.subnet_env import SubnetEnv, SubnetEnvError, read_subnet_env, write_subnet_env

DUAL_CONFIG = NetworkConfig.parse(
    '{"Network":"10.7.0.0/16","EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56",'
    '"Backend":{"Type":"vxlan"}}'
)
DUAL_SUBNET = NodeSubnet(IPv4Network("10.7.29.0/24"), IPv6Network("2001:cafe:42:4f::/64"))
DUAL = SubnetEnv.of(DUAL_CONFIG, DUAL_SUBNET, mtu_bytes=1450, ip_masq=False)
DUAL_TEXT = """\
FLANNEL_NETWORK=10.7.0.0/16
FLANNEL_SUBNET=10.7.29.1/24
FLANNEL_IPV6_NETWORK=2001:cafe:42::/56
FLANNEL_IPV6_SUBNET=2001:cafe:42:4f::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=false
"""
IPV4 = SubnetEnv.of(
    NetworkConfig.build("10.7.0.0/16"), NodeSubnet(DUAL_SUBNET.ipv4), mtu_bytes=1450, ip_masq=True
)
IPV6 = SubnetEnv.of(
    NetworkConfig.build("2001:cafe:42::/56"),
    NodeSubnet(None, DUAL_SUBNET.ipv6),
    mtu_bytes=1430,
    ip_masq=False,
)


def test_text_is_flannels_in_flannels_order() -> None:
    assert DUAL.to_text() == DUAL_TEXT


def test_a_family_that_is_off_has_no_lines() -> None:
    assert IPV4.to_text() == (
        "FLANNEL_NETWORK=10.7.0.0/16\nFLANNEL_SUBNET=10.7.29.1/24\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    assert "FLANNEL_SUBNET" not in IPV6.to_text()


@pytest.mark.parametrize("contents", [DUAL, IPV4, IPV6])
def test_what_is_written_reads_back(contents: SubnetEnv, tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write_subnet_env(contents, path)
    assert read_subnet_env(path) == contents


def test_node_subnet_is_the_one_to_ask_for_again() -> None:
    assert DUAL.node_subnet == DUAL_SUBNET
    assert SubnetEnv.parse("").node_subnet == NodeSubnet()


def test_quotes_spaces_and_other_lines_are_tolerated() -> None:
    assert SubnetEnv.parse('# mine\nOTHER=1\n FLANNEL_SUBNET="10.7.29.1/24"\n\n').node_subnet == (
        NodeSubnet(DUAL_SUBNET.ipv4)
    )


def test_a_damaged_line_is_named() -> None:
    with pytest.raises(SubnetEnvError, match=r"FLANNEL_SUBNET is .10\.7\.29."):
        SubnetEnv.parse("FLANNEL_SUBNET=10.7.29\n")


def test_a_damaged_file_is_refused_and_a_missing_one_is_none(tmp_path: Path) -> None:
    assert read_subnet_env(tmp_path / "absent") is None
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(SubnetEnvError, match="binary"):
        read_subnet_env(binary)


def test_modes_are_flannels_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "flannel" / "subnet.env"
    before = os.umask(0o077)
    try:
        write_subnet_env(DUAL, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_the_file_is_replaced_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write_subnet_env(DUAL, path)
    with path.open() as reader:
        write_subnet_env(IPV4, path)
        assert reader.read() == DUAL_TEXT
    assert read_subnet_env(path) == IPV4
    assert os.listdir(tmp_path) == ["subnet.env"]
