"""The tunnel-GSO path: a TCP superpacket leaves whole, and the NIC cuts it (Linux 6.17).

    [vnet header][outer Ethernet][outer IP][UDP][VXLAN][inner Ethernet][the superpacket as read]

is written once to a TAP device; the kernel routes it out of the underlay's interface, which
segments it and fills in both checksums.  We neither split nor sum nor copy a second time.
It pays where the interface can (`tx-udp_tnl-segmentation`); elsewhere the UDP path is faster.

The TAP needs forwarding and accept_local on, rp_filter off or loose: whoever owns the host's
network sets that (control), and then has the path probed, because a firewall may be in the way.

The virtio header with its tunnel fields: include/uapi/linux/virtio_net.h,
struct virtio_net_hdr_v1_hash_tunnel.
"""

import contextlib
import fcntl
import select
import socket
import struct
import time
from collections.abc import Sequence

import numpy as np
import pytun

from forwarder import libc
from forwarder.arrays import Bytes, Int, Longs
from forwarder.batch import HEADROOM, Outbound
from forwarder.counters import Drop, Total
from forwarder.fib.layout import (
    SOCKADDR_AT,
    SOCKADDR_IN6_ADDRESS_AT,
    SOCKADDR_IN_ADDRESS_AT,
    FibView,
)
from forwarder.fib.lookup import AF_INET6
from forwarder.fib.routes import IPAddress
from forwarder.jit import kernel, step
from forwarder.tun import CSUM_AND_TSO, TUNSETOFFLOAD
from forwarder.tunnel import Tunnel
from forwarder.wire.checksum import pseudo_sum, set_ipv4_checksum
from forwarder.wire.ip import (
    IPV4,
    IPV4_BYTES,
    IPV4_DESTINATION_AT,
    IPV4_ID_AT,
    IPV4_LENGTH_AT,
    IPV6,
    IPV6_BYTES,
    IPV6_DESTINATION_AT,
    IPV6_LENGTH_AT,
    L4_TCP,
    PROTOCOL_UDP,
    TCP_CHECKSUM_AT,
    TCP_DATA_OFFSET_AT,
    UDP_BYTES,
    UDP_CHECKSUM_AT,
    UDP_LENGTH_AT,
    store16,
)
from forwarder.wire.virtio_net import (
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    NEEDS_CSUM,
)
from forwarder.wire.vxlan import ENCAP_BYTES, ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6

TUNSETVNETHDRSZ = 0x400454D8
TUN_F_UDP_TUNNEL_GSO = 0x80
TUN_F_UDP_TUNNEL_GSO_CSUM = 0x100

VNET_TUNNEL = np.dtype(
    [
        ("flags", "u1"),
        ("gso_type", "u1"),
        ("hdr_len", "<u2"),
        ("gso_size", "<u2"),
        ("csum_start", "<u2"),
        ("csum_offset", "<u2"),
        ("num_buffers", "<u2"),
        ("hash_value", "<u4"),
        ("hash_report", "<u2"),
        ("padding", "<u2"),
        ("outer_transport_offset", "<u2"),
        ("inner_network_offset", "<u2"),
    ]
)
assert VNET_TUNNEL.itemsize == 24
FLAG_TUNNEL_CSUM = 8
GSO_UDP_TUNNEL_IPV4 = 0x20
GSO_UDP_TUNNEL_IPV6 = 0x40

ETHERNET_AT = VNET_TUNNEL.itemsize
OUTER_IP_AT = ETHERNET_AT + ETHERNET.itemsize
TEMPLATE_BYTES = OUTER_IP_AT + IPV6_BYTES + UDP_BYTES
assert TEMPLATE_BYTES + ENCAP_BYTES <= HEADROOM
OUTER_LENGTH_MAX = 65535
TTL_BEFORE_FORWARDING = 65
"""The kernel forwards the packet once on this very host: it leaves with 64."""
SOURCE_MAC = bytes.fromhex("020000000001")
"""Of the frames written to the TAP; nothing ever answers to it."""


