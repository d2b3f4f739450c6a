"""The overlay device: opening its queues, reading packets from one, writing packets to it."""

import errno
import fcntl
import os
from dataclasses import dataclass

import numpy as np
import pytun

from forwarder import libc
from forwarder.arrays import Int, Longs
from forwarder.batch import HEADROOM, OUT_BYTES, PACKET_BYTES_MAX, PACKETS, Outbound
from forwarder.counters import Drop
from forwarder.jit import kernel
from forwarder.wire.virtio_net import NEEDS_CSUM, VNET_BYTES

# linux/if_tun.h
TUNSETOFFLOAD = 0x400454D0
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 1, 2, 4, 8
TUN_F_USO4, TUN_F_USO6 = 0x20, 0x40

CSUM_AND_TSO = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
USO = TUN_F_USO4 | TUN_F_USO6


class DeviceError(Exception):
    """The overlay device cannot be opened; the message says why and what to do."""


@dataclass
class Device:
    """An open multiqueue TUN device.  It exists as long as a queue is open."""

    name: str
    queues: list[pytun.TunTapDevice]
    tso: bool
    """The kernel hands over TCP superpackets."""
    uso: bool
    """The kernel hands over UDP superpackets (Linux 6.2)."""

    def close(self) -> None:
        for queue in self.queues:
            queue.close()


def open_device(name: str, queues: int, want_tso: bool = True, want_uso: bool = True) -> Device:
    """Creates TUN device `name` with this many queues.

    Raises DeviceError: no /dev/net/tun, no privilege, name taken or not allowed.
    """
    flags = pytun.IFF_TUN | pytun.IFF_NO_PI | pytun.IFF_MULTI_QUEUE | pytun.IFF_VNET_HDR
    opened: list[pytun.TunTapDevice] = []
    try:
        for index in range(queues):
            exclusive = pytun.IFF_TUN_EXCL if index == 0 else 0
            opened.append(pytun.TunTapDevice(name=name, flags=flags | exclusive))
        tso = want_tso and _set_offloads(opened, CSUM_AND_TSO)
        with_uso = USO | (CSUM_AND_TSO if tso else TUN_F_CSUM)
        uso = want_uso and _set_offloads(opened, with_uso)
        for queue in opened:
            os.set_blocking(queue.fileno(), False)
    except (OSError, pytun.Error, ValueError) as error:
        for queue in opened:
            queue.close()
        raise DeviceError(_explain(name, error)) from error
    return Device(name, opened, tso, uso)


def _set_offloads(queues: list[pytun.TunTapDevice], offloads: int) -> bool:
    """Asks for superpackets on every queue; False where this kernel cannot."""
    try:
        for queue in queues:
            fcntl.ioctl(queue.fileno(), TUNSETOFFLOAD, offloads)
    except OSError:
        return False
    return True


def _explain(name: str, error: Exception) -> str:
    number = error.args[0] if error.args else None
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return (
            "there is no /dev/net/tun: load the module with 'modprobe tun' (in a container: add "
            "--device /dev/net/tun)"
        )
    if number in (errno.EPERM, errno.EACCES):
        return f"no privilege to create the TUN device {name!r}: run as root or with CAP_NET_ADMIN"
    if number in (errno.EBUSY, errno.EEXIST, errno.EINVAL):
        return (
            f"device: the name {name!r} is taken by another network device or process; choose "
            "another with --device, or remove it with 'ip link del'"
        )
    return f"the TUN device {name!r} cannot be opened: {error}"


@kernel
def receive(fd: Int, batch: Outbound, row: Longs, reads_at: Int) -> Int:
    """Reads up to PACKETS packets into `batch`, and returns how many.

    Fills data, start, length, gso_type, gso_size, csum_start, csum_offset and reason.  Stops when
    the queue is empty or the memory is nearly full; counts calls in row[reads_at].
    """
    data = batch.data
    base = np.int64(data.ctypes.data)
    at = np.int64(0)
    count = np.int64(0)
    while count < PACKETS and at + HEADROOM + PACKET_BYTES_MAX <= OUT_BYTES:
        start = at + HEADROOM
        vnet = start - VNET_BYTES
        got = np.int64(libc.read(fd, base + vnet, PACKET_BYTES_MAX))
        row[reads_at] += 1
        if got < 0:
            break
        length = got - VNET_BYTES
        batch.start[count] = start
        batch.length[count] = length
        batch.gso_type[count] = data[vnet + 1]
        batch.gso_size[count] = np.int64(data[vnet + 4]) | np.int64(data[vnet + 5]) << 8
        batch.csum_start[count] = np.int64(data[vnet + 6]) | np.int64(data[vnet + 7]) << 8
        batch.csum_offset[count] = np.int64(data[vnet + 8]) | np.int64(data[vnet + 9]) << 8
        if data[vnet] & NEEDS_CSUM == 0:
            batch.csum_start[count] = -1
        batch.reason[count] = Drop.NONE
        count += 1
        at = (start + length + 63) & ~63
    return count


@kernel
def write_packet(fd: Int, iovecs: Longs, parts: Int) -> Int:
    """Writes one packet (vnet header first) made of `parts` iovecs; returns a Drop reason."""
    while True:
        wrote = np.int64(libc.writev(fd, np.int64(iovecs.ctypes.data), parts))
        if wrote >= 0:
            return np.int64(Drop.NONE)
        error = libc.errno()
        if error == libc.EINTR:
            continue
        if error == libc.EINVAL:
            return np.int64(Drop.TUN_WRITE_INVALID)
        if error == libc.EIO or error == libc.EBADFD:
            return np.int64(Drop.TUN_DOWN)
        return np.int64(Drop.TUN_NO_BUFFERS)
