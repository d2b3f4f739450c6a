"""What the forwarder tells of itself beside the counters: losses before us, what processes use.

Nothing here is in a packet's way: it is read when somebody asks, from the kernel.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SO_MEMINFO = 55
SK_MEMINFO_WORDS, SK_MEMINFO_DROPS = 9, 8  # linux/sock_diag.h

PROC_NET_DEV = Path("/proc/thread-self/net/dev")
"""Of the namespace we are in, which sysfs need not show."""
SENT_DROPPED = 11
"""Column of /proc/net/dev, counted after the device's name (net/core/net-procfs.c)."""

CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def receive_drops(receivers: Iterable[socket.socket | None]) -> int:
    """Datagrams these sockets lost since they were opened: the receive queue was full.

    It counts those with a wrong outer checksum, too (udp_queue_rcv_one_skb, net/ipv4/udp.c).
    """
    drops = 0
    for receiver in receivers:
        if receiver is not None:
            packed = receiver.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * SK_MEMINFO_WORDS)
            drops += struct.unpack(f"={len(packed) // 4}I", packed)[SK_MEMINFO_DROPS]
    return drops


def device_drops(device: str) -> int:
    """Packets the kernel had for the overlay device while its queues were full, or it was down.

    Since the device was made; 0 when there is none.
    """
    for line in PROC_NET_DEV.read_text().splitlines():
        name, _, columns = line.strip().partition(":")
        if name == device:
            return int(columns.split()[SENT_DROPPED])
    return 0


def process_usage(pid: int) -> dict[str, Any]:
    """CPU time in seconds and resident memory in bytes; empty when we may not know, or it died.

    Source: /proc/PID/stat, see proc(5).
    """
    with contextlib.suppress(OSError):
        # What follows the command's name, which may contain anything: the third field and on.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return {
            "cpu_user_s": int(fields[11]) / CLOCK_TICKS_PER_S,
            "cpu_system_s": int(fields[12]) / CLOCK_TICKS_PER_S,
            "resident_bytes": int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        }
    return {}
