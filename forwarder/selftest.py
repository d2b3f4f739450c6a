"""Tests of the offloads at the start: some kernels have one that loses or spoils packets.

    packet socket ──> TUN with offloads ──> read      tun_tso, tun_uso
    packet socket <── TUN with offloads <── write     coalesce_tcp, coalesce_udp
    UDP socket ─────> TUN without any ────> read      udp_gso: cut by the kernel, as for a plain NIC
    UDP socket ─────> loopback ───────────> socket    udp_gro

All of it happens in a child process with a network namespace of its own, which go together:
nothing is sent on the underlay, nothing is left behind.  Each superpacket ends in a segment of
one byte, because that is where kernels went wrong: 6.6.44 and its relatives refuse to take such a
superpacket from a TUN (EINVAL), 6.17 cuts such messages wrongly.
"""

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

import msgpack
import pytun

from forwarder import tun
from forwarder.udp import SOL_UDP, UDP_GRO, UDP_SEGMENT
from forwarder.wire.ip import PROTOCOL_TCP, PROTOCOL_UDP, TCP_CHECKSUM_AT, UDP_CHECKSUM_AT
from forwarder.wire.virtio_net import (
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    VNET_BYTES,
)

TIMEOUT_S = 10.0
"""For all tests together; they take some 50 ms."""
PACKET_WAIT_S = 1.0
"""A packet that has not arrived by then is lost; none of them waits for anybody."""
SEGMENT_BYTES = 1000
PAYLOAD = bytes(i * 7 & 0xFF for i in range(3 * SEGMENT_BYTES + 1))
PORT = 9

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 3, 0x0800, 0x86DD
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
FREEBIND = {4: (socket.IPPROTO_IP, 15), 6: (socket.IPPROTO_IPV6, 78)}
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR = 0x8913, 0x8914, 0x8916
IFF_UP = 1

NEAR = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
FAR = {4: ip_address("192.0.2.2"), 6: ip_address("2001:db8::2")}
STRANGERS = {4: ip_address("198.51.100.1"), 6: ip_address("2001:db8:1::1")}
"""In the superpackets, as both ends: the kernel has no answer for them."""
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


class Fault(Exception):
    """An offload does not do what it should; the message says what happened instead."""


@dataclass
class Findings:
    """What the tests found out."""

    faults: dict[str, str] = field(default_factory=dict)
    """Offload -> what went wrong."""
    untested: str | None = None
    """Why nothing could be tested."""


# ---- superpackets -------------------------------------------------------------------------------


def superpacket(version: int, protocol: int) -> tuple[bytes, bytes]:
    """(virtio header, IP packet) with PAYLOAD, to be cut into SEGMENT_BYTES."""
    if protocol == PROTOCOL_TCP:
        transport = bytearray(struct.pack("!HHIIBBHHH", PORT, PORT, 1, 1, 5 << 4, 0x10, 999, 0, 0))
        field_at, gso_type = TCP_CHECKSUM_AT, GSO_TCPV4 if version == 4 else GSO_TCPV6
    else:
        transport = bytearray(struct.pack("!HHHH", PORT, PORT, 8 + len(PAYLOAD), 0))
        field_at, gso_type = UDP_CHECKSUM_AT, GSO_UDP_L4
    size = len(transport) + len(PAYLOAD)
    addresses = 2 * STRANGERS[version].packed
    pseudo = ones_sum(addresses + struct.pack("!II", protocol, size))
    struct.pack_into("!H", transport, field_at, pseudo)
    if version == 4:
        ip = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 1, 0x4000, 64, protocol, 0))
        ip += addresses
        struct.pack_into("!H", ip, 10, ~ones_sum(bytes(ip)) & 0xFFFF)
    else:
        ip = bytearray(struct.pack("!IHBB", 6 << 28, size, protocol, 64) + addresses)
    header_bytes = len(ip) + len(transport)
    vnet = struct.pack(
        "=BBHHHH", NEEDS_CSUM, gso_type, header_bytes, SEGMENT_BYTES, len(ip), field_at
    )
    return vnet, bytes(ip + transport) + PAYLOAD