def open_tap(name: str, queues: int) -> list[pytun.TunTapDevice] | None:
    """A multiqueue TAP that takes tunnel superpackets, or None where the kernel knows none."""
    flags = pytun.IFF_TAP | pytun.IFF_NO_PI | pytun.IFF_MULTI_QUEUE | pytun.IFF_VNET_HDR
    offloads = CSUM_AND_TSO | TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM
    opened: list[pytun.TunTapDevice] = []
    try:
        for index in range(queues):
            exclusive = pytun.IFF_TUN_EXCL if index == 0 else 0
            opened.append(pytun.TunTapDevice(name=name, flags=flags | exclusive))
            size = struct.pack("i", VNET_TUNNEL.itemsize)
            fcntl.ioctl(opened[-1].fileno(), TUNSETVNETHDRSZ, size)
            fcntl.ioctl(opened[-1].fileno(), TUNSETOFFLOAD, offloads)
    except (OSError, pytun.Error):
        for queue in opened:
            queue.close()
        return None
    return opened


def make_templates(tap_mac: bytes, addresses: Sequence[IPAddress]) -> Bytes:
    """The headers that do not vary, uint8[2, TEMPLATE_BYTES]: row 0 for IPv4, row 1 for IPv6.

    A family without an address of ours has a row of zeros, which no packet may use.
    """
    templates = np.zeros((2, TEMPLATE_BYTES), np.uint8)
    for address in addresses:
        ipv6 = address.version == 6
        ip_bytes = IPV6_BYTES if ipv6 else IPV4_BYTES
        vnet = np.zeros((), VNET_TUNNEL)
        vnet["flags"] = NEEDS_CSUM | FLAG_TUNNEL_CSUM
        vnet["csum_offset"] = TCP_CHECKSUM_AT
        outer_transport = ETHERNET.itemsize + ip_bytes
        vnet["outer_transport_offset"] = outer_transport
        vnet["inner_network_offset"] = outer_transport + UDP_BYTES + ENCAP_BYTES
        ethertype = ETHERTYPE_IPV6 if ipv6 else ETHERTYPE_IPV4
        ethernet = tap_mac + SOURCE_MAC + ethertype.to_bytes(2, "big")
        template = vnet.tobytes() + ethernet + _outer_ip_template(address)
        templates[int(ipv6), : len(template)] = np.frombuffer(template, np.uint8)
    return templates


def _outer_ip_template(address: IPAddress) -> bytes:
    source = tuple(address.packed)
    if address.version == 4:
        ipv4 = np.zeros((), IPV4)
        ipv4["version_ihl"] = 0x45
        ipv4["ttl"] = TTL_BEFORE_FORWARDING
        ipv4["protocol"] = PROTOCOL_UDP
        ipv4["source"] = source
        return ipv4.tobytes()
    ipv6 = np.zeros((), IPV6)
    ipv6["version_class_flow"] = 6 << 28
    ipv6["next_header"] = PROTOCOL_UDP
    ipv6["hop_limit"] = TTL_BEFORE_FORWARDING
    ipv6["source"] = source
    return ipv6.tobytes()


@step
def takes(tunnel: Tunnel, batch: Outbound, packet: Int, fib: FibView) -> bool:
    """Whether this packet goes out whole: a TCP superpacket that fits an outer IP packet."""
    ipv6 = fib.adjacencies[batch.adjacency[packet], SOCKADDR_AT] == AF_INET6
    if tunnel.tunnel_gso[1 if ipv6 else 0] == 0:
        return False
    gso_type = batch.gso_type[packet] & ~GSO_ECN
    if gso_type != GSO_TCPV4 and gso_type != GSO_TCPV6:
        return False
    if batch.kind[packet] != L4_TCP or batch.csum_start[packet] != batch.transport[packet]:
        return False
    outer = (IPV6_BYTES if ipv6 else IPV4_BYTES) + UDP_BYTES + ENCAP_BYTES
    return outer + batch.length[packet] <= OUTER_LENGTH_MAX


