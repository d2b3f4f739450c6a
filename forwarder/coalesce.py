"""Coalescing: consecutive packets of a flow become chains, each delivered as one superpacket.

Pure: reads and fills columns of the inbound batch.  A chain keeps the flow's order, and nothing
joins one whose checksums do not hold: merging would launder the corruption.
"""

import numpy as np

from forwarder.arrays import Bytes, Int
from forwarder.batch import CHAIN_MAX, OPEN_SLOTS, Inbound
from forwarder.counters import Drop
from forwarder.jit import kernel, step
from forwarder.tunnel import Tunnel
from forwarder.wire.checksum import fold, ipv4_checksum_is_right, ones_sum, pseudo_sum
from forwarder.wire.ip import (
    IPV4_BYTES,
    IPV4_DF,
    IPV4_FRAGMENT_AT,
    IPV4_ID_AT,
    IPV6_BYTES,
    L4_OPAQUE,
    L4_TCP,
    TCP_ACK,
    TCP_ACKNOWLEDGMENT_AT,
    TCP_BYTES,
    TCP_CHECKSUM_AT,
    TCP_DATA_OFFSET_AT,
    TCP_FLAGS_AT,
    TCP_PSH,
    TCP_SEQUENCE_AT,
    TCP_URGENT_AT,
    TCP_WINDOW_AT,
    UDP_BYTES,
    UDP_CHECKSUM_AT,
    UDP_LENGTH_AT,
    headers_length,
    load16,
    load32,
    same_path,
    same_words,
)

IP_PACKET_MAX = 65535


@kernel
def coalesce(batch: Inbound, frames: Int, tunnel: Tunnel) -> Int:
    """Arranges all frames without a drop reason in chains; returns the number of chains.

    Chains are delivered in order of their first frame.  A flow's chain grows until something of
    the flow cannot join it; from then on that flow starts a new one.
    """
    slots = batch.open_slots
    slots[:] = -1
    chains = np.int64(0)
    for f in range(frames):
        if batch.reason[f] != Drop.NONE:
            continue
        batch.next_frame[f] = -1
        slot = batch.flow[f] % OPEN_SLOTS
        chain = slots[slot]
        if chain >= 0 and batch.chain_open[chain] and joins(batch, chain, f):
            append(batch, chain, f)
            continue
        chain = chains
        chains += 1
        slots[slot] = chain
        batch.chain_first[chain] = f
        batch.chain_last[chain] = f
        batch.chain_count[chain] = 1
        batch.chain_bytes[chain] = batch.length[f]
        batch.chain_size[chain] = batch.length[f] - header_length(batch, f)
        batch.chain_open[chain] = may_lead(batch, f, tunnel)
    return chains


@step
def header_length(batch: Inbound, frame: Int) -> Int:
    """Bytes of IP and transport header; of an opaque packet, of the IP header."""
    kind, transport = batch.kind[frame], batch.transport[frame]
    if kind == L4_OPAQUE:
        return transport
    return headers_length(batch.data, batch.start[frame], kind, transport)


@step
def may_lead(batch: Inbound, frame: Int, tunnel: Tunnel) -> bool:
    """Whether other packets may be appended to this one."""
    kind, start, length = batch.kind[frame], batch.start[frame], batch.length[frame]
    if kind == L4_OPAQUE or length > tunnel.mtu_bytes:
        return False
    if not (tunnel.coalesce_tcp if kind == L4_TCP else tunnel.coalesce_udp):
        return False
    data = batch.data
    # IP options and extension headers speak of one packet: leave those alone.
    if batch.transport[frame] != (IPV4_BYTES if data[start] >> 4 == 4 else IPV6_BYTES):
        return False
    if length == header_length(batch, frame):
        return False
    transport = start + batch.transport[frame]
    if kind == L4_TCP:
        return data[transport + TCP_FLAGS_AT] == TCP_ACK
    return (
        load16(data, transport + UDP_CHECKSUM_AT) != 0
        and load16(data, transport + UDP_LENGTH_AT) == length - batch.transport[frame]
    )


@step
def joins(batch: Inbound, chain: Int, frame: Int) -> bool:
    """Whether a frame continues a chain exactly: the rules of TCP and UDP receive offload."""
    first = batch.chain_first[chain]
    kind = batch.kind[frame]
    if kind != batch.kind[first] or batch.transport[frame] != batch.transport[first]:
        return False
    header = header_length(batch, first)
    payload = batch.length[frame] - header
    if (
        header_length(batch, frame) != header
        or payload <= 0
        or payload > batch.chain_size[chain]
        or batch.chain_count[chain] == CHAIN_MAX
        or batch.chain_bytes[chain] + payload > IP_PACKET_MAX
    ):
        return False
    data = batch.data
    a, b = batch.start[first], batch.start[frame]
    if not _same_ip_header(data, a, b, batch.chain_count[chain]):
        return False
    transport = batch.transport[first]
    if load32(data, a + transport) != load32(data, b + transport):  # both ports
        return False
    if kind == L4_TCP:
        passed = batch.chain_bytes[chain] - header
        if not _continues_tcp(data, a + transport, b + transport, header - transport, passed):
            return False
    elif (
        load16(data, b + transport + UDP_CHECKSUM_AT) == 0
        or load16(data, b + transport + UDP_LENGTH_AT) != payload + UDP_BYTES
    ):
        return False
    if batch.chain_count[chain] == 1 and not checksums_hold(batch, first):
        batch.chain_open[chain] = 0
        return False
    return checksums_hold(batch, frame)