def ones_sum(data: bytes) -> int:
    """The one's-complement sum (RFC 1071); nothing is compiled yet when this is needed."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    if len(data) & 1:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


# ---- the private network ------------------------------------------------------------------------


class PrivateNetwork:
    """Two TUN devices and loopback, in a namespace of their own.  Raises OSError."""

    def __init__(self) -> None:
        _enter_new_namespace()
        self.device = tun.open_device("offloads", 1)
        self.device.queues[0].up()
        self._sender = _packet_socket("offloads")
        self._receiver = _packet_socket("offloads")
        self._receiver.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        flags = pytun.IFF_TUN | pytun.IFF_NO_PI
        self._plain = pytun.TunTapDevice(name="plain", flags=flags)
        self._plain.addr, self._plain.dstaddr = str(NEAR[4]), str(FAR[4])
        self._plain.up()
        os.set_blocking(self._plain.fileno(), False)
        _set_up("lo")
        self.versions = [4, 6] if _add_ipv6_address("plain", NEAR[6].packed) else [4]

    def transmit(self, superpacket: bytes) -> None:
        """Has the kernel send it (virtio header first) by the device with offloads."""
        protocol = ETH_P_IP if superpacket[VNET_BYTES] >> 4 == 4 else ETH_P_IPV6
        self._sender.sendto(superpacket, ("offloads", protocol))

    def takes(self, protocol: int) -> bool:
        """Whether that device takes superpackets of TCP or UDP."""
        return self.device.tso if protocol == PROTOCOL_TCP else self.device.uso

    def read(self) -> bytes:
        """What was sent by that device: virtio header, packet."""
        return _read_ours(self.device.queues[0].fileno(), VNET_BYTES)

    def write(self, superpacket: bytes) -> None:
        """What a worker delivers: virtio header, packet."""
        os.write(self.device.queues[0].fileno(), superpacket)

    def received(self) -> bytes:
        """What the kernel took it for."""
        return _read_ours(self._receiver.fileno(), VNET_BYTES)

    def send_segments(self, version: int) -> None:
        """Sends PAYLOAD in one UDP_SEGMENT message by the device without offloads."""
        with _udp_socket(version) as sender:
            sender.setsockopt(SOL_UDP, UDP_SEGMENT, SEGMENT_BYTES)
            # A new IPv6 address is tentative for a moment, and would not be chosen by itself.
            sender.setsockopt(*FREEBIND[version], 1)
            sender.bind((str(NEAR[version]), 0))
            sender.sendto(PAYLOAD, (str(FAR[version]), PORT))

    def read_segment(self) -> bytes:
        """The next IP packet sent by that device."""
        return _read_ours(self._plain.fileno(), 0)

    def send_to_self(self, version: int) -> tuple[bytes, int]:
        """Sends PAYLOAD over loopback; the first message with UDP_GRO: payload, segment size."""
        with _udp_socket(version) as sender, _udp_socket(version) as receiver:
            receiver.bind((LOOPBACK[version], 0))
            receiver.setsockopt(SOL_UDP, UDP_GRO, 1)
            sender.setsockopt(SOL_UDP, UDP_SEGMENT, SEGMENT_BYTES)
            sender.sendto(PAYLOAD, receiver.getsockname()[:2])
            receiver.settimeout(PACKET_WAIT_S)
            payload, ancillary, _, _ = receiver.recvmsg(65535, socket.CMSG_SPACE(4))
        sizes = [data for level, kind, data in ancillary if (level, kind) == (SOL_UDP, UDP_GRO)]
        return payload, int.from_bytes(sizes[0][:4], "little") if sizes else 0


def _enter_new_namespace() -> None:
    """Without the privilege for it, within a user namespace, where that is allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"no private network namespace: {os.strerror(number)}")


def _packet_socket(device: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    opened.bind((device, ETH_P_ALL))
    opened.setblocking(False)
    return opened


def _udp_socket(version: int) -> socket.socket:
    return socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)