@step
def write_headers(
    tunnel: Tunnel, batch: Outbound, packet: Int, rewrite: Bytes, tos: Int, lane: Int, ident: Int
) -> Int:
    """Writes all outer headers before a packet, its 22 VXLAN and Ethernet bytes already there.

    Returns the offset in batch.data at which the write to the TAP begins.
    """
    data = batch.data
    start, length = batch.start[packet], batch.length[packet]
    ipv6 = rewrite[SOCKADDR_AT] == AF_INET6
    ip_bytes = IPV6_BYTES if ipv6 else IPV4_BYTES
    udp = start - ENCAP_BYTES - UDP_BYTES
    outer = udp - ip_bytes
    first = outer - OUTER_IP_AT
    template = tunnel.templates[1 if ipv6 else 0]
    for k in range(OUTER_IP_AT + ip_bytes):
        data[first + k] = template[k]
    udp_bytes = UDP_BYTES + ENCAP_BYTES + length
    if ipv6:
        store16(data, outer + IPV6_LENGTH_AT, udp_bytes)
        data[outer] = 0x60 | tos >> 4
        data[outer + 1] = (tos << 4) & 0xF0
        for k in range(16):
            at = SOCKADDR_AT + SOCKADDR_IN6_ADDRESS_AT + k
            data[outer + IPV6_DESTINATION_AT + k] = rewrite[at]
    else:
        store16(data, outer + IPV4_LENGTH_AT, IPV4_BYTES + udp_bytes)
        store16(data, outer + IPV4_ID_AT, ident & 0xFFFF)
        data[outer + 1] = tos
        for k in range(4):
            at = SOCKADDR_AT + SOCKADDR_IN_ADDRESS_AT + k
            data[outer + IPV4_DESTINATION_AT + k] = rewrite[at]
        set_ipv4_checksum(data, outer, IPV4_BYTES)
    store16(data, udp, tunnel.lane_ports[lane])
    data[udp + 2] = rewrite[SOCKADDR_AT + 2]
    data[udp + 3] = rewrite[SOCKADDR_AT + 3]
    store16(data, udp + UDP_LENGTH_AT, udp_bytes)
    # The sum of the pseudo-header: each segment's checksum is made from it.
    store16(data, udp + UDP_CHECKSUM_AT, pseudo_sum(data, outer, PROTOCOL_UDP, udp_bytes))
    tcp = start + batch.transport[packet]
    csum_start = tcp - (first + ETHERNET_AT)
    gso_tunnel = GSO_UDP_TUNNEL_IPV6 if ipv6 else GSO_UDP_TUNNEL_IPV4
    data[first + 1] = batch.gso_type[packet] | gso_tunnel
    _store_native16(data, first + 2, csum_start + (data[tcp + TCP_DATA_OFFSET_AT] >> 4) * 4)
    _store_native16(data, first + 4, batch.gso_size[packet])
    _store_native16(data, first + 6, csum_start)
    return first


@kernel
def _store_native16(data: Bytes, at: Int, value: Int) -> None:
    data[at] = value & 0xFF
    data[at + 1] = (value >> 8) & 0xFF


