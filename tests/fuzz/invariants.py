"""What must hold after each stage, whatever went in; compiled, so that all of it is checked.

Each function returns 0, or the number of what does not hold.
"""

import numpy as np

from forwarder.arrays import Int, Longs
from forwarder.batch import (
    CHAIN_MAX,
    HEADER_ROW_BYTES,
    HEADROOM,
    MESSAGE_BYTES,
    Inbound,
    Outbound,
)
from forwarder.coalesce import header_length
from forwarder.counters import Drop
from forwarder.jit import kernel
from forwarder.outbound import DATAGRAM_BYTES_MAX
from forwarder.superpacket import write_vnet_header
from forwarder.udp import IOV, IOV_COUNT
from forwarder.wire.ip import L4_OPAQUE, L4_TCP, L4_UDP, ip_length
from forwarder.wire.vxlan import ENCAP_BYTES


@kernel
def check_cut(batch: Inbound, messages: Int, frames: Int) -> Int:
    """The frames of a message lie side by side and are the whole message."""
    f = np.int64(0)
    for m in range(messages):
        at = np.int64(m * MESSAGE_BYTES)
        left = batch.message_bytes[m]
        if left == 0:
            if f >= frames or batch.length[f] != 0:
                return np.int64(1)
            f += 1
        while left > 0:
            if f >= frames or batch.message[f] != m or batch.start[f] != at:
                return np.int64(2)
            if not 0 < batch.length[f] <= left:
                return np.int64(3)
            at += batch.length[f]
            left -= batch.length[f]
            f += 1
    return np.int64(0 if f == frames else 4)


@kernel
def check_decapsulated(batch: Inbound, frames: Int, starts: Longs, lengths: Longs) -> Int:
    """An accepted frame became the inner packet within it; another kept its place."""
    for f in range(frames):
        start, length = batch.start[f], batch.length[f]
        if batch.reason[f] != Drop.NONE:
            if start != starts[f] or length != lengths[f]:
                return np.int64(11)
            continue
        if start != starts[f] + ENCAP_BYTES or length > lengths[f] - ENCAP_BYTES:
            return np.int64(12)
        if ip_length(batch.data, start, length) != length:
            return np.int64(13)
        kind = batch.kind[f]
        if kind != L4_OPAQUE and kind != L4_TCP and kind != L4_UDP:
            return np.int64(14)
        if kind != L4_OPAQUE and not 20 <= batch.transport[f] < length:
            return np.int64(15)
        if kind != L4_OPAQUE and header_length(batch, f) > length:
            return np.int64(16)
        if not 0 <= batch.flow[f] < 1 << 31:
            return np.int64(17)
    return np.int64(0)


@kernel
def check_chains(batch: Inbound, frames: Int, chains: Int, times_seen: Longs) -> Int:
    """Every accepted frame is in one chain, in order; sizes are as a superpacket's must be."""
    times_seen[:frames] = 0
    for c in range(chains):
        first = batch.chain_first[c]
        size = batch.chain_size[c]
        count, total = np.int64(0), np.int64(0)
        f, last = first, np.int64(-1)
        while f >= 0:
            if f <= last or f >= frames or batch.reason[f] != Drop.NONE:
                return np.int64(21)
            if f != first and batch.flow[f] != batch.flow[first]:
                return np.int64(22)
            times_seen[f] += 1
            payload = batch.length[f] - header_length(batch, f)
            if count > 0 and not 0 < payload <= size:
                return np.int64(23)
            total += batch.length[f] if count == 0 else payload
            count += 1
            last = f
            f = batch.next_frame[f]
            if f >= 0 and payload != size:
                return np.int64(24)
        if count != batch.chain_count[c] or count > CHAIN_MAX or last != batch.chain_last[c]:
            return np.int64(25)
        if total != batch.chain_bytes[c] or total > 65535:
            return np.int64(26)
    for f in range(frames):
        if times_seen[f] != (1 if batch.reason[f] == Drop.NONE else 0):
            return np.int64(27)
    return np.int64(0)


@kernel
def check_vnet_headers(batch: Inbound, chains: Int, mtu_bytes: Int) -> Int:
    """What the TUN is told fits the packet it is told about."""
    vnet = batch.vnet
    for c in range(chains):
        header = write_vnet_header(batch, c, mtu_bytes)
        total = batch.chain_bytes[c]
        first = batch.chain_first[c]
        if batch.chain_count[c] > 1:
            if vnet[0] != 1 or vnet[1] == 0:
                return np.int64(31)
            if ip_length(batch.data, batch.start[first], total) != total:
                return np.int64(32)
        csum_start = np.int64(vnet[6]) | np.int64(vnet[7]) << 8
        csum_offset = np.int64(vnet[8]) | np.int64(vnet[9]) << 8
        if vnet[0] == 1 and csum_start + csum_offset + 2 > header:
            return np.int64(33)
        if vnet[1] != 0:
            size = np.int64(vnet[4]) | np.int64(vnet[5]) << 8
            header_told = np.int64(vnet[2]) | np.int64(vnet[3]) << 8
            if vnet[0] != 1 or header_told != header or not 0 < size < total - header:
                return np.int64(34)
    return np.int64(0)


@kernel
def check_sent(
    batch: Outbound, first: Int, after: Int, segments: Int, messages: Int, gso: Int, bytes_of: Longs
) -> Int:
    """Every segment is in one message, from memory of ours, and the kernel takes the message."""
    data, headers = np.int64(batch.data.ctypes.data), np.int64(batch.headers.ctypes.data)
    data_end, headers_end = data + len(batch.data), headers + batch.headers.size
    bytes_of[:] = 0
    for s in range(segments):
        packet = batch.segment_packet[s]
        if not first <= packet < after:
            return np.int64(41)
        head, size = batch.head_address[s], batch.head_bytes[s]
        in_data = data <= head and head + size <= data_end
        in_headers = headers <= head and head + size <= headers_end and size <= HEADER_ROW_BYTES
        if size < ENCAP_BYTES or not (in_data or in_headers):
            return np.int64(42)
        body, rest = batch.body_address[s], batch.body_bytes[s]
        if rest < 0 or (rest > 0 and not (data <= body and body + rest <= data_end)):
            return np.int64(43)
        if batch.segment_message[s] >= 0:
            bytes_of[batch.segment_message[s]] += size + rest
    for m in range(messages):
        if bytes_of[m] != batch.message_bytes[m] or not 0 < batch.message_count[m] <= gso:
            return np.int64(44)
        if batch.message_count[m] > 1 and bytes_of[m] > DATAGRAM_BYTES_MAX:
            return np.int64(45)
        header = batch.msghdrs[batch.message_row[m]]
        at = (header[IOV] - np.int64(batch.iovecs.ctypes.data)) // 16
        total = np.int64(0)
        for i in range(at, at + header[IOV_COUNT]):
            total += batch.iovecs[i, 1]
        if total != bytes_of[m]:
            return np.int64(46)
    return np.int64(0)


@kernel
def check_parsed(batch: Outbound, packets: Int, lengths: Longs) -> Int:
    """Lengths only shrink, and what was accepted is sound."""
    for i in range(packets):
        if batch.start[i] < HEADROOM or batch.length[i] > lengths[i]:
            return np.int64(51)
        if batch.reason[i] == Drop.MALFORMED:
            continue
        if ip_length(batch.data, batch.start[i], batch.length[i]) != batch.length[i]:
            return np.int64(52)
        csum_start = batch.csum_start[i]
        if csum_start >= 0 and csum_start + batch.csum_offset[i] + 2 > batch.length[i]:
            return np.int64(53)
    return np.int64(0)