def _set_up(device: str) -> None:
    with _udp_socket(4) as control:
        request = struct.pack("16sH14x", device.encode(), 0)
        (flags,) = struct.unpack_from("=H", fcntl.ioctl(control, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", device.encode(), flags | IFF_UP))


def _add_ipv6_address(device: str, packed: bytes) -> bool:
    """False where IPv6 is switched off."""
    try:
        with _udp_socket(6) as control:
            index = socket.if_nametoindex(device)
            fcntl.ioctl(control, SIOCSIFADDR, struct.pack("=16sIi", packed, 64, index))
    except OSError:
        return False
    return True


def _read_ours(fd: int, vnet_bytes: int) -> bytes:
    """The next packet that a test has sent; the kernel has things of its own to say."""
    ours = {address.packed for address in (*NEAR.values(), *STRANGERS.values())}
    deadline = time.monotonic() + PACKET_WAIT_S
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        data = os.read(fd, 1 << 16)
        packet = data[vnet_bytes:]
        source = packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]
        if source in ours:
            return data
    raise Fault("what was sent did not arrive")


# ---- the tests ----------------------------------------------------------------------------------


def check_device_reads(network: PrivateNetwork, protocol: int) -> None:
    """A superpacket sent by the device is read from it whole, where the kernel knows of any."""
    if not network.takes(protocol):
        return
    for version in (4, 6):
        vnet, packet = superpacket(version, protocol)
        network.transmit(vnet + packet)
        _compare(version, network.read(), vnet, packet)


def check_device_writes(network: PrivateNetwork, protocol: int) -> None:
    """A superpacket written to the device is received from it whole."""
    for version in (4, 6):
        vnet, packet = superpacket(version, protocol)
        network.write(vnet + packet)
        _compare(version, network.received(), vnet, packet)


def _compare(version: int, found: bytes, vnet: bytes, packet: bytes) -> None:
    if found[VNET_BYTES:] != packet:
        raise Fault(f"an IPv{version} superpacket arrived changed")
    # Type and size: the rest is the kernel's to choose.
    if found[1:2] + found[4:6] != vnet[1:2] + vnet[4:6]:
        raise Fault(f"an IPv{version} superpacket arrived with another type or segment size")


def check_udp_gso(network: PrivateNetwork) -> None:
    """A message is cut where it should be, each datagram with its length and checksum."""
    for version in network.versions:
        network.send_segments(version)
        for at in range(0, len(PAYLOAD), SEGMENT_BYTES):
            payload = PAYLOAD[at : at + SEGMENT_BYTES]
            packet = network.read_segment()
            ip_bytes, address_bytes = (20, 4) if version == 4 else (40, 16)
            addresses = packet[ip_bytes - 2 * address_bytes : ip_bytes]
            datagram = packet[ip_bytes:]
            if datagram[8:] != payload or datagram[4:6] != len(datagram).to_bytes(2, "big"):
                raise Fault(f"an IPv{version} datagram left with the wrong length or contents")
            pseudo = addresses + struct.pack("!II", PROTOCOL_UDP, len(datagram))
            if ones_sum(pseudo + datagram) != 0xFFFF:
                raise Fault(f"an IPv{version} datagram left with a wrong checksum")


def check_udp_gro(network: PrivateNetwork) -> None:
    """A message of many datagrams arrives as it was sent, with the size of each."""
    for version in network.versions:
        if network.send_to_self(version) != (PAYLOAD, SEGMENT_BYTES):
            raise Fault(f"an IPv{version} message arrived changed")


TESTS: dict[str, Callable[[PrivateNetwork], None]] = {
    "tun_tso": lambda network: check_device_reads(network, PROTOCOL_TCP),
    "tun_uso": lambda network: check_device_reads(network, PROTOCOL_UDP),
    "coalesce_tcp": lambda network: check_device_writes(network, PROTOCOL_TCP),
    "coalesce_udp": lambda network: check_device_writes(network, PROTOCOL_UDP),
    "udp_gso": check_udp_gso,
    "udp_gro": check_udp_gro,
}


# ---- running them -------------------------------------------------------------------------------


def run(make_network: Callable[[], PrivateNetwork] = PrivateNetwork) -> Findings:
    """Runs all tests in a child process and says what they found."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, msgpack.packb(_test_all(make_network)))
        finally:
            os._exit(0)
    os.close(writer)
    try:
        done, _, _ = select.select([reader], [], [], TIMEOUT_S)
        report = os.read(reader, 1 << 16) if done else b""
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not report:
        return Findings(untested="the tests of the offloads did not end")
    faults, untested = msgpack.unpackb(report)
    return Findings(faults, untested)


def _test_all(make_network: Callable[[], PrivateNetwork]) -> tuple[dict[str, str], str | None]:
    """In the child."""
    try:
        network = make_network()
    except (OSError, tun.DeviceError, pytun.Error) as error:
        return {}, str(error)
    faults = {}
    for name, test in TESTS.items():
        try:
            test(network)
        except Fault as fault:
            faults[name] = str(fault)
        except OSError as error:
            faults[name] = f"the kernel refused it: {error.strerror}"
    return faults, None
