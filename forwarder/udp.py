"""The underlay's sockets: opening them, sending planned messages, receiving datagrams."""

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forwarder import libc
from forwarder.arrays import Int, Longs
from forwarder.batch import MESSAGE_BYTES, MESSAGES_IN, Inbound, Outbound
from forwarder.counters import Drop, Total
from forwarder.fib.layout import SOCKADDR_AT, SOCKADDR_LENGTH_AT, FibView
from forwarder.fib.lookup import AF_INET6
from forwarder.fib.routes import IPAddress
from forwarder.jit import kernel, step
from forwarder.tunnel import Tunnel

SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
IP_TOS = 1
IP_RECVTOS = 13
IPV6_TCLASS = 67
IPV6_RECVTCLASS = 66
IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
PMTUDISC_DONT = 0
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_ATTACH_FILTER = 26
SO_ATTACH_REUSEPORT_CBPF = 51

# Classic BPF (linux/bpf_common.h, linux/filter.h): opcodes, and where the CPU is loaded from.
BPF_LOAD_ABSOLUTE, BPF_JUMP_IF_EQUAL, BPF_RETURN = 0x20, 0x15, 0x06
SKF_AD_CPU = -0x1000 + 36
NO_SOCKET = 0xFFFFFFFF
"""An index that no REUSEPORT group has: the kernel goes by its hash then."""

BUFFER_BYTES = 8 << 20
GSO_SEGMENTS = 64
"""Most datagrams of one UDP_SEGMENT message (UDP_MAX_SEGMENTS before Linux 6.9)."""
TTL = 64

# Words of a struct mmsghdr seen as int64[8].
NAME, NAME_BYTES, IOV, IOV_COUNT, CONTROL, CONTROL_BYTES, FLAGS, MESSAGE_BYTES_AT = range(8)
# struct cmsghdr: 8 bytes length, 4 level, 4 type.
CMSG_HEADER_BYTES = 16
CMSG_SPACE_WORDS = 3
SEND_WAIT_MS = 2
"""How long a full send buffer is waited for before the message is dropped."""


class SocketError(Exception):
    """The underlay's sockets cannot be opened; the message says why and what to do."""


@dataclass
class WorkerSockets:
    """The sockets of one worker, by family: 0 IPv4, 1 IPv6; empty where a family is not in use."""

    receivers: list[socket.socket | None]
    lanes: list[list[socket.socket | None]]

    def close(self) -> None:
        for opened in (*self.receivers, *self.lanes[0], *self.lanes[1]):
            if opened is not None:
                opened.close()


def open_sockets(
    addresses: Sequence[IPAddress],
    port: int,
    lanes: int,
    workers: int,
    gro: bool = True,
    steer_by: Sequence[int] = (),
) -> list[WorkerSockets]:
    """Opens every worker's sockets: one REUSEPORT group per address on `port`, and `lanes` more.

    `addresses` are the node's own on the underlay, at most one of each family.  A lane's source
    port is the same for all workers, so that a flow keeps its port whichever worker sends it.
    `steer_by`: each worker's CPU; it gets what arrives on that CPU.  Empty: the kernel spreads
    flows by a hash.
    Raises SocketError: port taken, address not ours.
    """
    by_family = {address.version: address for address in addresses}
    groups = [WorkerSockets([None, None], [[None] * lanes, [None] * lanes]) for _ in range(workers)]
    try:
        for family, version in enumerate((4, 6)):
            if version not in by_family:
                continue
            address = by_family[version]
            for group in groups:  # a worker's index is its socket's in the REUSEPORT group
                group.receivers[family] = receiver = _open_receiver(address, port, gro)
            if steer_by:
                _attach(receiver, SO_ATTACH_REUSEPORT_CBPF, _steering_program(steer_by))
            for lane in range(lanes):
                source_port = 0
                for group in groups:
                    opened = _open_lane(address, source_port)
                    source_port = opened.getsockname()[1]
                    group.lanes[family][lane] = opened
    except BaseException:
        for group in groups:
            group.close()
        raise
    return groups


