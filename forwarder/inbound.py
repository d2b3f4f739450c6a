"""Inbound: UDP -> cut by GRO size -> decap and check -> coalesce -> TUN.

The mirror of outbound.py: functions in the order a batch meets them.  Each fills columns of the
batch (batch.py); only receiving and `deliver` make system calls.
"""

import numpy as np

from forwarder import capture, tun, udp
from forwarder.arrays import Bytes, Int
from forwarder.batch import FRAMES, MESSAGE_BYTES, Inbound
from forwarder.capture_ring import CaptureRing, Control
from forwarder.coalesce import coalesce
from forwarder.counters import (
    DROPS_AT,
    IN_BATCHES_AT,
    PEER_IN_BYTES,
    PEER_IN_PACKETS,
    CounterRow,
    Drop,
    Total,
)
from forwarder.fib.layout import KIND_AT, FibView, Kind
from forwarder.fib.lookup import find_vtep, is_address_of, lookup_packet
from forwarder.histogram import bucket_of
from forwarder.jit import kernel, step
from forwarder.superpacket import write_vnet_header
from forwarder.tunnel import Tunnel
from forwarder.wire.checksum import update16
from forwarder.wire.ip import (
    IPV4_BYTES,
    IPV4_CHECKSUM_AT,
    IPV4_DESTINATION_AT,
    IPV4_SOURCE_AT,
    IPV6_BYTES,
    IPV6_DESTINATION_AT,
    IPV6_SOURCE_AT,
    L4_OPAQUE,
    L4_TCP,
    TCP_DATA_OFFSET_AT,
    find_transport,
    flow_hash,
    headers_length,
    ip_length,
    load16,
    load32,
    same_path,
    same_words,
    store16,
)
from forwarder.wire.virtio_net import VNET_BYTES
from forwarder.wire.vxlan import (
    ENCAP_BYTES,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    INNER_DESTINATION_AT,
    INNER_ETHERTYPE_AT,
    INNER_SOURCE_AT,
    VNI_AT,
    VXLAN_FLAG_VNI,
)

ECN_NOT_ECT, ECN_ECT1, ECN_ECT0, ECN_CE = range(4)


@kernel
def turn(
    tunnel: Tunnel, batch: Inbound, fib: FibView, counters: CounterRow, ring: CaptureRing
) -> Int:
    """Moves one batch of each underlay socket to the TUN; returns the number of messages."""
    total = np.int64(0)
    for family in range(len(tunnel.receivers)):
        fd = tunnel.receivers[family]
        if fd < 0:
            continue
        messages = udp.receive(fd, batch, counters.row)
        if messages == 0:
            continue
        total += messages
        frames = cut(batch, messages)
        counters.row[IN_BATCHES_AT + bucket_of(frames)] += 1
        decapsulate(tunnel, batch, frames, fib)
        chains = coalesce(batch, frames, tunnel)
        deliver(tunnel, batch, chains, counters)
        count(batch, frames, counters)
        if ring.controls[Control.ARMED_UNTIL_NS]:
            capture.inbound(ring, batch, frames, chains)
    return total


@kernel
def cut(batch: Inbound, messages: Int) -> Int:
    """Cuts messages into frames where the sender's datagrams ended; returns their number."""
    frames = np.int64(0)
    for m in range(messages):
        start = m * MESSAGE_BYTES
        left = batch.message_bytes[m]
        size = batch.message_gro[m]
        if size <= 0 or size >= left or is_superpacket(batch.data, start, left, size):
            size = left
        while left > 0 and frames < FRAMES:
            batch.start[frames] = start
            batch.length[frames] = min(size, left)
            batch.message[frames] = m
            batch.reason[frames] = Drop.NONE
            frames += 1
            start += size
            left -= size
        if size == 0 and frames < FRAMES:  # an empty datagram still counts, as truncated
            batch.start[frames] = start
            batch.length[frames] = 0
            batch.message[frames] = m
            batch.reason[frames] = Drop.NONE
            frames += 1
    return frames


@kernel
def is_superpacket(data: Bytes, start: Int, length: Int, size: Int) -> bool:
    """Whether a message that claims to be cut is one inner superpacket all the same.

    A kernel vxlan peer on a virtual link hands over its packet before segmentation: then the
    inner IP length covers the whole message, and UDP_GRO (if any) tells the inner segment size.
    """
    if length <= size or length < ENCAP_BYTES:
        return False
    return ip_length(data, start + ENCAP_BYTES, length - ENCAP_BYTES) == length - ENCAP_BYTES


