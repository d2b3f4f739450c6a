"""flannel's rules for the network config, one by one."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.network_config import NetworkConfig, NetworkConfigError, overlay_mtu_bytes

VXLAN = {"Type": "vxlan"}
NOT_THERE = object()


def parse(**fields: Any) -> NetworkConfig:
    wanted = {"Network": "10.5.0.0/16", "Backend": VXLAN, **fields}
    return NetworkConfig.parse(json.dumps({k: v for k, v in wanted.items() if v is not NOT_THERE}))


def refusal(**fields: Any) -> NetworkConfigError:
    with pytest.raises(NetworkConfigError) as caught:
        parse(**fields)
    assert caught.value.retryable
    return caught.value


def test_defaults_are_flannels() -> None:
    config = parse()
    assert config.ipv4 is not None
    assert config.ipv6 is None
    assert config.ipv4.network == IPv4Network("10.5.0.0/16")
    assert config.ipv4.subnet_len == 24
    assert config.ipv4.first == IPv4Network("10.5.1.0/24")
    assert config.ipv4.last == IPv4Network("10.5.255.0/24")
    assert config.ipv4.size == 255
    assert (config.vni, config.port, config.mtu_bytes) == (1, 8472, None)
    assert not config.direct_routing
    assert config.notes == ()


@pytest.mark.parametrize(
    ("network", "subnet_len"),
    [("10.0.0.0/8", 24), ("10.5.0.0/22", 24), ("10.5.0.0/23", 25), ("10.5.0.0/28", 30)],
)
def test_default_subnet_len(network: str, subnet_len: int) -> None:
    config = parse(Network=network)
    assert config.ipv4 is not None
    assert config.ipv4.subnet_len == subnet_len


def test_host_bits_of_the_network_are_masked_off() -> None:
    config = parse(Network="10.5.7.9/16")
    assert config.ipv4 is not None
    assert config.ipv4.network == IPv4Network("10.5.0.0/16")


def test_names_match_in_any_case_and_unknown_names_are_ignored() -> None:
    text = '{"nEtWoRk":"10.5.0.0/16","Future":1,"BACKEND":{"type":"VXLAN","vni":7,"Extra":[]}}'
    assert NetworkConfig.parse(text) == parse(Backend={"Type": "vxlan", "VNI": 7})


def test_null_is_absent() -> None:
    assert parse(SubnetLen=None, EnableIPv4=None, SubnetMin=None) == parse()


def test_port_zero_means_the_default() -> None:
    assert parse(Backend={**VXLAN, "Port": 0}).port == 8472
    assert parse(Backend={**VXLAN, "Port": 4789}).port == 4789


def test_subnet_min_and_max_bound_the_pool() -> None:
    config = parse(SubnetMin="10.5.16.0", SubnetMax="10.5.18.0")
    assert config.ipv4 is not None
    pool = config.ipv4
    assert [str(pool[i]) for i in range(pool.size)] == [
        "10.5.16.0/24",
        "10.5.17.0/24",
        "10.5.18.0/24",
    ]
    assert pool.fits(IPv4Network("10.5.17.0/24"))
    assert not pool.fits(IPv4Network("10.5.15.0/24"))
    assert not pool.fits(IPv4Network("10.5.19.0/24"))
    assert not pool.fits(IPv4Network("10.5.17.0/25"))
    assert not pool.fits(IPv6Network("::a05:1100/120"))
    assert not pool.fits(None)


def test_dual_stack_defaults() -> None:
    config = parse(EnableIPv6=True, IPv6Network="2001:cafe:42::/56")
    assert config.ipv4 is not None
    assert config.ipv6 is not None
    assert config.ipv6.subnet_len == 64
    assert config.ipv6.first == IPv6Network("2001:cafe:42:1::/64")
    assert config.ipv6.last == IPv6Network("2001:cafe:42:ff::/64")


@pytest.mark.parametrize(("length", "subnet_len"), [(62, 64), (63, 65), (124, 126)])
def test_default_ipv6_subnet_len(length: int, subnet_len: int) -> None:
    config = parse(EnableIPv6=True, IPv6Network=f"fd00::/{length}")
    assert config.ipv6 is not None
    assert config.ipv6.subnet_len == subnet_len


def test_ipv6_only_needs_no_ipv4_network() -> None:
    config = parse(EnableIPv4=False, EnableIPv6=True, Network=NOT_THERE, IPv6Network="fd00:42::/48")
    assert config.ipv4 is None
    assert config.ipv6 is not None


@pytest.mark.parametrize(
    ("fields", "field", "value", "allowed"),
    [
        ({"Network": NOT_THERE}, "Network", None, "such as"),
        ({"Network": "10.5.0.0"}, "Network", "10.5.0.0", "such as"),
        ({"Network": "fd00::/48"}, "Network", "fd00::/48", "such as"),
        ({"Network": 10}, "Network", 10, "such as"),
        ({"Network": "10.5.0.0/29"}, "Network", "10.5.0.0/29", "/28 or less"),
        ({"SubnetLen": 31}, "SubnetLen", 31, "18 to 30"),
        ({"SubnetLen": 17}, "SubnetLen", 17, "18 to 30"),
        ({"SubnetLen": "24"}, "SubnetLen", "24", "whole number"),
        ({"SubnetLen": True}, "SubnetLen", True, "whole number"),
        ({"SubnetLen": -1}, "SubnetLen", -1, "0 to 32"),
        ({"SubnetMin": "10.6.0.0"}, "SubnetMin", "10.6.0.0", "inside 10.5.0.0/16"),
        ({"SubnetMin": "10.5.1.1"}, "SubnetMin", "10.5.1.1", "/24 boundary"),
        ({"SubnetMax": "10.5.9.8"}, "SubnetMax", "10.5.9.8", "/24 boundary"),
        ({"SubnetMax": "fd00::"}, "SubnetMax", "fd00::", "inside 10.5.0.0/16"),
        ({"SubnetMax": "x"}, "SubnetMax", "x", "an address"),
        (
            {"SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0"},
            "SubnetMax",
            "10.5.8.0",
            "SubnetMin (10.5.9.0) or higher",
        ),
        ({"EnableIPv4": "yes"}, "EnableIPv4", "yes", "true or false"),
        ({"EnableIPv4": False}, "EnableIPv4", False, "EnableIPv6 true"),
        ({"EnableIPv6": True}, "IPv6Network", None, "such as"),
        (
            {"EnableIPv6": True, "IPv6Network": "fd00::/125"},
            "IPv6Network",
            "fd00::/125",
            "/124 or less",
        ),
        (
            {"EnableIPv6": True, "IPv6Network": "fd00::/56", "IPv6SubnetLen": 127},
            "IPv6SubnetLen",
            127,
            "58 to 126",
        ),
        (
            {"EnableIPv6": True, "IPv6Network": "fd00::/56", "IPv6SubnetMin": "fd01::"},
            "IPv6SubnetMin",
            "fd01::",
            "inside fd00::/56",
        ),
        ({"Backend": NOT_THERE}, "Backend", "absent, which means udp", "vxlan"),
        ({"Backend": {}}, "Backend.Type", None, "vxlan"),
        ({"Backend": {"Type": "host-gw"}}, "Backend.Type", "host-gw", "vxlan"),
        ({"Backend": "vxlan"}, "Backend", "vxlan", "JSON object"),
        ({"Backend": {**VXLAN, "VNI": 1 << 24}}, "Backend.VNI", 1 << 24, "0 to 16777215"),
        ({"Backend": {**VXLAN, "Port": 65536}}, "Backend.Port", 65536, "0 to 65535"),
        ({"Backend": {**VXLAN, "MTU": 100}}, "Backend.MTU", 100, "118 to 65535"),
        ({"Backend": {**VXLAN, "MTU": 1.5}}, "Backend.MTU", 1.5, "whole number"),
        ({"Backend": {**VXLAN, "GBP": True}}, "Backend.GBP", True, "false"),
        ({"Backend": {**VXLAN, "DirectRouting": 1}}, "Backend.DirectRouting", 1, "true or false"),
    ],
)
def test_refusals_name_field_value_and_what_is_allowed(
    fields: dict[str, Any], field: str, value: object, allowed: str
) -> None:
    error = refusal(**fields)
    assert (error.field, error.value) == (field, value)
    assert allowed in error.allowed
    assert field in str(error)
    assert error.allowed in str(error)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', b"\xff", "[" * 100_000])
def test_what_is_not_a_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(NetworkConfigError, match="JSON object"):
        NetworkConfig.parse(text)


def test_an_absent_backend_says_how_to_mend_it() -> None:
    assert '"Backend": {"Type": "vxlan"}' in str(refusal(Backend=NOT_THERE))


def test_learning_is_noted_and_changes_nothing() -> None:
    config = parse(Backend={**VXLAN, "Learning": True})
    assert config == parse()
    assert "Learning" in config.notes[0]


def test_configs_that_mean_the_same_are_equal() -> None:
    spelt_out = parse(
        SubnetLen=24,
        SubnetMin="10.5.1.0",
        SubnetMax="10.5.255.0",
        Backend={"Type": "VXLAN", "VNI": 1, "Port": 8472, "MTU": 0},
    )
    assert spelt_out == parse()
    assert parse(Backend={**VXLAN, "VNI": 2}) != parse()
    assert parse(SubnetMin="10.5.2.0") != parse()


def test_build_makes_what_init_writes() -> None:
    config = NetworkConfig.build("172.17.0.0/16", subnet_len=26, vni=42, port=4789)
    assert config.ipv4 is not None
    assert config.ipv4.subnet_len == 26
    assert (config.vni, config.port) == (42, 4789)
    ipv6 = NetworkConfig.build("fd00:42::/48")
    assert ipv6.ipv4 is None
    assert ipv6.ipv6 is not None
    assert ipv6.ipv6.subnet_len == 64


@given(
    length=st.integers(0, 28),
    extra=st.integers(2, 30),
    vni=st.integers(0, (1 << 24) - 1),
    port=st.integers(1, 65535),
    ipv6=st.booleans(),
    mtu=st.none() | st.integers(1330, 65535),
    direct=st.booleans(),
)
def test_what_is_written_reads_back_equal(
    length: int, extra: int, vni: int, port: int, ipv6: bool, mtu: int | None, direct: bool
) -> None:
    fields: dict[str, Any] = {
        "Network": f"10.5.0.0/{length}",
        "SubnetLen": min(length + extra, 30),
        "Backend": {**VXLAN, "VNI": vni, "Port": port, "MTU": mtu, "DirectRouting": direct},
    }
    if ipv6:
        fields |= {"EnableIPv6": True, "IPv6Network": f"fd00::/{length + 40}"}
    config = parse(**fields)
    assert NetworkConfig.parse(config.to_json()) == config


def test_overlay_mtu_leaves_room_for_the_outer_headers() -> None:
    assert overlay_mtu_bytes(1500, IPv4Address("192.0.2.1")) == 1450
    assert overlay_mtu_bytes(1500, IPv6Address("2001:db8::1")) == 1430
