"""Capturing: a finished batch's packets are copied for whoever asked to see them.

Called by the two directions at the end of a batch, when every packet's fate is known, and only
while a capture runs (capture_ring.py).  A superpacket is one packet here: outbound as it was read,
before it is split; inbound as it was delivered, after coalescing.
"""

import numpy as np

from forwarder import libc
from forwarder.arrays import Bytes, Int, Longs
from forwarder.batch import Inbound, Outbound
from forwarder.capture_ring import (
    ADDRESS_ROW,
    ADDRESSES_AT,
    ANY_PORT,
    RECORD_BYTES,
    RING_BYTES,
    VTEP_AT,
    VXLAN_AT,
    CaptureRing,
    Control,
    Direction,
    Position,
)
from forwarder.coalesce import header_length
from forwarder.counters import Drop
from forwarder.fib.layout import NO_ADJACENCY, SOCKADDR_AT, SOCKADDR_BYTES, FibView
from forwarder.jit import kernel
from forwarder.wire.ip import (
    IPV4_DESTINATION_AT,
    IPV4_SOURCE_AT,
    IPV6_DESTINATION_AT,
    IPV6_SOURCE_AT,
    L4_OPAQUE,
    find_transport,
    ip_length,
    load16,
    load32,
    store16,
)
from forwarder.wire.vxlan import (
    ENCAP_BYTES,
    ETHERNET,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    INNER_DESTINATION_AT,
    VXLAN,
)

ETHERNET_BYTES = ETHERNET.itemsize
VXLAN_BYTES = VXLAN.itemsize


@kernel
def outbound(ring: CaptureRing, batch: Outbound, packets: Int, fib: FibView) -> None:
    """Copies what is wanted of an outbound batch, each packet with the header it travels with."""
    now = begin(ring)
    if now == 0:
        return
    for i in range(packets):
        start, length, reason = batch.start[i], batch.length[i], batch.reason[i]
        if not is_wanted(ring.controls, batch.data, start, length, Direction.OUT, reason):
            continue
        original = ETHERNET_BYTES + length
        at = open_record(ring, now, original, Direction.OUT, reason)
        if at < 0:
            continue
        adjacency = np.int64(NO_ADJACENCY) if reason == Drop.MALFORMED else batch.adjacency[i]
        row = fib.adjacencies[adjacency]
        for k in range(SOCKADDR_BYTES):
            ring.data[at - RECORD_BYTES + VTEP_AT + k] = row[SOCKADDR_AT + k]
        write_ethernet(ring.data, at, row, batch.data[start] >> 4)
        copy(ring, at, np.int64(ETHERNET_BYTES), batch.data, start, length)
    publish(ring)


@kernel
def inbound(ring: CaptureRing, batch: Inbound, frames: Int, chains: Int) -> None:
    """Copies what is wanted of an inbound batch: refused frames, and chains as delivered."""
    now = begin(ring)
    if now == 0:
        return
    chain = np.int64(0)
    for f in range(frames):
        start, length, reason = batch.start[f], batch.length[f], batch.reason[f]
        leads = chain < chains and batch.chain_first[chain] == f
        if leads:
            length = batch.chain_bytes[chain]
            chain += 1
        elif was_refused(reason):  # `start` is still the VXLAN header's
            start += ENCAP_BYTES
            length -= ENCAP_BYTES
        else:
            continue  # it is in the chain of another
        if not is_wanted(ring.controls, batch.data, start, length, Direction.IN, reason):
            continue
        original = max(ETHERNET_BYTES + length, 0)
        at = open_record(ring, now, original, Direction.IN, reason)
        if at < 0:
            continue
        record = at - RECORD_BYTES
        vxlan = start - ENCAP_BYTES
        for k in range(min(VXLAN_BYTES, ENCAP_BYTES + length)):
            ring.data[record + VXLAN_AT + k] = batch.data[vxlan + k]
        sender = batch.names[batch.message[f]]
        for k in range(SOCKADDR_BYTES):
            ring.data[record + VTEP_AT + k] = sender[k]
        if leads:
            copy_chain(ring, at, batch, f)
        else:
            inner = vxlan + INNER_DESTINATION_AT
            copy(ring, at, np.int64(0), batch.data, inner, original)
    publish(ring)


@kernel
def begin(ring: CaptureRing) -> Int:
    """The time (CLOCK_MONOTONIC, ns), or 0: the capture has ended without saying so."""
    now = libc.monotonic_ns(ring.positions[Position.SCRATCH :])
    if now > ring.controls[Control.ARMED_UNTIL_NS]:
        ring.controls[Control.ARMED_UNTIL_NS] = 0
        return np.int64(0)
    ring.positions[Position.NEXT] = ring.positions[Position.WRITTEN]
    return now


@kernel
def was_refused(reason: Int) -> bool:
    """Whether an inbound frame was dropped before it could become part of a chain.

    What the kernel refused, when it was delivered, comes last in Drop.
    """
    return bool(reason != Drop.NONE and reason < Drop.TUN_WRITE_INVALID)