@kernel
def _same_ip_header(data: Bytes, a: Int, b: Int, count: Int) -> bool:
    """Whether two IP headers without options differ only where a flow's packets may.

    `count` packets lie between them: without DF, ids must have been counted up.
    """
    if not same_path(data, a, b):
        return False
    if data[a] >> 4 == 4 and load16(data, a + IPV4_FRAGMENT_AT) & IPV4_DF == 0:
        return (load16(data, b + IPV4_ID_AT) - load16(data, a + IPV4_ID_AT)) & 0xFFFF == count
    return True


@kernel
def _continues_tcp(data: Bytes, a: Int, b: Int, header_bytes: Int, passed: Int) -> bool:
    """Whether the segment at b follows, `passed` payload bytes after the one at a, unchanged."""
    sequence = (load32(data, a + TCP_SEQUENCE_AT) + passed) & 0xFFFFFFFF
    if load32(data, b + TCP_SEQUENCE_AT) != sequence:
        return False
    flags = data[b + TCP_FLAGS_AT]
    if flags != TCP_ACK and flags != TCP_ACK | TCP_PSH:
        return False
    return (
        load32(data, a + TCP_ACKNOWLEDGMENT_AT) == load32(data, b + TCP_ACKNOWLEDGMENT_AT)
        and data[a + TCP_DATA_OFFSET_AT] == data[b + TCP_DATA_OFFSET_AT]
        and load16(data, a + TCP_WINDOW_AT) == load16(data, b + TCP_WINDOW_AT)
        and load16(data, a + TCP_URGENT_AT) == load16(data, b + TCP_URGENT_AT)
        and same_words(data, a + TCP_BYTES, b + TCP_BYTES, (header_bytes - TCP_BYTES) // 4)
    )


@step
def transport_field(batch: Inbound, frame: Int) -> Int:
    """Where the checksum of a TCP or UDP packet lies, from the start of its IP header."""
    tcp = batch.kind[frame] == L4_TCP
    return batch.transport[frame] + (TCP_CHECKSUM_AT if tcp else UDP_CHECKSUM_AT)


@step
def transport_pseudo_sum(batch: Inbound, frame: Int) -> Int:
    """The folded pseudo-header sum of a TCP or UDP packet."""
    transport_bytes = batch.length[frame] - batch.transport[frame]
    return pseudo_sum(batch.data, batch.start[frame], batch.protocol[frame], transport_bytes)


@step
def is_partial(batch: Inbound, frame: Int) -> bool:
    """Whether the transport checksum holds just the pseudo-header's sum.

    A kernel on a virtual link leaves the rest to hardware there is none of (CHECKSUM_PARTIAL).
    """
    field = load16(batch.data, batch.start[frame] + transport_field(batch, frame))
    return field == transport_pseudo_sum(batch, frame)


@step
def checksums_hold(batch: Inbound, frame: Int) -> bool:
    """Whether IP and transport checksums are right (or partial, which says: vouched for)."""
    data, start = batch.data, batch.start[frame]
    if data[start] >> 4 == 4 and not ipv4_checksum_is_right(data, start, IPV4_BYTES):
        return False
    pseudo = transport_pseudo_sum(batch, frame)
    if load16(data, start + transport_field(batch, frame)) == pseudo:
        return True
    transport = batch.transport[frame]
    return fold(pseudo + ones_sum(data, start + transport, batch.length[frame] - transport)) == (
        0xFFFF
    )


@step
def append(batch: Inbound, chain: Int, frame: Int) -> None:
    """Adds a frame that joins to its chain; a short one or one with PSH is the last."""
    header = header_length(batch, frame)
    payload = batch.length[frame] - header
    batch.next_frame[batch.chain_last[chain]] = frame
    batch.chain_last[chain] = frame
    batch.chain_count[chain] += 1
    batch.chain_bytes[chain] += payload
    if payload < batch.chain_size[chain]:
        batch.chain_open[chain] = 0
    if batch.kind[frame] == L4_TCP:
        at = batch.start[frame] + batch.transport[frame] + TCP_FLAGS_AT
        if batch.data[at] & TCP_PSH:
            batch.chain_open[chain] = 0
