"""The compiled stages of both directions, run on bytes and read back as bytes: no sockets, no TUN.

What the kernel would be handed (msghdrs, iovecs, writev's parts) is followed by address, as the
kernel does it.
"""

import ctypes
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple

import numpy as np

from forwarder.batch import HEADROOM, MESSAGE_BYTES, OUT_BYTES, Inbound, Outbound
from forwarder.coalesce import coalesce
from forwarder.counters import Drop
from forwarder.fib.layout import Capacity, FibView
from forwarder.fib.routes import IPAddress
from forwarder.fib.writer import pack_sockaddr
from forwarder.inbound import cut, decapsulate
from forwarder.outbound import choose_whole, encapsulate, lay_out, parse, plan, route
from forwarder.superpacket import write_vnet_header
from forwarder.tunnel import Tunnel
from forwarder.tunnel_gso import make_templates
from forwarder.wire.virtio_net import VNET, VNET_BYTES
from tests.forwarder.fibs import OWN_MAC, VNI, to_array

LANES = 4
OWN_ADDRESSES = ("192.0.2.1", "2001:db8::a")
TAP_MAC = bytes.fromhex("02000000dddd")
MTU = 1450
UDP_SEGMENT = (17, 103)
IP_TOS = (0, 1)
IPV6_TCLASS = (41, 67)
DROPS = {int(drop): drop for drop in Drop}


def make_tunnel(
    *,
    mac: bytes = OWN_MAC,
    mtu_bytes: int = MTU,
    udp_gso: bool = True,
    families: Sequence[int] = (4, 6),
    path_mtu: Mapping[int, int] | None = None,
    dscp: int = 0,
) -> Tunnel:
    """A tunnel whose descriptors are none: no stage that thinks may use them.

    `path_mtu`: adjacency row -> largest inner packet.
    """
    limits = np.zeros(Capacity().adjacencies, np.uint32)
    for row, limit in (path_mtu or {}).items():
        limits[row] = limit
    limits.flags.writeable = False  # as the workers' map is
    own_ipv4, own_ipv6 = (ip_address(text) for text in OWN_ADDRESSES)
    lanes = [1000 + lane if family in families else -1 for family in (4, 6) for lane in range(4)]
    return Tunnel(
        tun_fd=-1,
        receivers=np.full(2, -1, np.int64),
        sockets=np.array(lanes, np.int64),
        wake_fd=-1,
        vni=VNI,
        mac=to_array(mac),
        mtu_bytes=mtu_bytes,
        dscp=dscp,
        path_mtu=limits,
        coalesce_tcp=True,
        coalesce_udp=True,
        udp_gso=np.array([udp_gso], np.int64),
        tap_fd=-1,
        templates=make_templates(TAP_MAC, (own_ipv4, own_ipv6)),
        lane_ports=np.arange(2 * LANES) + 40000,
        tunnel_gso=np.zeros(2, np.int64),
    )


# ---- outbound -----------------------------------------------------------------------------------


class FromTun(NamedTuple):
    """A packet as the TUN hands it over, its vnet header in words."""

    packet: bytes
    gso_type: int = 0
    gso_size: int = 0
    csum_start: int = -1
    csum_offset: int = 0


@dataclass(frozen=True)
class Sent:
    """One message of sendmmsg, as the kernel reads it."""

    lane: int
    sockaddr: bytes
    tos: int
    datagrams: tuple[bytes, ...]
    flush: int
    """Which call of the sending stage it belongs to."""


def run_outbound(
    batch: Outbound, tunnel: Tunnel, fib: FibView, packets: Sequence[FromTun]
) -> tuple[list[Sent], list[Drop]]:
    """The messages in the order they are sent, and each packet's drop reason.

    The device's MTU limits nothing here; the tunnel's path MTUs do.
    """
    put_packets(batch, packets)
    parse(batch, len(packets))
    route(batch, len(packets), fib, tunnel._replace(mtu_bytes=65535))
    sent: list[Sent] = []
    done, flush = 0, 0
    while done < len(packets):
        end = choose_whole(tunnel, batch, done, len(packets), fib)
        after, segments = encapsulate(tunnel, batch, done, end, fib)
        assert after > done
        messages = plan(batch, segments, fib, tunnel)
        lay_out(batch, segments, messages, fib, len(tunnel.sockets), tunnel.udp_gso)
        sent += read_messages(batch, len(tunnel.sockets), int(messages), flush)
        done, flush = int(after), flush + 1
    return sent, [DROPS[reason] for reason in batch.reason[: len(packets)].tolist()]


def put_packets(batch: Outbound, packets: Sequence[FromTun]) -> None:
    """Fills a batch as tun.receive does."""
    at = 0
    for i, packet in enumerate(packets):
        start = at + HEADROOM
        assert start + len(packet.packet) <= OUT_BYTES
        batch.data[start : start + len(packet.packet)] = np.frombuffer(packet.packet, np.uint8)
        batch.start[i], batch.length[i] = start, len(packet.packet)
        batch.gso_type[i], batch.gso_size[i] = packet.gso_type, packet.gso_size
        batch.csum_start[i], batch.csum_offset[i] = packet.csum_start, packet.csum_offset
        batch.reason[i] = Drop.NONE
        at = (start + len(packet.packet) + 63) & ~63