@kernel
def is_wanted(
    controls: Longs, data: Bytes, start: Int, length: Int, direction: Int, reason: Int
) -> bool:
    """Whether the capture asked for the packet data[start : start + length], by all it asked for.

    What is no sound IP packet has no address and no port.
    """
    if controls[Control.REASONS] >> reason & 1 == 0:
        return False
    if controls[Control.DIRECTIONS] >> direction & 1 == 0:
        return False
    port, addresses = controls[Control.PORT], controls[Control.ADDRESSES]
    if port == ANY_PORT and addresses == 0:
        return True
    if ip_length(data, start, length) == 0:
        return False
    for k in range(addresses):
        if not speaks_with(controls, ADDRESSES_AT + k * ADDRESS_ROW, data, start):
            return False
    if port == ANY_PORT:
        return True
    kind, transport, _ = find_transport(data, start, length)
    ports = start + transport
    if kind == L4_OPAQUE:
        return False
    return bool(load16(data, ports) == port or load16(data, ports + 2) == port)


@kernel
def speaks_with(controls: Longs, row: Int, data: Bytes, start: Int) -> bool:
    """Whether the packet's source or destination is among the addresses of controls[row:]."""
    version = np.int64(data[start] >> 4)
    if version != controls[row]:
        return False
    source_at = IPV4_SOURCE_AT if version == 4 else IPV6_SOURCE_AT
    destination_at = IPV4_DESTINATION_AT if version == 4 else IPV6_DESTINATION_AT
    is_source, is_destination = True, True
    for k in range(1 if version == 4 else 4):
        address, mask = controls[row + 1 + k], controls[row + 5 + k]
        is_source &= load32(data, start + source_at + 4 * k) & mask == address
        is_destination &= load32(data, start + destination_at + 4 * k) & mask == address
    return bool(is_source or is_destination)


@kernel
def open_record(ring: CaptureRing, now: Int, original: Int, direction: Int, reason: Int) -> Int:
    """Makes room for a frame of `original` bytes; returns where it begins in ring.data.

    -1: there is no room, the packet is missed.  Published are records by `publish`, all at once.
    """
    captured = min(original, ring.controls[Control.SNAP_BYTES])
    whole = RECORD_BYTES + ((captured + RECORD_BYTES - 1) & ~(RECORD_BYTES - 1))
    position = ring.positions[Position.NEXT]
    at = position & (RING_BYTES - 1)
    skipped = RING_BYTES - at if at + whole > RING_BYTES else np.int64(0)
    if position + skipped + whole - ring.positions[Position.READ] > RING_BYTES:
        ring.positions[Position.MISSED] += 1
        return np.int64(-1)
    if skipped > 0:
        ring.words[at >> 3] = 0
        at = np.int64(0)
    ring.positions[Position.NEXT] = position + skipped + whole
    word = at >> 3
    ring.words[word] = whole | captured << 32
    ring.words[word + 1] = now
    ring.words[word + 2] = original | direction << 32 | reason << 40
    for k in range(VXLAN_AT // 8, RECORD_BYTES // 8):
        ring.words[word + k] = 0
    return at + RECORD_BYTES


@kernel
def write_ethernet(out: Bytes, at: Int, adjacency: Bytes, version: Int) -> None:
    """The inner Ethernet header of a packet to this adjacency; without one, no addresses."""
    for k in range(ETHERNET_BYTES - 2):
        out[at + k] = adjacency[VXLAN_BYTES + k]
    ethertype = ETHERTYPE_IPV6 if version == 6 else ETHERTYPE_IPV4
    store16(out, at + ETHERNET_BYTES - 2, ethertype)


@kernel
def copy(ring: CaptureRing, at: Int, offset: Int, data: Bytes, start: Int, length: Int) -> Int:
    """Copies data[start : start + length] into the frame that begins at `at`, from `offset` on.

    No more than is captured of the frame.  Returns the offset behind it.
    """
    captured = ring.words[(at - RECORD_BYTES) >> 3] >> 32
    copied = min(length, captured - offset)
    for k in range(copied):
        ring.data[at + offset + k] = data[start + k]
    return offset + max(copied, np.int64(0))


@kernel
def copy_chain(ring: CaptureRing, at: Int, batch: Inbound, first: Int) -> None:
    """Copies a chain as it was delivered: its first packet, and the payloads of the others."""
    ethernet = batch.start[first] - ETHERNET_BYTES
    length = ETHERNET_BYTES + batch.length[first]
    offset = copy(ring, at, np.int64(0), batch.data, ethernet, length)
    header = header_length(batch, first)
    frame = batch.next_frame[first]
    while frame >= 0:
        payload = batch.start[frame] + header
        offset = copy(ring, at, offset, batch.data, payload, batch.length[frame] - header)
        frame = batch.next_frame[frame]


@kernel
def publish(ring: CaptureRing) -> None:
    """Lets the capture see all records of the batch."""
    ring.positions[Position.WRITTEN] = ring.positions[Position.NEXT]
