"""`loden cni-conf`: what it writes, and what it says when it cannot."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from control.cni import cni_conf_command
from tests.reference.flannel_plugin import delegated_list

SUBNET_ENV = """\
FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.10.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
"""
IPV6 = """\
FLANNEL_IPV6_NETWORK=2001:cafe:42::/56
FLANNEL_IPV6_SUBNET=2001:cafe:42:4f::1/64
"""


@pytest.fixture
def subnet_env(tmp_path: Path) -> Path:
    path = tmp_path / "subnet.env"
    path.write_text(SUBNET_ENV)
    return path


def cni_conf(subnet_env: Path, *flags: str) -> Result:
    return CliRunner().invoke(cni_conf_command, ["-f", str(subnet_env), *flags])


def written(subnet_env: Path, *flags: str) -> Any:
    result = cni_conf(subnet_env, *flags)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_pods_get_addresses_gateway_and_mtu_of_the_node(subnet_env: Path) -> None:
    assert written(subnet_env) == {
        "cniVersion": "0.4.0",
        "name": "loden",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "mtu": 1450,
                "isDefaultGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.10.0/24"}]]},
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def test_dual_stack_has_a_range_for_each_family(subnet_env: Path) -> None:
    subnet_env.write_text(SUBNET_ENV + IPV6)
    (bridge, _) = written(subnet_env)["plugins"]
    assert bridge["ipam"]["ranges"] == [
        [{"subnet": "10.5.10.0/24"}],
        [{"subnet": "2001:cafe:42:4f::/64"}],
    ]


def test_plugins_masquerade_unless_we_do(subnet_env: Path) -> None:
    subnet_env.write_text(SUBNET_ENV.replace("IPMASQ=true", "IPMASQ=false"))
    assert written(subnet_env)["plugins"][0]["ipMasq"] is True


def test_names_can_be_chosen(subnet_env: Path) -> None:
    config = written(subnet_env, "--name", "cbr0", "--bridge", "docker0")
    assert (config["name"], config["plugins"][0]["bridge"]) == ("cbr0", "docker0")


def test_file_is_replaced_whole_and_anyone_may_read_it(subnet_env: Path, tmp_path: Path) -> None:
    output = tmp_path / "net.d" / "10-loden.conflist"
    for name in ("first", "second"):
        result = cni_conf(subnet_env, "-o", str(output), "--name", name)
        assert (result.exit_code, result.output) == (0, "")
        assert json.loads(output.read_text())["name"] == name
    assert stat.S_IMODE(output.stat().st_mode) == 0o644
    assert [entry.name for entry in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--name", "a b"), "'a b', allowed: letters, digits and _.-, a letter or digit first"),
        (("--bridge", "a/b"), "'a/b' is not allowed; allowed: 1 to 15 characters"),
    ],
)
def test_names_no_runtime_would_take_are_refused(
    subnet_env: Path, flags: tuple[str, ...], message: str
) -> None:
    result = cni_conf(subnet_env, *flags)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FLANNEL_MTU=1450\n", "FLANNEL_SUBNET and FLANNEL_IPV6_SUBNET are missing"),
        ("FLANNEL_SUBNET=10.5.10.1/24\n", "FLANNEL_MTU is missing or not above 0"),
        ("FLANNEL_SUBNET=10.5.10\n", "FLANNEL_SUBNET is '10.5.10'"),
    ],
)
def test_a_subnet_env_of_no_use_is_one_clear_line(
    subnet_env: Path, text: str, message: str
) -> None:
    subnet_env.write_text(text)
    result = cni_conf(subnet_env)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: subnet.env: {message}")
    assert result.output.endswith(f"(read from {subnet_env})\n")
    subnet_env.unlink()
    assert cni_conf(subnet_env).output.startswith(f"Error: there is no {subnet_env}: ")


@pytest.mark.parametrize("text", [SUBNET_ENV, SUBNET_ENV + IPV6, SUBNET_ENV.replace("true", "no")])
def test_the_bridge_plugin_is_told_what_flannels_plugin_tells_it(
    subnet_env: Path, text: str
) -> None:
    subnet_env.write_text(text)
    ours = written(subnet_env)["plugins"][0]
    (theirs,) = delegated_list(text, "loden")["plugins"]
    for field in ("type", "mtu", "ipMasq", "isDefaultGateway", "hairpinMode"):
        assert ours[field] == theirs[field]
    assert ours["ipam"]["ranges"] == theirs["ipam"]["ranges"]