def read_messages(batch: Outbound, lanes: int, messages: int, flush: int) -> list[Sent]:
    """Follows the msghdrs, lane by lane, as udp.send and the kernel do."""
    assert batch.lane_rows[lanes] == messages
    sent = []
    for lane in range(lanes):
        for row in range(int(batch.lane_rows[lane]), int(batch.lane_rows[lane + 1])):
            name, name_bytes, iov, iov_count, control, control_bytes, _, _ = batch.msghdrs[
                row
            ].tolist()
            options = read_control(ctypes.string_at(control, control_bytes))
            payload = read_iovecs(iov, iov_count)
            size = options.get(UDP_SEGMENT, len(payload))
            datagrams = tuple(payload[at : at + size] for at in range(0, len(payload), size))
            tos = options.get(IP_TOS, options.get(IPV6_TCLASS, 0))
            sockaddr = ctypes.string_at(name, name_bytes)
            sent.append(Sent(lane, sockaddr, tos, datagrams, flush))
    return sent


def read_iovecs(address: int, count: int) -> bytes:
    iovecs = struct.iter_unpack("=QQ", ctypes.string_at(address, 16 * count))
    return b"".join(ctypes.string_at(base, size) for base, size in iovecs)


def read_control(control: bytes) -> dict[tuple[int, int], int]:
    """Control messages: (level, type) -> the number in it."""
    options = {}
    while control:
        length, level, kind = struct.unpack_from("=Qii", control)
        options[level, kind] = int.from_bytes(control[16:length], "little")
        control = control[(length + 7) & ~7 :]
    return options


# ---- inbound ------------------------------------------------------------------------------------


class Arrived(NamedTuple):
    """A message as recvmmsg with UDP_GRO hands it over."""

    payload: bytes
    sender: IPAddress
    gro_bytes: int = 0
    tos: int = 0


@dataclass(frozen=True)
class Written:
    """One writev to the TUN."""

    vnet: dict[str, int]
    packet: bytes
    frames: tuple[int, ...]
    """The frames it carries."""


@dataclass(frozen=True)
class Delivery:
    """What became of the messages of one batch."""

    written: list[Written]
    reasons: list[Drop]
    """One for each frame."""
    packets: dict[int, bytes]
    """The inner packet of each frame that was not dropped, before coalescing."""
    flows: dict[int, int]


def run_inbound(
    batch: Inbound, tunnel: Tunnel, fib: FibView, messages: Sequence[Arrived]
) -> Delivery:
    put_messages(batch, messages)
    frames = int(cut(batch, len(messages)))
    decapsulate(tunnel, batch, frames, fib)
    reasons = [DROPS[reason] for reason in batch.reason[:frames].tolist()]
    kept = [f for f in range(frames) if reasons[f] == Drop.NONE]
    packets = {f: frame_bytes(batch, f) for f in kept}
    chains = int(coalesce(batch, frames, tunnel))
    written = [read_chain(batch, chain, tunnel.mtu_bytes) for chain in range(chains)]
    return Delivery(written, reasons, packets, {f: int(batch.flow[f]) for f in kept})


def put_messages(batch: Inbound, messages: Sequence[Arrived]) -> None:
    """Fills a batch as udp.receive does."""
    for m, message in enumerate(messages):
        at = m * MESSAGE_BYTES
        batch.data[at : at + len(message.payload)] = np.frombuffer(message.payload, np.uint8)
        batch.message_bytes[m] = len(message.payload)
        batch.message_gro[m], batch.message_tos[m] = message.gro_bytes, message.tos
        sockaddr = pack_sockaddr(message.sender, 50000).ljust(32, b"\0")
        batch.names[m] = np.frombuffer(sockaddr, np.uint8)


def frame_bytes(batch: Inbound, frame: int) -> bytes:
    start, length = int(batch.start[frame]), int(batch.length[frame])
    return batch.data[start : start + length].tobytes()


def read_chain(batch: Inbound, chain: int, mtu_bytes: int) -> Written:
    """What inbound.deliver writes for a chain."""
    header_bytes = int(write_vnet_header(batch, chain, mtu_bytes))
    frames = [int(batch.chain_first[chain])]
    while (following := int(batch.next_frame[frames[-1]])) >= 0:
        frames.append(following)
    rest = (frame_bytes(batch, f)[header_bytes:] for f in frames[1:])
    vnet: Any = batch.vnet[:VNET_BYTES].view(VNET)[0]
    return Written(
        {name: int(vnet[name]) for name in VNET.names or ()},
        frame_bytes(batch, frames[0]) + b"".join(rest),
        tuple(frames),
    )
