"""Compiled lookups; longest-prefix match itself is tested with its writer, in test_writer.py."""

import pytest

from forwarder.fib.layout import NO_ADJACENCY
from forwarder.fib.lookup import VTEP_PROBES_MAX, is_address_of, lookup_packet
from forwarder.fib.vteps import LONGEST_PROBE
from forwarder.fib.writer import pack_sockaddr
from tests.forwarder.fibs import make_fib, to_array, vtep


@pytest.mark.parametrize(("address", "version"), [("10.0.0.9", 4), ("2001:db8::9", 6)])
def test_address_is_read_where_it_lies_in_a_packet(address: str, version: int) -> None:
    fib = make_fib()
    hop = vtep(1, address)
    fib.route_to((f"{address}/{32 if version == 4 else 128}", hop))
    for at in range(9):
        packet = to_array(bytes(at) + hop.address.packed + bytes(5))
        assert lookup_packet(fib.view, packet, at, version) != NO_ADJACENCY
        assert lookup_packet(fib.view, packet, at + 1, version) == NO_ADJACENCY


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_vtep_is_known_by_its_address_whatever_its_source_port(address: str) -> None:
    fib = make_fib()
    hop = vtep(1, address)
    fib.route_to(("10.0.0.0/24", hop))
    row = dict(fib.writer.adjacency_rows())[hop]
    for port in (hop.port, 1, 65535):
        sockaddr = bytearray(pack_sockaddr(hop.address, port).ljust(32, b"\0"))
        assert is_address_of(fib.view, row, to_array(sockaddr))
        for at in (7, 0):  # the last byte of an IPv4 address, the family
            changed = bytearray(sockaddr)
            changed[at if address[0] == "1" or at == 0 else 23] ^= 8
            assert not is_address_of(fib.view, row, to_array(changed))


def test_readers_search_further_than_the_writer_stores() -> None:
    assert VTEP_PROBES_MAX > LONGEST_PROBE