def _open_receiver(address: IPAddress, port: int, gro: bool) -> socket.socket:
    opened = _open(address)
    try:
        opened.setsockopt(SOL_UDP, UDP_GRO, int(gro))
        if address.version == 4:
            opened.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        else:
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
        _bind(opened, address, port)
    except BaseException:
        opened.close()
        raise
    return opened


def _open_lane(address: IPAddress, port: int) -> socket.socket:
    """A socket to send from; the filter makes the kernel drop whatever is sent to it."""
    opened = _open(address)
    try:
        _bind(opened, address, port)
        _attach(opened, SO_ATTACH_FILTER, [(BPF_RETURN, 0, 0, 0)])  # accept 0 bytes
    except BaseException:
        opened.close()
        raise
    return opened


def _steering_program(cpus: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Returns the index of the worker on the CPU that handles the packet."""
    program = [(BPF_LOAD_ABSOLUTE, 0, 0, SKF_AD_CPU & 0xFFFFFFFF)]
    for worker, cpu in enumerate(cpus):
        program += [(BPF_JUMP_IF_EQUAL, 0, 1, cpu), (BPF_RETURN, 0, 0, worker)]
    return [*program, (BPF_RETURN, 0, 0, NO_SOCKET)]


def _attach(to: socket.socket, option: int, program: Sequence[tuple[int, int, int, int]]) -> None:
    """Attaches a classic BPF program: (opcode, jump if true, jump if false, operand) each."""
    code = np.array(program, np.dtype([("op", "u2"), ("jt", "u1"), ("jf", "u1"), ("k", "u4")]))
    to.setsockopt(socket.SOL_SOCKET, option, struct.pack("@HP", len(code), code.ctypes.data))


def _open(address: IPAddress) -> socket.socket:
    ipv4 = address.version == 4
    opened = socket.socket(socket.AF_INET if ipv4 else socket.AF_INET6, socket.SOCK_DGRAM)
    opened.setblocking(False)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for forced, plain in (
        (SO_SNDBUFFORCE, socket.SO_SNDBUF),
        (SO_RCVBUFFORCE, socket.SO_RCVBUF),
    ):
        try:
            opened.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)
    if ipv4:
        opened.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT)
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, TTL)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DONT)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, TTL)
    return opened


def _bind(opened: socket.socket, address: IPAddress, port: int) -> None:
    try:
        opened.bind((str(address), port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SocketError(
                f"port: UDP port {port} on {address} is taken (another loden, flanneld or a vxlan "
                f"device?); 'ss -ulnp' and 'ip -d link show type vxlan' show by whom"
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise SocketError(f"address: {address} is not an address of this host") from error
        raise SocketError(f"UDP socket on {address} port {port}: {error}") from error


# ---- sending ------------------------------------------------------------------------------------


@step
def write_message_header(batch: Outbound, message: Int, fib: FibView) -> None:
    """Fills the msghdr of a planned message; iovecs are counted up as they are added."""
    row = batch.message_row[message]
    header = batch.msghdrs[row]
    adjacency = fib.adjacencies[batch.message_adjacency[message]]
    header[NAME] = np.int64(adjacency.ctypes.data) + SOCKADDR_AT
    header[NAME_BYTES] = adjacency[SOCKADDR_LENGTH_AT]
    header[IOV] = np.int64(batch.iovecs.ctypes.data) + 16 * batch.message_iov[message]
    header[IOV_COUNT] = 0
    control = batch.control[row]
    words = np.int64(0)
    if batch.message_count[message] > 1:
        control[0] = CMSG_HEADER_BYTES + 2
        control[1] = SOL_UDP | (UDP_SEGMENT << 32)
        control[2] = batch.message_size[message]
        words = np.int64(CMSG_SPACE_WORDS)
    if batch.message_tos[message] != 0:
        ipv6 = adjacency[SOCKADDR_AT] == AF_INET6
        control[words] = CMSG_HEADER_BYTES + 4
        control[words + 1] = 41 | (IPV6_TCLASS << 32) if ipv6 else IP_TOS << 32
        control[words + 2] = batch.message_tos[message]
        words += CMSG_SPACE_WORDS
    header[CONTROL] = np.int64(control.ctypes.data) if words else 0
    header[CONTROL_BYTES] = words * 8
    header[FLAGS] = 0


@kernel
def send(tunnel: Tunnel, batch: Outbound, messages: Int, row: Longs) -> None:
    """Sends all messages, each lane's in one call; marks the packets of those that cannot go."""
    base = np.int64(batch.msghdrs.ctypes.data)
    for lane in range(len(tunnel.sockets)):
        at, end = batch.lane_rows[lane], batch.lane_rows[lane + 1]
        waited = False
        while at < end:
            fd = tunnel.sockets[lane]
            sent = np.int64(libc.sendmmsg(fd, base + at * 64, end - at, libc.MSG_DONTWAIT))
            row[Total.OUT_CALLS] += 1
            if sent > 0:
                for done in range(at, at + sent):
                    row[Total.OUT_SEGMENTS] += batch.message_count[batch.row_message[done]]
                row[Total.OUT_MESSAGES] += sent
                at += sent
                waited = False
                continue
            error = libc.errno()
            if error == libc.EINTR:
                continue
            if error == libc.EAGAIN and not waited:
                _wait_writable(fd, batch.control[messages - 1])
                waited = True
                continue
            message = batch.row_message[at]
            gso_refused = error == libc.EIO or error == libc.EINVAL or error == libc.EMSGSIZE
            if gso_refused and batch.message_count[message] > 1:
                if error == libc.EIO:
                    tunnel.udp_gso[0] = 0
                _send_singly(fd, batch, message, row)
            else:
                _mark_dropped(batch, message, reason_of(error))
            at += 1
            waited = error == libc.EAGAIN  # it stayed full: do not wait for each of the rest


@kernel
def _wait_writable(fd: Int, scratch: Longs) -> None:
    """Waits shortly for room in the send buffer: the underlay is slower than we are."""
    spare = 2 * CMSG_SPACE_WORDS
    scratch[spare] = fd | (np.int64(libc.POLLOUT) << 32)  # a struct pollfd
    libc.poll(np.int64(scratch.ctypes.data) + 8 * spare, 1, SEND_WAIT_MS)


@kernel
def _send_singly(fd: Int, batch: Outbound, message: Int, row: Longs) -> None:
    """Sends the datagrams of a message that was refused as a whole one by one."""
    header = batch.msghdrs[batch.message_row[message]]
    control = batch.control[batch.message_row[message]]
    if header[CONTROL_BYTES] > CMSG_SPACE_WORDS * 8:  # leave the TOS, without the segment size
        header[CONTROL] = np.int64(control.ctypes.data) + CMSG_SPACE_WORDS * 8
        header[CONTROL_BYTES] = CMSG_SPACE_WORDS * 8
    else:
        header[CONTROL] = 0
        header[CONTROL_BYTES] = 0
    left = batch.message_count[message]
    for s in range(len(batch.segment_message)):
        if left == 0:
            break
        if batch.segment_message[s] != message:
            continue
        left -= 1
        header[IOV] = np.int64(batch.iovecs.ctypes.data) + 16 * batch.segment_iov[s]
        header[IOV_COUNT] = 2 if batch.body_bytes[s] > 0 else 1
        sent = np.int64(libc.sendmsg(fd, np.int64(header.ctypes.data), libc.MSG_DONTWAIT))
        row[Total.OUT_CALLS] += 1
        if sent >= 0:
            row[Total.OUT_SEGMENTS] += 1
            row[Total.OUT_MESSAGES] += 1
        else:
            batch.reason[batch.segment_packet[s]] = reason_of(libc.errno())


@kernel
def _mark_dropped(batch: Outbound, message: Int, reason: Int) -> None:
    left = batch.message_count[message]
    for s in range(len(batch.segment_message)):
        if left == 0:
            break
        if batch.segment_message[s] == message:
            batch.reason[batch.segment_packet[s]] = reason
            left -= 1


@kernel
def reason_of(error: Int) -> Int:
    """The drop reason for an errno of sendmsg."""
    if error == libc.EAGAIN:
        return np.int64(Drop.SEND_BUFFER_FULL)
    if error == libc.ENOBUFS or error == libc.ENOMEM:
        return np.int64(Drop.SEND_NO_BUFFERS)
    if error == libc.EMSGSIZE:
        return np.int64(Drop.TOO_BIG)
    if error == libc.ENETUNREACH or error == libc.EHOSTUNREACH or error == libc.ENETDOWN:
        return np.int64(Drop.SEND_UNREACHABLE)
    if error == libc.EPERM or error == libc.EACCES:
        return np.int64(Drop.SEND_REFUSED)
    return np.int64(Drop.SEND_FAILED)


# ---- receiving ----------------------------------------------------------------------------------


@kernel
def receive(fd: Int, batch: Inbound, row: Longs) -> Int:
    """Receives up to MESSAGES_IN messages and returns how many (0: none waiting).

    Fills data, names, message_bytes, message_gro and message_tos.
    """
    if batch.msghdrs[0, IOV] == 0:
        _wire_up(batch)
    while True:
        got = np.int64(
            libc.recvmmsg(
                fd, np.int64(batch.msghdrs.ctypes.data), MESSAGES_IN, libc.MSG_DONTWAIT, 0
            )
        )
        row[Total.IN_CALLS] += 1
        if got >= 0 or libc.errno() != libc.EINTR:
            break
    if got < 0:
        return np.int64(0)
    for m in range(got):
        batch.message_bytes[m] = batch.msghdrs[m, MESSAGE_BYTES_AT] & 0xFFFFFFFF
        _read_control(batch, m)
        _offer_room(batch, m)
    row[Total.IN_MESSAGES] += got
    return got


@kernel
def _wire_up(batch: Inbound) -> None:
    """Points every msghdr to its buffers, once."""
    data = np.int64(batch.data.ctypes.data)
    for m in range(MESSAGES_IN):
        batch.iovecs[m, 0] = data + m * MESSAGE_BYTES
        batch.iovecs[m, 1] = MESSAGE_BYTES
        header = batch.msghdrs[m]
        header[NAME] = np.int64(batch.names[m].ctypes.data)
        header[IOV] = np.int64(batch.iovecs[m].ctypes.data)
        header[IOV_COUNT] = 1
        header[CONTROL] = np.int64(batch.control[m].ctypes.data)
        _offer_room(batch, m)


@step
def _offer_room(batch: Inbound, message: Int) -> None:
    """Says how large name and control buffer are; the kernel overwrote it with what it used."""
    batch.msghdrs[message, NAME_BYTES] = batch.names.shape[1]
    batch.msghdrs[message, CONTROL_BYTES] = batch.control.shape[1] * 8


@step
def _read_control(batch: Inbound, message: Int) -> None:
    """Reads the control messages: UDP_GRO's segment size, and the outer TOS."""
    control = batch.control[message]
    batch.message_gro[message] = 0
    batch.message_tos[message] = 0
    words = batch.msghdrs[message, CONTROL_BYTES] // 8
    at = np.int64(0)
    while at + 2 < words:
        length = control[at]
        if length < CMSG_HEADER_BYTES:
            break
        level, kind = control[at + 1] & 0xFFFFFFFF, control[at + 1] >> 32
        if level == SOL_UDP and kind == UDP_GRO:
            batch.message_gro[message] = control[at + 2] & 0xFFFFFFFF
        elif (level == 0 and kind == IP_TOS) or (level == 41 and kind == IPV6_TCLASS):
            batch.message_tos[message] = control[at + 2] & 0xFF
        at += (length + 7) // 8
