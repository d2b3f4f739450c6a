"""Superpackets towards the TUN: what the kernel must be told to take many packets as one."""

import numpy as np

from forwarder.arrays import Bytes, Int
from forwarder.batch import Inbound
from forwarder.coalesce import checksums_hold, header_length, is_partial, transport_field
from forwarder.jit import kernel, step
from forwarder.wire.checksum import pseudo_sum, set_ipv4_checksum
from forwarder.wire.ip import (
    IPV4_LENGTH_AT,
    IPV6_BYTES,
    IPV6_LENGTH_AT,
    L4_OPAQUE,
    L4_TCP,
    TCP_CHECKSUM_AT,
    TCP_CWR,
    TCP_FLAGS_AT,
    UDP_CHECKSUM_AT,
    UDP_LENGTH_AT,
    store16,
)
from forwarder.wire.virtio_net import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
)


@step
def write_vnet_header(batch: Inbound, chain: Int, mtu_bytes: Int) -> Int:
    """Fills batch.vnet for a chain, and the headers of its first packet where it has grown.

    A chain of one ships as it came.  Returns the bytes of IP and transport header, which the
    chain's other packets leave out.
    """
    first = batch.chain_first[chain]
    vnet = batch.vnet
    vnet[:] = 0
    header = header_length(batch, first)
    kind = batch.kind[first]
    if kind == L4_OPAQUE:
        return header
    is_chain = batch.chain_count[chain] > 1
    is_giant = batch.length[first] > mtu_bytes  # an inner superpacket from a kernel peer
    if is_chain:
        set_lengths(batch, chain)
    elif is_giant and not is_partial(batch, first) and not checksums_hold(batch, first):
        return header  # corrupted on the way: the pod's kernel shall see it so
    if not is_chain and not is_giant and not is_partial(batch, first):
        return header
    start, transport = batch.start[first], batch.transport[first]
    field = transport_field(batch, first)
    total = batch.chain_bytes[chain]
    pseudo = pseudo_sum(batch.data, start, batch.protocol[first], total - transport)
    store16(batch.data, start + field, pseudo)
    vnet[0] = NEEDS_CSUM
    _store_native16(vnet, 6, transport)
    _store_native16(vnet, 8, field - transport)
    size = segment_size(batch, chain, header, mtu_bytes) if is_chain or is_giant else np.int64(0)
    if 0 < size < total - header:
        vnet[1] = gso_type(batch, first)
        _store_native16(vnet, 2, header)
        _store_native16(vnet, 4, size)
    return header


@step
def segment_size(batch: Inbound, chain: Int, header: Int, mtu_bytes: Int) -> Int:
    """Payload bytes of each segment of a superpacket; 0: leave it whole.

    Of a chain they are known.  A kernel peer's superpacket tells them by UDP_GRO; without, TCP may
    be cut to the overlay's MTU as one likes, while UDP's datagrams keep what bounds they have.
    """
    first = batch.chain_first[chain]
    if batch.chain_count[chain] > 1:
        return batch.chain_size[chain]
    told = batch.message_gro[batch.message[first]]
    if 0 < told <= mtu_bytes - header:
        return told
    if batch.kind[first] == L4_TCP:
        return mtu_bytes - header
    return np.int64(0)


@step
def gso_type(batch: Inbound, frame: Int) -> Int:
    """The virtio gso_type for a TCP or UDP packet."""
    if batch.kind[frame] != L4_TCP:
        return np.int64(GSO_UDP_L4)
    start = batch.start[frame]
    flags = batch.data[start + batch.transport[frame] + TCP_FLAGS_AT]
    ecn = GSO_ECN if flags & TCP_CWR else GSO_NONE
    return np.int64(ecn | (GSO_TCPV4 if batch.data[start] >> 4 == 4 else GSO_TCPV6))


@step
def set_lengths(batch: Inbound, chain: Int) -> None:
    """Gives the chain's first packet the length of all, and the last one's flags (PSH)."""
    data = batch.data
    first, last = batch.chain_first[chain], batch.chain_last[chain]
    start, transport = batch.start[first], batch.transport[first]
    total = batch.chain_bytes[chain]
    if data[start] >> 4 == 4:
        store16(data, start + IPV4_LENGTH_AT, total)
        set_ipv4_checksum(data, start, transport)
    else:
        store16(data, start + IPV6_LENGTH_AT, total - IPV6_BYTES)
    if batch.kind[first] == L4_TCP:
        end = batch.start[last] + transport + TCP_FLAGS_AT
        data[start + transport + TCP_FLAGS_AT] |= data[end]
    else:
        store16(data, start + transport + UDP_LENGTH_AT, total - transport)


@kernel
def _store_native16(data: Bytes, at: Int, value: Int) -> None:
    data[at] = value & 0xFF
    data[at + 1] = value >> 8


assert (TCP_CHECKSUM_AT, UDP_CHECKSUM_AT) == (16, 6)  # the csum_offsets Linux expects
