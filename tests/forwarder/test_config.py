"""Settings: what is refused, and that the message says what would be allowed."""

from ipaddress import ip_address
from typing import Any

import pytest

from forwarder.config import (
    DEVICE_NAME_MAX,
    ConfigError,
    ForwarderOptions,
    TunnelConfig,
    tap_name,
)

MAC = bytes.fromhex("020000000001")
GOOD: dict[str, Any] = {"mac": MAC, "addresses": (ip_address("192.0.2.1"),)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": ""}, "device: '' is not allowed; allowed: 1 to 15 characters"),
        ({"device": "x" * 16}, "device: .* allowed: 1 to 15 characters"),
        ({"device": "a/b"}, "device: 'a/b' is not allowed; allowed: no '/'"),
        ({"device": ".."}, "device: '..' is not allowed"),
        ({"vni": 1 << 24}, "vni: 16777216 is not allowed; allowed: 0 to 16777215"),
        ({"port": 0}, "port: 0 is not allowed; allowed: 1 to 65535"),
        ({"mtu_bytes": 575}, "mtu_bytes: 575 is not allowed; allowed: 576 to 65465"),
        ({"mac": b"\1" * 6}, "mac: '01:01:01:01:01:01' is not allowed; .* unicast"),
        ({"mac": b""}, "mac: '' is not allowed"),
        ({"addresses": ()}, "addresses: '' is not allowed; allowed: one IPv4, one IPv6, or both"),
        (
            {"addresses": (ip_address("192.0.2.1"), ip_address("192.0.2.2"))},
            "addresses: '192.0.2.1, 192.0.2.2' is not allowed",
        ),
        ({"lanes": 65}, "lanes: 65 is not allowed; allowed: 1 to 64"),
    ],
)
def test_wrong_setting_is_named_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TunnelConfig(**GOOD | changes)


def test_config_survives_the_wire() -> None:
    both = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
    config = TunnelConfig("tun7", 9, 4789, 8950, MAC, both, 3)
    assert TunnelConfig.from_wire(config.to_wire()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vlan": 1}, "vlan: no such field; there are device, vni,"),
        ({"vni": "1"}, "vni: '1' is no int"),
        ({"mac": "here"}, "MAC address 'here'"),
        ({"addresses": ["there"]}, "'there' does not appear to be"),
    ],
)
def test_wrong_field_on_the_wire_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TunnelConfig.from_wire(TunnelConfig(**GOOD).to_wire() | changes)


def test_dscp_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="dscp: '64' is not allowed; allowed: 0 to 63, or 'copy'"):
        ForwarderOptions(run_dir="unused", cpus=(0,), dscp="64")


def test_tap_name_stays_within_what_linux_allows() -> None:
    assert tap_name("loden0") == "loden0-gso"
    assert len(tap_name("x" * DEVICE_NAME_MAX)) == DEVICE_NAME_MAX
