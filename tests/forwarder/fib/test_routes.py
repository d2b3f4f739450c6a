"""Prefixes and next hops: their texts, and what is refused."""

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.fib.routes import (
    Blackhole,
    Local,
    NextHop,
    Prefix,
    RemoteVtep,
    next_hop_from_wire,
    next_hop_to_wire,
)
from tests.forwarder.fibs import vtep

REMOTE = {"kind": "remote", "address": "192.0.2.1", "mac": "02:00:00:00:00:09", "vni": 1}


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_prefix_reads_what_it_writes_and_covers_what_ipaddress_says(number: int, bits: int) -> None:
    network = ipaddress.ip_network((number, bits), strict=False)
    prefix = Prefix.of(network)
    assert Prefix.parse(str(prefix)) == prefix
    assert str(prefix) == str(network)
    assert prefix.last == int(network.broadcast_address)
    shorter = network.supernet(new_prefix=bits // 2)
    assert prefix.shortened(bits // 2) == Prefix.of(shorter)


def test_prefix_with_host_bits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/24 has host bits set"):
        Prefix.parse("10.0.0.1/24")


@pytest.mark.parametrize("hop", [Local(), Blackhole(), vtep(3), vtep(3, "2001:db8::3")])
def test_next_hop_survives_the_wire(hop: NextHop) -> None:
    assert next_hop_from_wire(next_hop_to_wire(hop)) == hop


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("remote", "expected a map with 'kind'"),
        ({"kind": "lost"}, "kind 'lost': allowed are 'remote', 'local' and 'blackhole'"),
        (REMOTE, "port None: expected a number"),
        (REMOTE | {"port": 0}, "port 0: allowed are 1 to 65535"),
        (REMOTE | {"port": 1, "vni": 1 << 24}, "vni 16777216: allowed are 0 to 16777215"),
        (REMOTE | {"port": 1, "vni": "1"}, "vni '1': expected a number"),
        (REMOTE | {"port": 1, "mac": "02:00"}, "MAC address '02:00': expected six"),
        (REMOTE | {"port": 1, "address": "here"}, "'here' does not appear to be"),
    ],
)
def test_next_hop_refused_names_field_and_value(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next_hop_from_wire(value)


def test_remote_vtep_refuses_a_short_mac() -> None:
    with pytest.raises(ValueError, match="a MAC address has 6 bytes"):
        RemoteVtep(ipaddress.ip_address("192.0.2.1"), b"\2", 1, 1)
