"""Outbound: TUN -> parse -> FIB lookup -> encap -> plan sends -> UDP.
                                     └─> (tunnel GSO) ─> TAP

Functions appear in the order a batch meets them.  Each fills columns of the batch (batch.py);
only receiving, `send_whole` and `udp.send` make system calls.
"""

import numpy as np

from forwarder import capture, icmp, tun, tunnel_gso, udp
from forwarder.arrays import Bytes, Int, Longs
from forwarder.batch import (
    HEADER_ROW_BYTES,
    OPEN_SLOTS,
    SEGMENTS,
    Outbound,
)
from forwarder.capture_ring import CaptureRing, Control
from forwarder.counters import (
    DROPS_AT,
    OUT_BATCHES_AT,
    PEER_OUT_BYTES,
    PEER_OUT_PACKETS,
    CounterRow,
    Drop,
    Total,
)
from forwarder.dscp import COPY
from forwarder.fib.layout import KIND_AT, NO_ADJACENCY, SOCKADDR_AT, FibView, Kind
from forwarder.fib.lookup import AF_INET6, lookup_packet
from forwarder.histogram import bucket_of
from forwarder.jit import kernel, step
from forwarder.path_mtu import mtu_towards
from forwarder.tunnel import Tunnel
from forwarder.wire.checksum import finish_partial
from forwarder.wire.ip import (
    IPV4_DESTINATION_AT,
    IPV4_DF,
    IPV4_FRAGMENT_AT,
    IPV6_DESTINATION_AT,
    find_transport,
    flow_hash,
    headers_length,
    ip_length,
    load16,
)
from forwarder.wire.split import segment_count, split
from forwarder.wire.virtio_net import GSO_NONE
from forwarder.wire.vxlan import ENCAP_BYTES, ETHERTYPE_IPV6

DATAGRAM_BYTES_MAX = 65000
"""Most bytes of one message; the kernel takes 65,507."""
ECN_MASK = 3


@kernel
def turn(
    tunnel: Tunnel, batch: Outbound, fib: FibView, counters: CounterRow, ring: CaptureRing
) -> Int:
    """Moves one batch from the TUN queue to the underlay; returns the number of packets read."""
    row = counters.row
    packets = tun.receive(tunnel.tun_fd, batch, row, Total.TUN_READS)
    if packets == 0:
        return packets
    row[OUT_BATCHES_AT + bucket_of(packets)] += 1
    parse(batch, packets)
    route(batch, packets, fib, tunnel)
    done: Int = np.int64(0)
    while done < packets:  # mostly once
        end = choose_whole(tunnel, batch, done, packets, fib)
        after, segments = encapsulate(tunnel, batch, done, end, fib)
        send_whole(tunnel, batch, done, after, fib, row)
        messages = plan(batch, segments, fib, tunnel)
        lay_out(batch, segments, messages, fib, len(tunnel.sockets), tunnel.udp_gso)
        udp.send(tunnel, batch, messages, row)
        done = after
    count(batch, packets, counters)
    if ring.controls[Control.ARMED_UNTIL_NS]:
        capture.outbound(ring, batch, packets, fib)
    icmp.answer(tunnel, batch, packets, row)
    return packets


@kernel
def parse(batch: Outbound, packets: Int) -> None:
    """Checks each packet's IP header; finds its transport header, kind and flow."""
    for i in range(packets):
        start = batch.start[i]
        length = ip_length(batch.data, start, batch.length[i])
        if length == 0:
            batch.reason[i] = Drop.MALFORMED
            continue
        batch.length[i] = length
        kind, transport, _ = find_transport(batch.data, start, length)
        if batch.csum_start[i] >= 0 and (batch.csum_start[i] + batch.csum_offset[i] + 2 > length):
            batch.reason[i] = Drop.MALFORMED
            continue
        batch.kind[i] = kind
        batch.transport[i] = transport
        batch.flow[i] = flow_hash(batch.data, start, kind, transport)


