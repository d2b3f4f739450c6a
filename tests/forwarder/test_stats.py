"""What the kernel tells of losses and processes: held against what was done on purpose."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest

from forwarder.stats import device_drops, process_usage, receive_drops
from forwarder.tun import open_device
from perf.topology import Host, Topology


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        yield receiver


def test_datagrams_that_found_the_receive_queue_full_are_counted(receiver: socket.socket) -> None:
    sent, received = 100, 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(sent):
            sender.sendto(bytes(1000), receiver.getsockname())
    with contextlib.suppress(BlockingIOError):  # loopback delivers before sendto returns
        while receiver.recv(2000):
            received += 1
    assert 0 < received < sent
    assert receive_drops([None, receiver]) == sent - received
    assert receive_drops([]) == 0


@pytest.fixture
def host() -> Iterator[Host]:
    with Topology(1) as topology:
        yield topology.hosts[0]


@pytest.mark.netns
def test_packets_that_found_the_devices_queue_full_are_counted(host: Host) -> None:
    with host.entered():
        device = open_device("tun-test", 1)
        host.ip("address add 10.7.1.1/24 dev tun-test", "link set tun-test txqueuelen 4 up")
        before = device_drops("tun-test")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(20):  # nobody reads the queue
                sender.sendto(b"lost", ("10.7.1.2", 9))
        assert 10 <= device_drops("tun-test") - before <= 20
        device.close()
        assert device_drops("tun-test") == 0


def test_cpu_time_and_memory_of_a_process() -> None:
    before = process_usage(os.getpid())
    begun = time.process_time()
    while time.process_time() - begun < 0.1:
        pass
    after = process_usage(os.getpid())
    used_s = sum(after[f"cpu_{mode}_s"] - before[f"cpu_{mode}_s"] for mode in ("user", "system"))
    assert 0.05 < used_s < 1.0  # counted in ticks of 10 ms, all threads together
    assert 1 << 20 < after["resident_bytes"] < 1 << 40


def test_process_that_is_gone_used_nothing_that_is_known() -> None:
    assert process_usage(1 << 30) == {}
