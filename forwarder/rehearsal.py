"""What would happen to a packet: the workers' own stages, run on one that is made up here.

For `loden lookup`: nothing is sent, and nothing is decided a second time in other words.
"""

from typing import NamedTuple

import numpy as np

from forwarder.batch import HEADROOM, allocate_inbound, allocate_outbound
from forwarder.counters import Drop
from forwarder.fib.layout import FibView
from forwarder.fib.routes import IPAddress
from forwarder.fib.writer import pack_sockaddr
from forwarder.inbound import cut, decapsulate
from forwarder.outbound import choose_whole, parse, route
from forwarder.path_mtu import mtu_towards
from forwarder.tunnel import Tunnel
from forwarder.wire.ip import (
    IPV4,
    IPV4_BYTES,
    IPV6,
    PROTOCOL_TCP,
    TCP,
    TCP_ACK,
    TCP_BYTES,
    TCP_CHECKSUM_AT,
)
from forwarder.wire.virtio_net import GSO_TCPV4, GSO_TCPV6
from forwarder.wire.vxlan import ETHERTYPE_IPV6, INNER_ETHERTYPE_AT, build_rewrite

_PAYLOAD_BYTES = 20_000
"""Of the superpacket: any number of segments would do."""
_SEGMENT_BYTES = 1000
_SENDER_MAC = bytes.fromhex("020000000002")
"""Of the made-up frame: any MAC that is not our own passes."""
_SENDER_PORT = 50_000
_REASONS = {int(drop): drop for drop in Drop}


class Outbound(NamedTuple):
    """What would become of a packet from a pod of this node."""

    reason: Drop
    mtu_bytes: int
    """The largest packet of its IP version that goes to its destination unfragmented."""
    whole: bool
    """Whether TCP superpackets leave whole, by the tunnel-GSO path."""


def send(tunnel: Tunnel, fib: FibView, destination: IPAddress) -> Outbound:
    """What would happen to TCP packets from a pod of ours to `destination`."""
    batch = allocate_outbound(len(tunnel.sockets))
    source = type(destination)(0)
    packet = _tcp_packet(source, destination, _PAYLOAD_BYTES)
    batch.data[HEADROOM : HEADROOM + len(packet)] = np.frombuffer(packet, np.uint8)
    transport = len(packet) - _PAYLOAD_BYTES - TCP_BYTES
    batch.start[0], batch.length[0] = HEADROOM, len(packet)
    batch.gso_type[0] = GSO_TCPV4 if destination.version == 4 else GSO_TCPV6
    batch.gso_size[0] = _SEGMENT_BYTES
    batch.csum_start[0], batch.csum_offset[0] = transport, TCP_CHECKSUM_AT
    parse(batch, np.int64(1))
    route(batch, np.int64(1), fib, tunnel)
    choose_whole(tunnel, batch, np.int64(0), np.int64(1), fib)
    mtu_bytes = mtu_towards(tunnel, batch.adjacency[0], np.int64(destination.version))
    return Outbound(_REASONS[int(batch.reason[0])], int(mtu_bytes), bool(batch.whole[0]))


def receive(
    tunnel: Tunnel, fib: FibView, source: IPAddress, destination: IPAddress, vtep: IPAddress
) -> Drop:
    """What would happen to a packet between two pods that arrives here, sent by `vtep`.

    Raises ValueError for pods of different IP versions.
    """
    if source.version != destination.version:
        raise ValueError(f"{source} and {destination}: allowed are two of one IP version")
    batch = allocate_inbound()
    packet = _tcp_packet(source, destination, 0)
    rewrite = bytearray(build_rewrite(tunnel.vni, tunnel.mac.tobytes(), _SENDER_MAC))
    if source.version == 6:
        rewrite[INNER_ETHERTYPE_AT:] = ETHERTYPE_IPV6.to_bytes(2, "big")
    datagram = np.frombuffer(rewrite + packet, np.uint8)
    batch.data[: len(datagram)] = datagram
    batch.message_bytes[0] = len(datagram)
    sockaddr = pack_sockaddr(vtep, _SENDER_PORT).ljust(batch.names.shape[1], b"\0")
    batch.names[0] = np.frombuffer(sockaddr, np.uint8)
    frames = cut(batch, np.int64(1))
    decapsulate(tunnel, batch, frames, fib)
    return _REASONS[int(batch.reason[0])]


def _tcp_packet(source: IPAddress, destination: IPAddress, payload_bytes: int) -> bytes:
    """Checksums are left out: no stage that is run here looks at them."""
    tcp = np.zeros((), TCP)
    tcp["data_offset"], tcp["flags"] = TCP_BYTES // 4 << 4, TCP_ACK
    length = TCP_BYTES + payload_bytes
    if source.version == 4:
        ip = np.zeros((), IPV4)
        ip["version_ihl"], ip["total_length"] = 0x45, IPV4_BYTES + length
        ip["protocol"] = PROTOCOL_TCP
    else:
        ip = np.zeros((), IPV6)
        ip["version_class_flow"], ip["payload_length"] = 6 << 28, length
        ip["next_header"] = PROTOCOL_TCP
    ip["source"], ip["destination"] = tuple(source.packed), tuple(destination.packed)
    return ip.tobytes() + tcp.tobytes() + bytes(payload_bytes)
