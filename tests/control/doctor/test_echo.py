"""Pings on a wire that is narrower to one host than to the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from control.doctor.echo import answered, largest
from forwarder.fib.routes import IPAddress
from perf.namespace import Namespace
from perf.topology import Host, Topology

pytestmark = pytest.mark.netns

NARROW = 1400


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    """To the third one, 1400 bytes pass, and nobody says so."""
    with Topology(3, ipv6=True) as topology:
        Namespace(f"{topology.prefix}-wire").ip(f"link set port2 mtu {NARROW}")
        yield topology.hosts


def address_of(host: Host, version: int) -> IPAddress:
    address = host.address if version == 4 else host.address_ipv6
    assert address is not None
    return address


@pytest.mark.parametrize("version", [4, 6])
def test_sizes_that_pass_are_told_from_those_that_do_not(hosts: list[Host], version: int) -> None:
    wide, narrow = (address_of(host, version) for host in hosts[1:])
    silent = wide + 100
    with hosts[0].entered():
        # 1501 bytes do not even fit the first link.
        got = answered(
            (address, size) for address in (wide, narrow, silent) for size in (84, 1500, 1501)
        )
        assert got == {(wide, 84), (wide, 1500), (narrow, 84)}
        assert largest(narrow, 84, 1500) == NARROW
