"""IPv4, IPv6, TCP and UDP headers: layouts, and the one function that reads them.

RFC 791, RFC 8200, RFC 9293, RFC 768.  Every field is in network byte order.
"""

import numpy as np

from forwarder.arrays import Bytes, Int
from forwarder.jit import kernel

IPV4 = np.dtype(
    [
        ("version_ihl", "u1"),
        ("tos", "u1"),
        ("total_length", ">u2"),
        ("id", ">u2"),
        ("flags_fragment", ">u2"),
        ("ttl", "u1"),
        ("protocol", "u1"),
        ("checksum", ">u2"),
        ("source", "u1", 4),
        ("destination", "u1", 4),
    ]
)
IPV6 = np.dtype(
    [
        ("version_class_flow", ">u4"),
        ("payload_length", ">u2"),
        ("next_header", "u1"),
        ("hop_limit", "u1"),
        ("source", "u1", 16),
        ("destination", "u1", 16),
    ]
)
TCP = np.dtype(
    [
        ("source_port", ">u2"),
        ("destination_port", ">u2"),
        ("sequence", ">u4"),
        ("acknowledgment", ">u4"),
        ("data_offset", "u1"),
        ("flags", "u1"),
        ("window", ">u2"),
        ("checksum", ">u2"),
        ("urgent", ">u2"),
    ]
)
UDP = np.dtype(
    [
        ("source_port", ">u2"),
        ("destination_port", ">u2"),
        ("length", ">u2"),
        ("checksum", ">u2"),
    ]
)
assert (IPV4.itemsize, IPV6.itemsize, TCP.itemsize, UDP.itemsize) == (20, 40, 20, 8)


def offset(layout: np.dtype[np.void], field: str) -> int:
    """Where a field begins, in bytes from the start of its header."""
    assert layout.fields is not None
    return int(layout.fields[field][1])


IPV4_BYTES = IPV4.itemsize
IPV4_LENGTH_AT = offset(IPV4, "total_length")
IPV4_ID_AT = offset(IPV4, "id")
IPV4_FRAGMENT_AT = offset(IPV4, "flags_fragment")
IPV4_TTL_AT = offset(IPV4, "ttl")
IPV4_PROTOCOL_AT = offset(IPV4, "protocol")
IPV4_CHECKSUM_AT = offset(IPV4, "checksum")
IPV4_SOURCE_AT = offset(IPV4, "source")
IPV4_DESTINATION_AT = offset(IPV4, "destination")
IPV6_BYTES = IPV6.itemsize
IPV6_LENGTH_AT = offset(IPV6, "payload_length")
IPV6_NEXT_AT = offset(IPV6, "next_header")
IPV6_SOURCE_AT = offset(IPV6, "source")
IPV6_DESTINATION_AT = offset(IPV6, "destination")
TCP_BYTES = TCP.itemsize
TCP_SEQUENCE_AT = offset(TCP, "sequence")
TCP_ACKNOWLEDGMENT_AT = offset(TCP, "acknowledgment")
TCP_DATA_OFFSET_AT = offset(TCP, "data_offset")
TCP_FLAGS_AT = offset(TCP, "flags")
TCP_WINDOW_AT = offset(TCP, "window")
TCP_CHECKSUM_AT = offset(TCP, "checksum")
TCP_URGENT_AT = offset(TCP, "urgent")
UDP_BYTES = UDP.itemsize
UDP_LENGTH_AT = offset(UDP, "length")
UDP_CHECKSUM_AT = offset(UDP, "checksum")

IPV4_DF = 0x4000
IPV4_MF = 0x2000
IPV4_FRAGMENT_OFFSET = 0x1FFF

TCP_FIN, TCP_SYN, TCP_RST, TCP_PSH, TCP_ACK, TCP_URG, TCP_ECE, TCP_CWR = (
    1 << bit for bit in range(8)
)

PROTOCOL_HOP_BY_HOP = 0
PROTOCOL_ICMP = 1
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17
PROTOCOL_ROUTING = 43
PROTOCOL_FRAGMENT = 44
PROTOCOL_AH = 51
PROTOCOL_ICMPV6 = 58
PROTOCOL_NO_NEXT = 59
PROTOCOL_DESTINATION_OPTIONS = 60

EXTENSION_HEADERS_MAX = 8
"""How many IPv6 extension headers are walked; what lies beyond is forwarded, not looked at."""

# What the transport layer of a packet may be used for.
L4_OPAQUE = 0  # forwarded as it is: another protocol, a fragment, a header cut short
L4_TCP = PROTOCOL_TCP
L4_UDP = PROTOCOL_UDP


@kernel
def load16(data: Bytes, at: Int) -> Int:
    """A big-endian 16-bit field."""
    u = np.uint64(at)  # unsigned: no code for indices from the end; this becomes one load
    return (np.int64(data[u]) << 8) | np.int64(data[u + np.uint64(1)])


@kernel
def load32(data: Bytes, at: Int) -> Int:
    """A big-endian 32-bit field, as a non-negative int64."""
    u = np.uint64(at)
    return (
        (np.int64(data[u]) << 24)
        | (np.int64(data[u + np.uint64(1)]) << 16)
        | (np.int64(data[u + np.uint64(2)]) << 8)
        | np.int64(data[u + np.uint64(3)])
    )


@kernel
def same_words(data: Bytes, a: Int, b: Int, words: Int) -> bool:
    """Whether `words` fields of 32 bits at a and b are equal."""
    for at in range(0, 4 * words, 4):
        if load32(data, a + at) != load32(data, b + at):
            return False
    return True