@kernel
def route(batch: Outbound, packets: Int, fib: FibView, tunnel: Tunnel) -> None:
    """Looks up each packet's destination: an adjacency, or the reason to drop it."""
    for i in range(packets):
        if batch.reason[i] != Drop.NONE:
            continue
        start = batch.start[i]
        version = batch.data[start] >> 4
        field = IPV4_DESTINATION_AT if version == 4 else IPV6_DESTINATION_AT
        adjacency = lookup_packet(fib, batch.data, start + field, version)
        batch.adjacency[i] = adjacency
        kind = fib.adjacencies[adjacency, KIND_AT]
        if adjacency == NO_ADJACENCY:
            batch.reason[i] = Drop.NO_ROUTE
        elif kind == Kind.LOCAL:
            batch.reason[i] = Drop.LOCAL_DESTINATION
        elif kind == Kind.BLACKHOLE:
            batch.reason[i] = Drop.BLACKHOLE
        elif (
            batch.length[i] > mtu_towards(tunnel, adjacency, version)
            and length_on_the_way(batch, i) > mtu_towards(tunnel, adjacency, version)
            and not may_be_fragmented(batch.data, start)
        ):
            batch.reason[i] = Drop.TOO_BIG


@step
def length_on_the_way(batch: Outbound, packet: Int) -> Int:
    """The length of an inner packet, of a superpacket that of its largest segment."""
    if batch.gso_type[packet] == GSO_NONE:
        return batch.length[packet]
    transport = batch.transport[packet]
    headers = headers_length(batch.data, batch.start[packet], batch.kind[packet], transport)
    return min(headers + batch.gso_size[packet], batch.length[packet])


@kernel
def may_be_fragmented(data: Bytes, start: Int) -> bool:
    """Whether routers may cut the packet: IPv4 without DF."""
    return data[start] >> 4 == 4 and load16(data, start + IPV4_FRAGMENT_AT) & IPV4_DF == 0


@kernel
def choose_whole(tunnel: Tunnel, batch: Outbound, first: Int, packets: Int, fib: FibView) -> Int:
    """Marks the packets that leave whole (tunnel GSO), and returns where the others must be sent.

    Whole ones are sent before the segments of the same stretch: it ends where that would let one
    overtake an earlier packet of its flow.
    """
    segmented = np.int64(0)  # a bit for each flow (modulo 64) that has segments in this stretch
    for i in range(first, packets):
        batch.whole[i] = 0
        if batch.reason[i] != Drop.NONE:
            continue
        bit = np.int64(1) << (batch.flow[i] & 63)
        if not tunnel_gso.takes(tunnel, batch, i, fib):
            segmented |= bit
        elif segmented & bit:
            return np.int64(i)
        else:
            batch.whole[i] = 1
    return np.int64(packets)


@kernel
def encapsulate(
    tunnel: Tunnel, batch: Outbound, first: Int, packets: Int, fib: FibView
) -> tuple[Int, Int]:
    """Makes segments of packets[first:], superpackets split, each with its headers before it.

    Returns (the first packet not done for want of room, number of segments).
    """
    base = np.int64(batch.data.ctypes.data)
    segments: Int = np.int64(0)
    for i in range(first, packets):
        if batch.reason[i] != Drop.NONE or batch.whole[i]:
            continue
        start, length = batch.start[i], batch.length[i]
        rewrite = fib.adjacencies[batch.adjacency[i]]
        if batch.gso_type[i] == GSO_NONE:
            if segments == SEGMENTS:
                return np.int64(i), segments
            if batch.csum_start[i] >= 0:
                at = start + batch.csum_start[i]
                finish_partial(batch.data, at, start + length, at + batch.csum_offset[i])
            write_rewrite(batch.data, start - ENCAP_BYTES, rewrite, batch.data[start] >> 4)
            batch.head_address[segments] = base + start - ENCAP_BYTES
            batch.head_bytes[segments] = ENCAP_BYTES + length
            batch.body_bytes[segments] = 0
            batch.segment_fresh[segments] = 0
            made: Int = np.int64(1)
        else:
            made, header_bytes = segment_count(
                batch.data, start, length, batch.kind[i], batch.transport[i], batch.gso_size[i]
            )
            if made == 0:
                batch.reason[i] = Drop.MALFORMED
                continue
            if made > SEGMENTS:
                batch.reason[i] = Drop.TOO_MANY_SEGMENTS
                continue
            if ENCAP_BYTES + header_bytes > HEADER_ROW_BYTES:
                batch.reason[i] = Drop.HEADERS_TOO_LONG
                continue
            if segments + made > SEGMENTS:
                return np.int64(i), segments
            split_packet(batch, i, segments, made, header_bytes, rewrite)
        tos = outer_tos(tunnel.dscp, batch.data, start)
        for segment in range(segments, segments + made):
            batch.segment_packet[segment] = i
            batch.segment_tos[segment] = tos
        segments += made
    return np.int64(packets), segments


