"""The memory of a worker: columns for the packets of one turn, allocated once.

Every column is an array with one element per packet, segment or message; a stage reads some and
fills others.  Contents are borrowed until the next receive of the same direction.
"""

from typing import NamedTuple

import numpy as np

from forwarder.arrays import Bytes, Longs
from forwarder.wire.virtio_net import VNET_BYTES

PACKETS = 128
"""Most packets read from the TUN in one turn."""
OUT_BYTES = 512 * 1024
"""Reading stops when less than a full packet of this is left: small enough for a CPU's L2."""
PACKET_BYTES_MAX = 65535 + VNET_BYTES
HEADROOM = 128
"""Free bytes before each packet's IP header: whatever encapsulation writes before it fits here."""
SEGMENTS = 1024
"""Most datagrams made from one flush; a superpacket of more is dropped."""
HEADER_ROW_BYTES = 256
"""Room for the headers of one segment of a superpacket: VXLAN to TCP options."""
OPEN_SLOTS = 64
"""Messages (or chains) still growing are found by this many hash slots; a collision closes one."""

MESSAGES_IN = 64
"""Most messages received in one call; with UDP_GRO each holds up to 64 KiB of datagrams."""
MESSAGE_BYTES = 65535 + 65
"""Distance between receive buffers: no multiple of the page size, which would make all the
buffers' first bytes compete for the same cache sets."""
FRAMES = MESSAGES_IN * 128
CHAIN_MAX = 64
"""Most packets coalesced into one superpacket."""
CONTROL_WORDS = 8
ANSWER_BYTES = VNET_BYTES + 1280


class Outbound(NamedTuple):
    """One batch from the TUN: packets, the segments made of them, the messages that carry those."""

    data: Bytes  # [OUT_BYTES] the packets as read, HEADROOM before each
    # One element per packet.
    start: Longs  # offset of the IP header in data
    length: Longs  # bytes of the IP packet
    gso_type: Longs
    gso_size: Longs
    csum_start: Longs  # NEEDS_CSUM: where the sum starts, from the IP header; -1: no such flag
    csum_offset: Longs
    kind: Longs  # wire.ip.L4_*
    transport: Longs  # offset of the transport header from the IP header
    flow: Longs  # 31-bit flow hash
    adjacency: Longs
    reason: Longs  # counters.Drop
    whole: Longs  # 1: leaves whole, by the tunnel-GSO path
    # One element per segment: a VXLAN datagram in the making.
    headers: Bytes  # [SEGMENTS, HEADER_ROW_BYTES] headers of superpackets' segments
    head_address: Longs  # its first part (headers, or a whole packet)
    head_bytes: Longs
    body_address: Longs  # its second part: payload within a superpacket
    body_bytes: Longs  # 0: there is no second part
    segment_packet: Longs  # which packet it comes from
    segment_fresh: Longs  # 1: must not join a message that is already open
    segment_tos: Longs  # outer TOS / traffic class
    segment_message: Longs
    segment_iov: Longs  # index of its first iovec
    # One element per message: datagrams of equal size to one VTEP through one lane (socket).
    message_adjacency: Longs
    message_lane: Longs
    message_tos: Longs
    message_size: Longs  # bytes of each datagram but the last
    message_count: Longs
    message_bytes: Longs
    message_open: Longs
    message_iov: Longs
    message_row: Longs  # its place in msghdrs
    row_message: Longs
    lane_rows: Longs  # [lanes + 1] first row of each lane
    open_slots: Longs  # [OPEN_SLOTS]
    msghdrs: Longs  # [SEGMENTS, 8] struct mmsghdr as eight 64-bit words
    iovecs: Longs  # [2 * SEGMENTS, 2]
    control: Longs  # [SEGMENTS, CONTROL_WORDS]
    answer: Bytes  # [ANSWER_BYTES] an ICMP message to a pod
    limiter: Longs  # [4] how many of those are allowed, see icmp.take_token


