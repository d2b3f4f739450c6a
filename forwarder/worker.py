"""A worker: one CPU, one TUN queue, its sockets, both directions.

Forked from the forwarder with the compiled kernels in memory.  It gives up every privilege before
the first packet and holds nothing but its file descriptors and its maps of the shared memory.
"""

import mmap
import os
import signal

import numpy as np

from forwarder import inbound, libc, outbound, sandbox, shm, tunnel_gso
from forwarder.arrays import Int, Longs
from forwarder.batch import Inbound, Outbound, allocate_inbound, allocate_outbound
from forwarder.capture_ring import CaptureRing, memory_bytes, ring_of
from forwarder.counters import IDLE, CounterRow, Total
from forwarder.fib.layout import GENERATION_WORD, FibView
from forwarder.jit import kernel
from forwarder.offloads import ON
from forwarder.sandbox import Sandbox
from forwarder.tunnel import Tunnel

TURNS_PER_LOOK = 256
"""How often a busy worker renews its heartbeat and looks whether it shall stop."""
IDLE_POLL_MS = 1000
"""An idle worker wakes this often to renew its heartbeat."""


@kernel
def work(
    tunnel: Tunnel,
    out: Outbound,
    inn: Inbound,
    fib: FibView,
    counters: CounterRow,
    ring: CaptureRing,
    scratch: Longs,
    busy_poll_ns: Int,
) -> None:
    """Runs turns of both directions until asked to stop.

    It does not come back to Python meanwhile: entering compiled code with so many arrays takes
    longer than a batch does.  `scratch` is int64[8].

    With nothing to do it blocks.  Where packets come more often than every `busy_poll_ns`, it
    first looks again for so long, giving way to whoever else wants the CPU: to be woken costs
    more than to look, on both sides.  How long the last sleep was tells which it is, as the
    kernel's haltpoll governor does it for idle CPUs.
    """
    row = counters.row
    patience_ns: Int = np.int64(0)
    empty_since_ns: Int = np.int64(0)  # 0: the last turn was not empty
    since_look = np.int64(0)
    while True:
        # From here to the end of the turn, indices of this generation may be held (QSBR).
        row[Total.GENERATION_SEEN] = np.int64(fib.header[GENERATION_WORD])
        moved = outbound.turn(tunnel, out, fib, counters, ring)
        moved += inbound.turn(tunnel, inn, fib, counters, ring)
        row[Total.TURNS] += 1
        since_look += 1
        blocks = False
        if moved > 0:
            empty_since_ns = np.int64(0)
        else:
            now_ns = libc.monotonic_ns(scratch)
            if empty_since_ns == 0:
                empty_since_ns = now_ns
            blocks = bool(now_ns - empty_since_ns >= patience_ns)
            if not blocks:
                libc.sched_yield()
        if not blocks and since_look < TURNS_PER_LOOK:
            continue
        row[Total.POLLS] += blocks
        row[Total.GENERATION_SEEN] = IDLE
        row[Total.HEARTBEAT_NS] = libc.monotonic_ns(scratch)
        if wait(tunnel, scratch, IDLE_POLL_MS if blocks else 0):
            break
        if blocks:
            slept_ns = libc.monotonic_ns(scratch) - row[Total.HEARTBEAT_NS]
            patience_ns = busy_poll_ns if slept_ns < busy_poll_ns else np.int64(0)
            empty_since_ns = np.int64(0)
        since_look = np.int64(0)


@kernel
def wait(tunnel: Tunnel, pollfds: Longs, timeout_ms: Int) -> bool:
    """Blocks until a packet waits in the TUN queue or a socket, or a stop is asked for."""
    pollfds[0] = tunnel.wake_fd | (np.int64(libc.POLLIN) << 32)
    pollfds[1] = tunnel.tun_fd | (np.int64(libc.POLLIN) << 32)
    waiting = np.int64(2)
    for family in range(len(tunnel.receivers)):
        if tunnel.receivers[family] >= 0:
            pollfds[waiting] = tunnel.receivers[family] | (np.int64(libc.POLLIN) << 32)
            waiting += 1
    libc.poll(np.int64(pollfds.ctypes.data), waiting, timeout_ms)
    return (pollfds[0] >> 48) & libc.POLLIN != 0


def compile_kernels() -> None:
    """Compiles the data path, or loads it from the cache: one turn of nothing, told to stop."""
    stop_at_once = os.eventfd(1)
    tunnel = closed_tunnel()._replace(wake_fd=stop_at_once)
    counters = CounterRow(np.zeros(512, np.int64), np.zeros((1, 4), np.int64))
    ring = ring_of(mmap.mmap(-1, memory_bytes(1)), 0)
    scratch = np.zeros(8, np.int64)
    work(tunnel, allocate_outbound(2), allocate_inbound(), empty_fib(), counters, ring, scratch, 0)
    os.close(stop_at_once)


def closed_tunnel() -> Tunnel:
    """A tunnel without a device or a socket; its compiled type is that of the real ones."""
    return Tunnel(
        tun_fd=-1,
        receivers=np.full(2, -1, np.int64),
        sockets=np.full(2, -1, np.int64),
        wake_fd=-1,
        vni=1,
        mac=np.zeros(6, np.uint8),
        mtu_bytes=1450,
        dscp=0,
        path_mtu=np.frombuffer(bytes(4), np.uint32),  # read-only, as the column is
        coalesce_tcp=True,
        coalesce_udp=True,
        udp_gso=np.ones(1, np.int64),
        tap_fd=-1,
        templates=np.zeros((2, tunnel_gso.TEMPLATE_BYTES), np.uint8),
        lane_ports=np.zeros(2, np.int64),
        tunnel_gso=np.zeros(2, np.int64),
    )


def empty_fib() -> FibView:
    """A FIB without a route, of the type of those that workers map."""
    nothing = np.zeros(0, np.uint32)
    fib = FibView(
        header=np.zeros(512, np.uint64),
        tbl24=nothing,
        groups=nothing,
        ipv6_first=np.zeros((0, 2), np.uint64),
        ipv6_adjacency=nothing,
        adjacencies=np.zeros((0, 64), np.uint8),
        vteps=nothing,
    )
    for array in fib:
        array.flags.writeable = False  # as the workers' maps are: it is part of the compiled type
    return fib


def run(
    tunnel: Tunnel,
    fib: FibView,
    counters: CounterRow,
    ring: CaptureRing,
    cpu: int,
    limits: Sandbox,
    busy_poll_ns: int,
) -> None:
    """The life of a worker process, from the fork to the end.  Returns when asked to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the forwarder's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.sched_setaffinity(0, {cpu})
    sandbox.close_other_descriptors(tunnel.descriptors())
    sandbox.drop_privileges(limits.identity)
    shm.register_reader()
    out, inn = allocate_outbound(len(tunnel.sockets)), allocate_inbound()
    scratch = np.zeros(8, np.int64)
    counters.row[Total.PID] = os.getpid()
    counters.row[Total.CPU] = cpu
    if limits.filter_state == ON:
        sandbox.load_filter()
    work(tunnel, out, inn, fib, counters, ring, scratch, busy_poll_ns)