@kernel
def same_path(data: Bytes, a: Int, b: Int) -> bool:
    """Whether two IP headers at a and b differ at most in lengths, ids, checksums and options."""
    if load16(data, a) != load16(data, b):
        return False
    if data[a] >> 4 == 4:
        return (
            load16(data, a + IPV4_FRAGMENT_AT) == load16(data, b + IPV4_FRAGMENT_AT)
            and load16(data, a + IPV4_TTL_AT) == load16(data, b + IPV4_TTL_AT)  # and protocol
            and same_words(data, a + IPV4_SOURCE_AT, b + IPV4_SOURCE_AT, 2)
        )
    return (
        load16(data, a + 2) == load16(data, b + 2)  # the flow label
        and load16(data, a + IPV6_NEXT_AT) == load16(data, b + IPV6_NEXT_AT)  # and hop limit
        and same_words(data, a + IPV6_SOURCE_AT, b + IPV6_SOURCE_AT, 8)
    )


@kernel
def store16(data: Bytes, at: Int, value: Int) -> None:
    data[at] = (value >> 8) & 0xFF
    data[at + 1] = value & 0xFF


@kernel
def store32(data: Bytes, at: Int, value: Int) -> None:
    data[at] = (value >> 24) & 0xFF
    data[at + 1] = (value >> 16) & 0xFF
    data[at + 2] = (value >> 8) & 0xFF
    data[at + 3] = value & 0xFF


@kernel
def find_transport(data: Bytes, start: Int, length: Int) -> tuple[Int, Int, Int]:
    """Where the transport header of an IP packet begins and what may be done with it.

    The packet is data[start : start + length]; its IP header must have been checked by
    `ip_length`.  Returns (kind, offset from `start`, protocol): kind L4_TCP or L4_UDP when the
    whole transport header is there and the packet is no fragment, else L4_OPAQUE.  The protocol
    is the one after all extension headers that were understood.
    """
    fragment = False
    if data[start] >> 4 == 4:
        at = (np.int64(data[start]) & 0xF) * 4
        protocol = np.int64(data[start + IPV4_PROTOCOL_AT])
        fragment = load16(data, start + IPV4_FRAGMENT_AT) & ~IPV4_DF & 0xFFFF != 0
    else:
        at = np.int64(IPV6_BYTES)
        protocol = np.int64(data[start + IPV6_NEXT_AT])
        for _ in range(EXTENSION_HEADERS_MAX):
            if protocol == PROTOCOL_FRAGMENT:
                fragment = True
                break
            if (
                protocol != PROTOCOL_HOP_BY_HOP
                and protocol != PROTOCOL_ROUTING
                and protocol != PROTOCOL_DESTINATION_OPTIONS
                and protocol != PROTOCOL_AH
            ):
                break
            if at + 8 > length:
                break
            words = np.int64(data[start + at + 1])
            size = (words + 2) * 4 if protocol == PROTOCOL_AH else (words + 1) * 8
            protocol = np.int64(data[start + at])
            at += size
    if fragment:
        return L4_OPAQUE, at, protocol
    if protocol == PROTOCOL_TCP and at + TCP_BYTES <= length:
        header = np.int64(data[start + at + TCP_DATA_OFFSET_AT] >> 4) * 4
        if header >= TCP_BYTES and at + header <= length:
            return L4_TCP, at, protocol
    if protocol == PROTOCOL_UDP and at + UDP_BYTES <= length:
        return L4_UDP, at, protocol
    return L4_OPAQUE, at, protocol


@kernel
def headers_length(data: Bytes, start: Int, kind: Int, transport: Int) -> Int:
    """Bytes of IP and transport header of a TCP or UDP packet, as `find_transport` found them."""
    if kind != L4_TCP:
        return np.int64(transport + UDP_BYTES)
    return transport + (np.int64(data[start + transport + TCP_DATA_OFFSET_AT]) >> 4) * 4


@kernel
def ip_length(data: Bytes, start: Int, available: Int) -> Int:
    """The length in bytes an IP packet claims for itself, or 0 when its header is not sound.

    Sound: version 4 or 6, the whole header among the `available` bytes, and a claimed length that
    covers the header and does not pass the available bytes.
    """
    if available < IPV4_BYTES:
        return np.int64(0)
    version = data[start] >> 4
    if version == 4:
        header = (np.int64(data[start]) & 0xF) * 4
        total = load16(data, start + IPV4_LENGTH_AT)
        if header < IPV4_BYTES or header > total or total > available:
            return np.int64(0)
        return total
    if version == 6:
        if available < IPV6_BYTES:
            return np.int64(0)
        total = load16(data, start + IPV6_LENGTH_AT) + IPV6_BYTES
        if total > available:
            return np.int64(0)
        return total
    return np.int64(0)


@kernel
def flow_hash(data: Bytes, start: Int, kind: Int, transport_at: Int) -> Int:
    """A 31-bit hash of the packet's flow: addresses, and ports where there are any.

    Fragments and unknown protocols hash by addresses alone, so that a datagram's fragments stay
    together.  (The 4-tuple is not made symmetric: each direction may take its own path.)
    """
    mixed = np.int64(0)
    if data[start] >> 4 == 4:
        first, last = start + IPV4_SOURCE_AT, start + IPV4_BYTES
    else:
        first, last = start + IPV6_SOURCE_AT, start + IPV6_BYTES
    for at in range(first, last, 4):
        mixed = (mixed ^ load32(data, at)) * 0x9E3779B1 & 0xFFFFFFFF
        mixed ^= mixed >> 15
    if kind != L4_OPAQUE:
        mixed = (mixed ^ load32(data, start + transport_at)) * 0x85EBCA6B & 0xFFFFFFFF
        mixed ^= mixed >> 13
    mixed = mixed * 0xC2B2AE35 & 0xFFFFFFFF
    return (mixed ^ (mixed >> 16)) & 0x7FFFFFFF
