"""The oracles themselves, against scapy."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_Router_Alert, in4_chksum
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    in6_chksum,
)
from scapy.packet import Packet, Raw
from scapy.utils import checksum as scapy_checksum

from forwarder.fib.routes import Prefix
from tests.reference import coalescing, decapsulation, segmentation
from tests.reference.checksum import checksum
from tests.reference.packet import (
    Transport,
    checksums_are_right,
    find_transport,
    flow_of,
    ip_length,
    is_partial,
)
from tests.reference.routes import RouteTable

BODIES = [TCP(sport=5, dport=7, options=[("NOP", None)] * 4), UDP(sport=5, dport=7)]
HEADERS = [IP(src="10.1.2.3", dst="10.9.8.7"), IPv6(src="fd01::1", dst="fd02::2")]


@given(st.binary(max_size=300))
def test_checksum_is_scapys(data: bytes) -> None:
    assert checksum(data) == scapy_checksum(data)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("payload", [b"", b"odd", b"even"])
def test_scapys_checksums_are_right_and_changed_ones_are_not(
    header: Packet, body: Packet, payload: bytes
) -> None:
    packet = bytes(header / body / Raw(payload))
    assert checksums_are_right(packet)
    assert not is_partial(packet)
    kind, offset, _ = find_transport(packet)
    corrupted = bytearray(packet)
    corrupted[offset + 1] ^= 1
    assert not checksums_are_right(bytes(corrupted))

    protocol = body.overload_fields[type(header)]["proto" if header.version == 4 else "nh"]
    assert kind == protocol
    built = type(header)(packet)
    # scapy's sums over pseudo-header and nothing else are the partial checksum, inverted.
    length = len(packet) - offset
    if header.version == 4:
        pseudo = in4_chksum(protocol, built, b"\0" * length)
    else:
        pseudo = in6_chksum(protocol, built, b"\0" * length)
    field = offset + (16 if kind == 6 else 6)
    partial = packet[:field] + (pseudo ^ 0xFFFF).to_bytes(2, "big") + packet[field + 2 :]
    assert is_partial(partial)


def test_length_and_transport_are_found_behind_options_and_extension_headers() -> None:
    options = IP(options=[IPOption_Router_Alert()])
    extensions = IPv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
    for header, expected in ((options, 24), (extensions, 56)):
        packet = bytes(header / UDP() / Raw(b"payload"))
        assert ip_length(packet + b"padding") == len(packet)
        assert ip_length(packet[:-1]) == 0
        assert find_transport(packet) == Transport(17, expected, 17)


def test_fragments_have_no_transport() -> None:
    for header in (IP(flags="MF"), IP(frag=3), IPv6() / IPv6ExtHdrFragment(m=1)):
        assert find_transport(bytes(header / UDP() / Raw(b"payload"))).kind == 0


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("body", BODIES)
def test_split_makes_packets_that_scapy_finds_right(header: Packet, body: Packet) -> None:
    payload = bytes(range(250))
    packet = bytes(header / body / Raw(payload))
    segments = segmentation.split(packet, 100)
    assert [len(type(header)(s)[Raw].load) for s in segments] == [100, 100, 50]
    assert b"".join(type(header)(s)[Raw].load for s in segments) == payload
    for segment in segments:
        built = type(header)(segment)
        for layer in (built, built[type(body)]):
            for field in ("chksum", "len", "plen"):
                if field in layer.fields:
                    delattr(layer, field)
        assert bytes(built) == segment  # scapy computes the same lengths and checksums


def test_route_table_prefers_the_longest_prefix() -> None:
    table: RouteTable[str] = RouteTable()
    for prefix in ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "::/0"):
        table.set(Prefix.parse(prefix), prefix)
    assert table.lookup(ip_address("10.1.2.3")) == "10.1.0.0/16"
    assert table.lookup(ip_address("10.2.2.3")) == "10.0.0.0/8"
    assert table.lookup(ip_address("fd00::1")) == "::/0"
    table.set(Prefix.parse("10.1.0.0/16"), None)
    assert table.lookup(ip_address("10.1.2.3")) == "10.0.0.0/8"


def test_segments_of_one_flow_coalesce_again() -> None:
    first = HEADERS[0] / TCP(sport=5, dport=7, flags="A") / Raw(bytes(250))
    other = bytes(HEADERS[0] / TCP(sport=6, dport=7, flags="A") / Raw(b"other"))
    segments = segmentation.split(bytes(first), 100)
    packets = [segments[0], other, *segments[1:]]
    chains = coalescing.coalesce(packets, [flow_of(p) for p in packets], 1450)
    assert chains == [[0, 2, 3], [1]]
    # A segment is missing: what follows starts anew.
    packets = [segments[0], segments[2]]
    assert coalescing.coalesce(packets, [0, 0], 1450) == [[0], [1]]


@pytest.mark.parametrize("header", HEADERS)
def test_ecn_is_set_where_scapy_reads_it(header: Packet) -> None:
    packet = bytes(header / UDP() / Raw(b"x"))
    marked = type(header)(decapsulation.with_ecn(packet, decapsulation.CE))
    assert (marked.tos if header.version == 4 else marked.tc) == 3
    assert checksums_are_right(bytes(marked))