@step
def send(
    tunnel: Tunnel, batch: Outbound, packet: Int, rewrite: Bytes, tos: Int, lane: Int, row: Longs
) -> None:
    """Writes one superpacket to the TAP.  If that is refused, the path is given up for good."""
    size = batch.gso_size[packet]
    first = write_headers(tunnel, batch, packet, rewrite, tos, lane, row[Total.OUT_SEGMENTS])
    end = batch.start[packet] + batch.length[packet]
    address = np.int64(batch.data.ctypes.data) + first
    while np.int64(libc.write(tunnel.tap_fd, address, end - first)) < 0:
        error = libc.errno()
        if error == libc.EINTR:
            continue
        if error != libc.ENOBUFS and error != libc.ENOMEM:
            tunnel.tunnel_gso[1 if rewrite[SOCKADDR_AT] == AF_INET6 else 0] = 0
        batch.reason[packet] = Drop.SEND_FAILED
        return
    row[Total.OUT_SEGMENTS] += -(-batch.length[packet] // size)
    row[Total.OUT_WHOLE] += 1


# ---- the probe ----------------------------------------------------------------------------------

PROBE_PORT = 9
"""Discard (RFC 863): whoever receives the probe has no use for it."""
PROBE_WAIT_S = 0.3
ETH_P_ALL = 3
_PROBE_SEGMENT_BYTES = 64


def probe(
    queue: pytun.TunTapDevice, templates: Bytes, interface: str, destination: IPAddress
) -> bool:
    """Whether a superpacket written to the TAP leaves by `interface`.

    Sends two small datagrams' worth to the discard port of `destination` and watches the
    interface: a firewall, a missing route or a sysctl may keep it from leaving.
    """
    mark = time.monotonic_ns().to_bytes(8, "big")
    frame = _probe_frame(templates, destination, mark)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as watch:
        watch.bind((interface, ETH_P_ALL))
        try:
            queue.write(frame)
        except (OSError, pytun.Error):
            return False
        deadline = time.monotonic() + PROBE_WAIT_S
        while (left := deadline - time.monotonic()) > 0:
            if select.select([watch], [], [], left)[0] and mark in watch.recv(65535):
                return True
    return False


def _probe_frame(templates: Bytes, destination: IPAddress, mark: bytes) -> bytes:
    """A tunnel superpacket of two TCP segments that both carry `mark`."""
    ipv6 = destination.version == 6
    segment = mark.ljust(_PROBE_SEGMENT_BYTES, b"\0")
    tcp = struct.pack("!HHIIBBHHH", PROBE_PORT, PROBE_PORT, 0, 0, 5 << 4, 0x10, 0, 0, 0)
    inner_bytes = IPV4_BYTES + len(tcp) + 2 * len(segment)
    inner = bytearray(
        struct.pack("!BBHHHBBH8x", 0x45, 0, inner_bytes, 0, 0, 64, 6, 0) + tcp + segment + segment
    )
    fields = np.frombuffer(inner, np.uint8)
    set_ipv4_checksum(fields, 0, IPV4_BYTES)
    partial = pseudo_sum(fields, 0, 6, inner_bytes - IPV4_BYTES)
    store16(fields, IPV4_BYTES + TCP_CHECKSUM_AT, partial)
    ip_bytes = IPV6_BYTES if ipv6 else IPV4_BYTES
    encap = bytes([8, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0]) + bytes(12) + b"\x08\x00"
    udp_bytes = UDP_BYTES + len(encap) + inner_bytes
    head = bytearray(templates[int(ipv6), : OUTER_IP_AT + ip_bytes].tobytes())
    udp = struct.pack("!HHHH", PROBE_PORT, PROBE_PORT, udp_bytes, 0)
    frame = np.frombuffer(bytearray(bytes(head) + udp + encap + bytes(inner)), np.uint8)
    address_at = OUTER_IP_AT + (IPV6_DESTINATION_AT if ipv6 else IPV4_DESTINATION_AT)
    packed = np.frombuffer(destination.packed, np.uint8)
    frame[address_at : address_at + len(packed)] = packed
    if ipv6:
        store16(frame, OUTER_IP_AT + IPV6_LENGTH_AT, udp_bytes)
    else:
        store16(frame, OUTER_IP_AT + IPV4_LENGTH_AT, IPV4_BYTES + udp_bytes)
        set_ipv4_checksum(frame, OUTER_IP_AT, IPV4_BYTES)
    pseudo = pseudo_sum(frame, OUTER_IP_AT, PROTOCOL_UDP, udp_bytes)
    store16(frame, OUTER_IP_AT + ip_bytes + UDP_CHECKSUM_AT, pseudo)
    csum_start = ETHERNET.itemsize + ip_bytes + UDP_BYTES + ENCAP_BYTES + IPV4_BYTES
    frame[1] = GSO_TCPV4 | (GSO_UDP_TUNNEL_IPV6 if ipv6 else GSO_UDP_TUNNEL_IPV4)
    _store_native16(frame, 2, csum_start + len(tcp))
    _store_native16(frame, 4, _PROBE_SEGMENT_BYTES)
    _store_native16(frame, 6, csum_start)
    return frame.tobytes()


def close(queues: Sequence[pytun.TunTapDevice]) -> None:
    """Closes every queue; the device goes with the last."""
    for queue in queues:
        with contextlib.suppress(OSError, pytun.Error):
            queue.close()
