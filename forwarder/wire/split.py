"""Splitting a superpacket (GSO): the headers of every segment, computed from the first's.

Sums over what the segments have in common are made once; each segment adds what is its own.
Nothing of the payload is copied.
"""

import numpy as np

from forwarder.arrays import Bytes, Int
from forwarder.jit import kernel
from forwarder.wire.checksum import fold, ones_sum, pseudo_sum
from forwarder.wire.ip import (
    IPV4_CHECKSUM_AT,
    IPV4_ID_AT,
    IPV4_LENGTH_AT,
    IPV6_BYTES,
    IPV6_LENGTH_AT,
    L4_TCP,
    L4_UDP,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_CHECKSUM_AT,
    TCP_CWR,
    TCP_DATA_OFFSET_AT,
    TCP_FIN,
    TCP_FLAGS_AT,
    TCP_PSH,
    TCP_SEQUENCE_AT,
    UDP_CHECKSUM_AT,
    UDP_LENGTH_AT,
    headers_length,
    load16,
    load32,
    store16,
    store32,
)


@kernel
def segment_count(
    data: Bytes, start: Int, length: Int, kind: Int, transport: Int, size: Int
) -> tuple[Int, Int]:
    """How many segments of `size` payload bytes a superpacket makes, and its header bytes.

    (0, 0) when it is no sound superpacket: neither TCP nor UDP, no size, or no payload.
    """
    if kind != L4_TCP and kind != L4_UDP:
        return np.int64(0), np.int64(0)
    header_bytes = headers_length(data, start, kind, transport)
    if size == 0 or header_bytes >= length:
        return np.int64(0), np.int64(0)
    return -(-(length - header_bytes) // size), header_bytes


@kernel
def split(
    data: Bytes,
    start: Int,
    length: Int,
    kind: Int,
    transport: Int,
    size: Int,
    count: Int,
    rows: Bytes,
) -> None:
    """Writes the IP and transport header of each of `count` segments to rows[k], uint8[count, n].

    The superpacket is data[start : start + length], its transport header at start + transport.
    Segment k carries payload bytes k * size to (k + 1) * size, the last what is left.
    """
    is_tcp = kind == L4_TCP
    header_bytes = headers_length(data, start, kind, transport)
    ipv4 = data[start] >> 4 == 4
    ip_sum, id0 = _common_ip_sum(data, start, transport, ipv4)
    transport_sum = _common_transport_sum(data, start, transport, header_bytes, is_tcp)
    for k in range(count):
        row = rows[k]
        for b in range(header_bytes):
            row[b] = data[start + b]
        payload = start + header_bytes + k * size
        payload_bytes = min(size, start + length - payload)
        total = header_bytes + payload_bytes
        if ipv4:
            identification = (id0 + k) & 0xFFFF
            store16(row, IPV4_LENGTH_AT, total)
            store16(row, IPV4_ID_AT, identification)
            store16(row, IPV4_CHECKSUM_AT, ~fold(ip_sum + total + identification) & 0xFFFF)
        else:
            store16(row, IPV6_LENGTH_AT, total - IPV6_BYTES)
        transport_bytes = total - transport
        own = transport_sum + transport_bytes + ones_sum(data, payload, payload_bytes)
        if is_tcp:
            _finish_tcp(row, transport, own, k * size, k == 0, k == count - 1)
        else:
            store16(row, transport + UDP_LENGTH_AT, transport_bytes)
            checksum = ~fold(own + transport_bytes) & 0xFFFF
            store16(row, transport + UDP_CHECKSUM_AT, checksum if checksum != 0 else 0xFFFF)


@kernel
def _common_ip_sum(data: Bytes, start: Int, transport: Int, ipv4: bool) -> tuple[Int, Int]:
    """(the sum of an IPv4 header without length, id and checksum; its id).  IPv6 has no sum."""
    if not ipv4:
        return np.int64(0), np.int64(0)
    own = (
        load16(data, start + IPV4_LENGTH_AT)
        + load16(data, start + IPV4_ID_AT)
        + load16(data, start + IPV4_CHECKSUM_AT)
    )
    total = ones_sum(data, start, transport) + (~fold(own) & 0xFFFF)
    return total, load16(data, start + IPV4_ID_AT)


@kernel
def _common_transport_sum(
    data: Bytes, start: Int, transport: Int, header_bytes: Int, is_tcp: bool
) -> Int:
    """The sum of pseudo-header (without length) and transport header, without what varies."""
    at = start + transport
    whole = ones_sum(data, at, header_bytes - transport)
    if is_tcp:
        pseudo = pseudo_sum(data, start, PROTOCOL_TCP, 0)
        own = (
            load16(data, at + TCP_SEQUENCE_AT)
            + load16(data, at + TCP_SEQUENCE_AT + 2)
            + load16(data, at + TCP_DATA_OFFSET_AT)
            + load16(data, at + TCP_CHECKSUM_AT)
        )
    else:
        pseudo = pseudo_sum(data, start, PROTOCOL_UDP, 0)
        own = load16(data, at + UDP_LENGTH_AT) + load16(data, at + UDP_CHECKSUM_AT)
    return pseudo + whole + (~fold(own) & 0xFFFF)


@kernel
def _finish_tcp(row: Bytes, transport: Int, own: Int, passed: Int, first: bool, last: bool) -> None:
    """Sequence number, flags and checksum of one segment; `passed` payload bytes lie before it.

    FIN and PSH belong to the last segment, CWR to the first.
    """
    sequence = (load32(row, transport + TCP_SEQUENCE_AT) + passed) & 0xFFFFFFFF
    store32(row, transport + TCP_SEQUENCE_AT, sequence)
    flags = np.int64(row[transport + TCP_FLAGS_AT])
    if not last:
        flags &= ~(TCP_FIN | TCP_PSH)
    if not first:
        flags &= ~TCP_CWR
    row[transport + TCP_FLAGS_AT] = flags
    own += (sequence >> 16) + (sequence & 0xFFFF) + load16(row, transport + TCP_DATA_OFFSET_AT)
    store16(row, transport + TCP_CHECKSUM_AT, ~fold(own) & 0xFFFF)