@kernel
def write_rewrite(data: Bytes, at: Int, rewrite: Bytes, version: Int) -> None:
    """Copies an adjacency's ready-made headers; they are IPv4's but for the ethertype."""
    for k in range(ENCAP_BYTES):
        data[at + k] = rewrite[k]
    if version == 6:
        data[at + ENCAP_BYTES - 2] = ETHERTYPE_IPV6 >> 8
        data[at + ENCAP_BYTES - 1] = ETHERTYPE_IPV6 & 0xFF


@step
def split_packet(
    batch: Outbound, packet: Int, first: Int, made: Int, header_bytes: Int, rewrite: Bytes
) -> None:
    """Makes `made` segments of a superpacket: header rows of their own, payload where it lies."""
    data, start = batch.data, batch.start[packet]
    payload = start + header_bytes
    size = batch.gso_size[packet]
    split(
        data,
        start,
        batch.length[packet],
        batch.kind[packet],
        batch.transport[packet],
        size,
        made,
        batch.headers[first : first + made, ENCAP_BYTES:],
    )
    for k in range(made):
        write_rewrite(batch.headers[first + k], 0, rewrite, data[start] >> 4)
    # A 64 KB superpacket does not fit one message: split it evenly, not into 44 segments and 1.
    fitting = max(DATAGRAM_BYTES_MAX // (ENCAP_BYTES + header_bytes + size), 1)
    per_message = min(fitting, udp.GSO_SEGMENTS)
    parts = -(-made // per_message)
    even = -(-made // parts)
    rows = np.int64(batch.headers.ctypes.data) + first * HEADER_ROW_BYTES
    body = np.int64(data.ctypes.data) + payload
    left = start + batch.length[packet] - payload
    for k in range(made):
        segment = first + k
        batch.head_address[segment] = rows + k * HEADER_ROW_BYTES
        batch.head_bytes[segment] = ENCAP_BYTES + header_bytes
        batch.body_address[segment] = body + k * size
        batch.body_bytes[segment] = min(size, left - k * size)
        batch.segment_fresh[segment] = k > 0 and k % even == 0


@kernel
def outer_tos(dscp: Int, data: Bytes, start: Int) -> Int:
    """The outer TOS: `dscp` (see dscp.py) with the inner ECN field (RFC 6040 §4.1, normal mode)."""
    ipv4 = data[start] >> 4 == 4
    inner = np.int64(data[start + 1]) if ipv4 else (load16(data, start) >> 4) & 0xFF
    return inner if dscp == COPY else (dscp << 2) | (inner & ECN_MASK)


@kernel
def send_whole(
    tunnel: Tunnel, batch: Outbound, first: Int, after: Int, fib: FibView, row: Longs
) -> None:
    """Sends the packets of a stretch that leave whole."""
    for i in range(first, after):
        if batch.reason[i] != Drop.NONE or not batch.whole[i]:
            continue
        start = batch.start[i]
        rewrite = fib.adjacencies[batch.adjacency[i]]
        write_rewrite(batch.data, start - ENCAP_BYTES, rewrite, batch.data[start] >> 4)
        lane = lane_of(batch.flow[i], len(tunnel.sockets), rewrite[SOCKADDR_AT])
        tunnel_gso.send(
            tunnel, batch, i, rewrite, outer_tos(tunnel.dscp, batch.data, start), lane, row
        )


@kernel
def lane_of(flow: Int, lanes: Int, family: Int) -> Int:
    """The socket a flow is sent from: always the same; the second half of all are IPv6's."""
    per_family = lanes // 2
    lane = (flow * per_family) >> 31
    return lane + per_family if family == AF_INET6 else lane


@kernel
def plan(batch: Outbound, segments: Int, fib: FibView, tunnel: Tunnel) -> Int:
    """Gathers segments into messages; returns how many.

    A message carries datagrams to one VTEP from one socket with one TOS, all of one size but for
    a shorter last.  Messages to several VTEPs grow side by side; those of one VTEP and lane are
    numbered in order, so nothing is overtaken within a flow.
    """
    per_message = udp.GSO_SEGMENTS if tunnel.udp_gso[0] else 1
    slots = batch.open_slots
    slots[:] = -1
    messages = np.int64(0)
    for s in range(segments):
        packet = batch.segment_packet[s]
        adjacency = batch.adjacency[packet]
        family = fib.adjacencies[adjacency, SOCKADDR_AT]
        lane = lane_of(batch.flow[packet], len(tunnel.sockets), family)
        if tunnel.sockets[lane] < 0:
            batch.reason[packet] = Drop.NO_UNDERLAY
            batch.segment_message[s] = -1
            continue
        size = batch.head_bytes[s] + batch.body_bytes[s]
        slot = (adjacency * 31 + lane) % OPEN_SLOTS
        m = slots[slot]
        if (
            m < 0
            or not batch.message_open[m]
            or batch.segment_fresh[s]
            or batch.message_adjacency[m] != adjacency
            or batch.message_lane[m] != lane
            or batch.message_tos[m] != batch.segment_tos[s]
            or size > batch.message_size[m]
            or batch.message_count[m] == per_message
            or batch.message_bytes[m] + size > DATAGRAM_BYTES_MAX
        ):
            m = messages
            messages += 1
            slots[slot] = m
            batch.message_adjacency[m] = adjacency
            batch.message_lane[m] = lane
            batch.message_tos[m] = batch.segment_tos[s]
            batch.message_size[m] = size
            batch.message_count[m] = 0
            batch.message_bytes[m] = 0
            batch.message_open[m] = 1
        batch.segment_message[s] = m
        batch.message_count[m] += 1
        batch.message_bytes[m] += size
        if size < batch.message_size[m]:
            batch.message_open[m] = 0
    return messages


@kernel
def lay_out(
    batch: Outbound, segments: Int, messages: Int, fib: FibView, lanes: Int, udp_gso: Longs
) -> None:
    """Writes the msghdrs and iovecs of planned messages, those of a lane next to each other."""
    order_by_lane(batch, messages, lanes)
    at = np.int64(0)
    for m in range(messages):
        batch.message_iov[m] = at
        at += 2 * batch.message_count[m]
        udp.write_message_header(batch, m, fib)
    for s in range(segments):
        m = batch.segment_message[s]
        if m < 0:
            continue
        header = batch.msghdrs[batch.message_row[m]]
        iov = batch.message_iov[m] + header[udp.IOV_COUNT]
        batch.segment_iov[s] = iov
        batch.iovecs[iov, 0] = batch.head_address[s]
        batch.iovecs[iov, 1] = batch.head_bytes[s]
        header[udp.IOV_COUNT] += 1
        if batch.body_bytes[s] > 0:
            batch.iovecs[iov + 1, 0] = batch.body_address[s]
            batch.iovecs[iov + 1, 1] = batch.body_bytes[s]
            header[udp.IOV_COUNT] += 1


@kernel
def order_by_lane(batch: Outbound, messages: Int, lanes: Int) -> None:
    """Gives each message its row, so that one sendmmsg takes all of a lane (counting sort)."""
    rows = batch.lane_rows
    rows[:] = 0
    for m in range(messages):
        rows[batch.message_lane[m] + 1] += 1
    for lane in range(lanes):
        rows[lane + 1] += rows[lane]
    for m in range(messages):
        lane = batch.message_lane[m]
        batch.message_row[m] = rows[lane]
        batch.row_message[rows[lane]] = m
        rows[lane] += 1
    for lane in range(lanes, 0, -1):  # each start has moved to its end: move back
        rows[lane] = rows[lane - 1]
    rows[0] = 0


@kernel
def count(batch: Outbound, packets: Int, counters: CounterRow) -> None:
    """Counts each packet once: sent, or dropped with its reason."""
    row = counters.row
    for i in range(packets):
        reason = batch.reason[i]
        if reason != Drop.NONE:
            row[DROPS_AT + reason] += 1
            continue
        row[Total.OUT_PACKETS] += 1
        row[Total.OUT_BYTES] += batch.length[i]
        peer = counters.per_peer[batch.adjacency[i]]
        peer[PEER_OUT_PACKETS] += 1
        peer[PEER_OUT_BYTES] += batch.length[i]