class Inbound(NamedTuple):
    """One batch from a UDP socket: messages, the frames in them, the chains to deliver."""

    data: Bytes  # [MESSAGES_IN * MESSAGE_BYTES]
    names: Bytes  # [MESSAGES_IN, 32] sockaddr of the sender
    control: Longs  # [MESSAGES_IN, CONTROL_WORDS]
    iovecs: Longs  # [MESSAGES_IN, 2]
    msghdrs: Longs  # [MESSAGES_IN, 8]
    message_bytes: Longs
    message_gro: Longs  # UDP_GRO segment size, 0: one datagram
    message_tos: Longs  # outer TOS / traffic class
    # One element per frame: a VXLAN datagram.
    start: Longs  # offset in data: of the VXLAN header when cut, of the inner IP header after decap
    length: Longs
    message: Longs
    kind: Longs
    transport: Longs
    protocol: Longs
    flow: Longs
    adjacency: Longs
    reason: Longs
    next_frame: Longs  # the frame that follows in its chain, -1: none
    # One element per chain: what is written to the TUN in one call.
    chain_first: Longs
    chain_last: Longs
    chain_count: Longs
    chain_bytes: Longs  # length of the IP packet it has become
    chain_size: Longs  # payload bytes of each frame but the last
    chain_open: Longs
    open_slots: Longs
    vnet: Bytes  # [VNET_BYTES]
    write_iovecs: Longs  # [CHAIN_MAX + 2, 2]


def allocate_outbound(lanes: int) -> Outbound:
    """The outbound memory of one worker with this many sockets to send from."""
    columns: dict[str, Bytes | Longs] = {
        name: np.zeros(PACKETS, np.int64)
        for name in Outbound._fields[1 : Outbound._fields.index("headers")]
    }
    columns |= {
        name: np.zeros(SEGMENTS, np.int64)
        for name in Outbound._fields[Outbound._fields.index("head_address") :]
    }
    columns |= {
        "data": np.zeros(OUT_BYTES, np.uint8),
        "headers": np.zeros((SEGMENTS, HEADER_ROW_BYTES), np.uint8),
        "lane_rows": np.zeros(lanes + 1, np.int64),
        "open_slots": np.zeros(OPEN_SLOTS, np.int64),
        "msghdrs": np.zeros((SEGMENTS, 8), np.int64),
        "iovecs": np.zeros((2 * SEGMENTS, 2), np.int64),
        "control": np.zeros((SEGMENTS, CONTROL_WORDS), np.int64),
        "answer": np.zeros(ANSWER_BYTES, np.uint8),
        "limiter": np.zeros(4, np.int64),
    }
    return Outbound._make(columns[name] for name in Outbound._fields)


def allocate_inbound() -> Inbound:
    """The inbound memory of one worker."""
    columns: dict[str, Bytes | Longs] = {
        name: np.zeros(FRAMES, np.int64)
        for name in Inbound._fields[Inbound._fields.index("start") :]
    }
    columns |= {
        "data": np.zeros(MESSAGES_IN * MESSAGE_BYTES, np.uint8),
        "names": np.zeros((MESSAGES_IN, 32), np.uint8),
        "control": np.zeros((MESSAGES_IN, CONTROL_WORDS), np.int64),
        "iovecs": np.zeros((MESSAGES_IN, 2), np.int64),
        "msghdrs": np.zeros((MESSAGES_IN, 8), np.int64),
        "message_bytes": np.zeros(MESSAGES_IN, np.int64),
        "message_gro": np.zeros(MESSAGES_IN, np.int64),
        "message_tos": np.zeros(MESSAGES_IN, np.int64),
        "open_slots": np.zeros(OPEN_SLOTS, np.int64),
        "vnet": np.zeros(VNET_BYTES, np.uint8),
        "write_iovecs": np.zeros((CHAIN_MAX + 2, 2), np.int64),
    }
    return Inbound._make(columns[name] for name in Inbound._fields)