@kernel
def decapsulate(tunnel: Tunnel, batch: Inbound, frames: Int, fib: FibView) -> None:
    """Checks each frame; what passes becomes an inner packet, what does not gets its reason."""
    for f in range(frames):
        if f > 0 and follows(batch, f):
            continue
        reason = check_headers(batch.data, batch.start[f], batch.length[f], tunnel)
        if reason == Drop.NONE:
            reason = decapsulate_frame(batch, f, fib)
        batch.reason[f] = reason


@step
def follows(batch: Inbound, frame: Int) -> bool:
    """Whether a frame came in one message with the one before, passed, and of the same flow.

    Then what was found out about that one holds for this one, and is copied: most frames of a
    stream take this way.  Both have headers of the same sizes, without IP options.
    """
    previous = frame - 1
    if batch.message[frame] != batch.message[previous] or batch.reason[previous] != Drop.NONE:
        return False
    data, kind, transport = batch.data, batch.kind[previous], batch.transport[previous]
    a, b = batch.start[previous], batch.start[frame] + ENCAP_BYTES
    if kind == L4_OPAQUE or transport != (IPV4_BYTES if data[a] >> 4 == 4 else IPV6_BYTES):
        return False
    length = ip_length(data, b, batch.length[frame] - ENCAP_BYTES)
    if (
        length < headers_length(data, a, kind, transport)
        or not same_words(data, a - ENCAP_BYTES, b - ENCAP_BYTES, ENCAP_BYTES // 4)
        or load16(data, a - 2) != load16(data, b - 2)  # EtherType: the last of the 22 bytes
        or not same_path(data, a, b)
        or load32(data, a + transport) != load32(data, b + transport)  # both ports
    ):
        return False
    at = transport + TCP_DATA_OFFSET_AT
    if kind == L4_TCP and data[a + at] != data[b + at]:
        return False  # another header length
    batch.start[frame] = b
    batch.length[frame] = length
    batch.adjacency[frame] = batch.adjacency[previous]
    batch.kind[frame] = kind
    batch.transport[frame] = transport
    batch.protocol[frame] = batch.protocol[previous]
    batch.flow[frame] = batch.flow[previous]
    return True


@step
def check_headers(data: Bytes, start: Int, length: Int, tunnel: Tunnel) -> Int:
    """The VXLAN and inner Ethernet headers: RFC 7348 §5, and that the frame is meant for us."""
    if length < ENCAP_BYTES:
        return np.int64(Drop.TRUNCATED)
    if data[start] & VXLAN_FLAG_VNI == 0:
        return np.int64(Drop.NO_VNI_FLAG)
    reserved = data[start + 1] | data[start + 2] | data[start + 3] | data[start + 7]
    if data[start] != VXLAN_FLAG_VNI or reserved != 0:
        return np.int64(Drop.RESERVED_BITS)
    vni = load16(data, start + VNI_AT) << 8 | np.int64(data[start + VNI_AT + 2])
    if vni != tunnel.vni:
        return np.int64(Drop.WRONG_VNI)
    ours, looped = True, True
    for k in range(6):
        ours &= data[start + INNER_DESTINATION_AT + k] == tunnel.mac[k]
        looped &= data[start + INNER_SOURCE_AT + k] == tunnel.mac[k]
    if not ours:
        return np.int64(Drop.NOT_OUR_MAC)
    if looped:
        return np.int64(Drop.OWN_SOURCE_MAC)
    return np.int64(Drop.NONE)


@step
def decapsulate_frame(batch: Inbound, frame: Int, fib: FibView) -> Int:
    """Takes the inner packet out of a frame and checks who sent it to whom.

    The inner source must be routed to the very VTEP that sent it, the inner destination to us:
    otherwise any host that reaches our port could speak for every pod.
    """
    data = batch.data
    start = batch.start[frame] + ENCAP_BYTES
    available = batch.length[frame] - ENCAP_BYTES
    ethertype = load16(data, batch.start[frame] + INNER_ETHERTYPE_AT)
    if ethertype != ETHERTYPE_IPV4 and ethertype != ETHERTYPE_IPV6:
        return np.int64(Drop.NOT_IP)
    length = ip_length(data, start, available)
    if length == 0 or (data[start] >> 4 == 4) != (ethertype == ETHERTYPE_IPV4):
        return np.int64(Drop.INNER_MALFORMED)
    version = data[start] >> 4
    source_at = IPV4_SOURCE_AT if version == 4 else IPV6_SOURCE_AT
    destination_at = IPV4_DESTINATION_AT if version == 4 else IPV6_DESTINATION_AT
    sender = batch.names[batch.message[frame]]
    adjacency = lookup_packet(fib, data, start + source_at, version)
    is_remote = fib.adjacencies[adjacency, KIND_AT] == Kind.REMOTE
    if not is_remote or not is_address_of(fib, adjacency, sender):
        known = find_vtep(fib, sender)
        return np.int64(Drop.SPOOFED_SOURCE if known else Drop.UNKNOWN_VTEP)
    target = lookup_packet(fib, data, start + destination_at, version)
    if fib.adjacencies[target, KIND_AT] != Kind.LOCAL:
        return np.int64(Drop.NOT_OUR_DESTINATION)
    if not apply_outer_ecn(data, start, batch.message_tos[batch.message[frame]] & 3):
        return np.int64(Drop.ECN_INVALID)
    kind, transport, protocol = find_transport(data, start, length)
    batch.start[frame] = start
    batch.length[frame] = length
    batch.adjacency[frame] = adjacency
    batch.kind[frame] = kind
    batch.transport[frame] = transport
    batch.protocol[frame] = protocol
    batch.flow[frame] = flow_hash(data, start, kind, transport)
    return np.int64(Drop.NONE)


@kernel
def apply_outer_ecn(data: Bytes, start: Int, outer: Int) -> bool:
    """Merges the outer ECN field into the inner packet (RFC 6040 §4.2); False: drop it."""
    if outer != ECN_CE and outer != ECN_ECT1:
        return True
    ipv4 = data[start] >> 4 == 4
    word = load16(data, start)
    inner = word & 3 if ipv4 else (word >> 4) & 3
    if inner == ECN_NOT_ECT:
        return outer != ECN_CE
    merged = ECN_CE if outer == ECN_CE or inner == ECN_CE else ECN_ECT1
    if merged == inner:
        return True
    if ipv4:
        changed = (word & ~3) | merged
        store16(data, start, changed)
        update16(data, start + IPV4_CHECKSUM_AT, word, changed)
    else:
        store16(data, start, (word & ~0x30) | merged << 4)
    return True


@kernel
def deliver(tunnel: Tunnel, batch: Inbound, chains: Int, counters: CounterRow) -> None:
    """Writes each chain to the TUN as one packet or superpacket, payloads where they lie."""
    data = np.int64(batch.data.ctypes.data)
    iovecs = batch.write_iovecs
    for c in range(chains):
        first = batch.chain_first[c]
        header_bytes = write_vnet_header(batch, c, tunnel.mtu_bytes)
        iovecs[0, 0] = np.int64(batch.vnet.ctypes.data)
        iovecs[0, 1] = VNET_BYTES
        iovecs[1, 0] = data + batch.start[first]
        iovecs[1, 1] = batch.length[first]
        parts = np.int64(2)
        frame = batch.next_frame[first]
        while frame >= 0:
            iovecs[parts, 0] = data + batch.start[frame] + header_bytes
            iovecs[parts, 1] = batch.length[frame] - header_bytes
            parts += 1
            frame = batch.next_frame[frame]
        reason = tun.write_packet(tunnel.tun_fd, iovecs, parts)
        counters.row[Total.TUN_WRITES] += 1
        if reason != Drop.NONE:
            frame = first
            while frame >= 0:
                batch.reason[frame] = reason
                frame = batch.next_frame[frame]


@kernel
def count(batch: Inbound, frames: Int, counters: CounterRow) -> None:
    """Counts each frame once: delivered, or dropped with its reason."""
    row = counters.row
    row[Total.IN_SEGMENTS] += frames
    for f in range(frames):
        reason = batch.reason[f]
        if reason != Drop.NONE:
            row[DROPS_AT + reason] += 1
            continue
        row[Total.IN_PACKETS] += 1
        row[Total.IN_BYTES] += batch.length[f]
        peer = counters.per_peer[batch.adjacency[f]]
        peer[PEER_IN_PACKETS] += 1
        peer[PEER_IN_BYTES] += batch.length[f]
