"""Whether a capture asked for a packet."""

from ipaddress import ip_address

from forwarder.capture_reader import Wanted
from forwarder.capture_ring import Direction
from forwarder.counters import Drop
from tests.reference.packet import find_transport, ip_length


def is_wanted(wanted: Wanted, packet: bytes, direction: Direction, reason: Drop) -> bool:
    if reason not in wanted.reasons or direction not in wanted.directions:
        return False
    if not wanted.addresses and wanted.port is None:
        return True
    if ip_length(packet) == 0:
        return False
    size, first = (4, 12) if packet[0] >> 4 == 4 else (16, 8)
    ends = [ip_address(packet[at : at + size]) for at in (first, first + size)]
    if not all(any(end in network for end in ends) for network in wanted.addresses):
        return False
    if wanted.port is None:
        return True
    transport = find_transport(packet)
    ports = packet[transport.offset : transport.offset + 4]
    return transport.kind != 0 and wanted.port.to_bytes(2, "big") in (ports[:2], ports[2:])
