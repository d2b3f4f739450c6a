"""What an IP packet says about itself: length, transport, checksums."""

from typing import NamedTuple

from tests.reference.checksum import ones_sum, pseudo_header

TCP, UDP = 6, 17
FRAGMENT_HEADER = 44
AUTHENTICATION_HEADER = 51
EXTENSION_HEADERS = (0, 43, 60, AUTHENTICATION_HEADER)
"""Hop-by-hop, routing, destination options, authentication: those that can be walked past."""
EXTENSION_HEADERS_MAX = 8

CHECKSUM_AT = {TCP: 16, UDP: 6}


class Transport(NamedTuple):
    kind: int
    """6 or 17 where a whole TCP or UDP header stands, of a packet that is no fragment; else 0."""
    offset: int
    protocol: int


def ip_length(data: bytes) -> int:
    """How long the IP packet at the start of `data` claims to be; 0: its header is not sound."""
    if len(data) < 20:
        return 0
    if data[0] >> 4 == 4:
        header_bytes = (data[0] & 15) * 4
        claimed = int.from_bytes(data[2:4], "big")
        sound = 20 <= header_bytes <= claimed
    elif data[0] >> 4 == 6:
        claimed = 40 + int.from_bytes(data[4:6], "big")
        sound = len(data) >= 40
    else:
        return 0
    return claimed if sound and claimed <= len(data) else 0


def find_transport(packet: bytes) -> Transport:
    """Walks a sound packet's headers up to the transport header."""
    if packet[0] >> 4 == 4:
        fragment = int.from_bytes(packet[6:8], "big") & 0xBFFF != 0  # all but DF
        offset, protocol = (packet[0] & 15) * 4, packet[9]
    else:
        fragment, offset, protocol = _walk_extension_headers(packet)
    rest = packet[offset:]
    kind = 0
    if protocol == TCP and len(rest) >= 20 and 20 <= (rest[12] >> 4) * 4 <= len(rest):
        kind = TCP
    if protocol == UDP and len(rest) >= 8:
        kind = UDP
    return Transport(0 if fragment else kind, offset, protocol)


def _walk_extension_headers(packet: bytes) -> tuple[bool, int, int]:
    offset, protocol = 40, packet[6]
    for _ in range(EXTENSION_HEADERS_MAX):
        if protocol == FRAGMENT_HEADER:
            return True, offset, protocol
        if protocol not in EXTENSION_HEADERS or offset + 8 > len(packet):
            break
        units = packet[offset + 1]
        size = (units + 2) * 4 if protocol == AUTHENTICATION_HEADER else (units + 1) * 8
        protocol = packet[offset]
        offset += size
    return False, offset, protocol


def header_bytes(packet: bytes) -> int:
    """IP and transport header of a TCP or UDP packet."""
    transport = find_transport(packet)
    if transport.kind == TCP:
        return transport.offset + (packet[transport.offset + 12] >> 4) * 4
    assert transport.kind == UDP
    return transport.offset + 8


def checksum_field(packet: bytes) -> int:
    """What the transport checksum of a TCP or UDP packet says."""
    transport = find_transport(packet)
    at = transport.offset + CHECKSUM_AT[transport.kind]
    return int.from_bytes(packet[at : at + 2], "big")


def pseudo_sum(packet: bytes) -> int:
    """The sum of a TCP or UDP packet's pseudo-header."""
    transport = find_transport(packet)
    return ones_sum(pseudo_header(packet, transport.protocol, len(packet) - transport.offset))


def is_partial(packet: bytes) -> bool:
    """Whether the checksum is left for hardware to finish: it holds the pseudo-header's sum."""
    return checksum_field(packet) == pseudo_sum(packet)


def checksums_are_right(packet: bytes) -> bool:
    """The IPv4 header's and the transport's of a TCP or UDP packet, read strictly."""
    transport = find_transport(packet)
    if packet[0] >> 4 == 4 and ones_sum(packet[: (packet[0] & 15) * 4]) != 0xFFFF:
        return False
    pseudo = pseudo_header(packet, transport.protocol, len(packet) - transport.offset)
    return ones_sum(pseudo + packet[transport.offset :]) == 0xFFFF


def flow_of(packet: bytes) -> tuple[bytes, ...]:
    """What must stay in order: addresses, and ports of a TCP or UDP packet that is no fragment."""
    transport = find_transport(packet)
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    if transport.kind == 0:
        return (addresses,)
    return (addresses, bytes([transport.kind]), packet[transport.offset : transport.offset + 4])
