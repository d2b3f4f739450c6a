"""A worker's loop, run in a thread: what it publishes, what wakes it, what ends it."""

import mmap
import os
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from forwarder.arrays import Longs
from forwarder.batch import allocate_inbound, allocate_outbound
from forwarder.capture_ring import memory_bytes, ring_of
from forwarder.counters import COLUMNS, DROPS_AT, IDLE, CounterRow, Drop, Total
from forwarder.tunnel import Tunnel
from forwarder.worker import IDLE_POLL_MS, closed_tunnel, compile_kernels, empty_fib, work
from tests.netns.nodes import wait_for


class Working:
    """A worker with one socket, on loopback, and no device."""

    def __init__(self, busy_poll_ns: int) -> None:
        self.receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver.bind(("127.0.0.1", 0))
        self.wake_fd = os.eventfd(0)
        self.row: Longs = np.zeros(COLUMNS, np.int64)
        tunnel: Tunnel = closed_tunnel()._replace(
            wake_fd=self.wake_fd, receivers=np.array([self.receiver.fileno(), -1])
        )
        arguments = (
            tunnel,
            allocate_outbound(2),
            allocate_inbound(),
            empty_fib(),
            CounterRow(self.row, np.zeros((1, 4), np.int64)),
            ring_of(mmap.mmap(-1, memory_bytes(1)), 0),
            np.zeros(8, np.int64),
            busy_poll_ns,
        )
        self.thread = threading.Thread(target=work, args=arguments)
        self.thread.start()

    def send(self, datagram: bytes) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(datagram, self.receiver.getsockname())

    def stop(self) -> None:
        os.eventfd_write(self.wake_fd, 1)
        self.thread.join(5)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    compile_kernels()


@pytest.fixture(params=[0, 50_000_000], ids=["blocks", "looks again first"])
def working(request: pytest.FixtureRequest) -> Iterator[Working]:
    working = Working(request.param)
    yield working
    working.stop()
    working.receiver.close()
    os.close(working.wake_fd)


def test_datagram_wakes_it_and_is_accounted_for(working: Working) -> None:
    for count in range(1, 4):
        wait_for(lambda: working.row[Total.GENERATION_SEEN] == IDLE, "a worker that blocks")
        working.send(b"too short")
        wait_for(
            lambda: working.row[DROPS_AT + Drop.TRUNCATED] == count,  # noqa: B023
            "the drop",
        )
    assert working.row[Total.IN_MESSAGES] == 3


def test_idle_worker_says_so_and_renews_its_heartbeat(working: Working) -> None:
    wait_for(lambda: working.row[Total.POLLS] > 0, "a worker that blocks")
    polls, beat_ns = int(working.row[Total.POLLS]), int(working.row[Total.HEARTBEAT_NS])
    assert time.monotonic_ns() - beat_ns < 5e9
    wait_for(lambda: working.row[Total.HEARTBEAT_NS] > beat_ns, "the next heartbeat")
    assert working.row[Total.HEARTBEAT_NS] - beat_ns > IDLE_POLL_MS * 1e6 / 2
    assert working.row[Total.POLLS] - polls <= 2  # no busy waiting
    wait_for(lambda: working.row[Total.GENERATION_SEEN] == IDLE, "a worker that holds nothing")
