"""Which worker gets a packet: both ways of a flow meet in one."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

import pytest

from tests.netns.forwarders import Forwarder, Pair, pair_of_forwarders
from tests.netns.nodes import wait_for
from tests.netns.streams import udp_sockets

pytestmark = pytest.mark.netns


def packets_by_worker(end: Forwarder) -> list[tuple[int, int]]:
    """(from pods, to pods) so far, for each worker."""
    workers = end.client.stats()["per_worker"]
    return [(w["totals"]["out_packets"], w["totals"]["in_packets"]) for w in workers]


def has_one_worker_moved(end: Forwarder, before: list[tuple[int, int]], count: int) -> bool:
    """Whether one and the same has moved `count` packets each way."""
    return any(
        out - out_before >= count and into - into_before >= count
        for (out_before, into_before), (out, into) in zip(
            before, packets_by_worker(end), strict=True
        )
    )


def test_both_directions_of_a_flow_settle_on_one_worker(tmp_path: Path) -> None:
    """The TUN remembers which queue has delivered a flow, and hands its answers to that one."""
    with pair_of_forwarders(tmp_path) as pair:
        for version in (4, 6, 4, 6):
            assert_settles(pair, version)


def assert_settles(pair: Pair, version: int) -> None:
    near, far = pair.ends
    address = pair.address_of(1, version)
    with udp_sockets(near.pod, far.pod, address) as (client, server):
        exchange(client, server, 10)  # until then it may move
        before = [packets_by_worker(end) for end in pair.ends]
        exchange(client, server, 50)
        for end, counted in zip(pair.ends, before, strict=True):
            settled = partial(has_one_worker_moved, end, counted, 50)
            wait_for(settled, "50 packets each way by one worker")


def exchange(client: socket.socket, server: socket.socket, times: int) -> None:
    for _ in range(times):
        client.send(b"question")
        server.sendto(*server.recvfrom(100))
        assert client.recv(100) == b"question"


def test_packets_may_stay_on_the_cpu_they_arrived_on(tmp_path: Path) -> None:
    """A veth hands packets over on the CPU that sends them: the sending worker's."""
    with pair_of_forwarders(tmp_path, ["--steer-by-cpu"]) as pair:
        near, far = pair.ends
        for version in (4, 6) * 4:
            with udp_sockets(near.pod, far.pod, pair.address_of(1, version)) as (client, server):
                exchange(client, server, 10)
        wait_for(lambda: sent_and_received(near) == sent_and_received(far)[::-1], "equal counts")


def sent_and_received(end: Forwarder) -> tuple[list[int], list[int]]:
    """Packets, worker by worker."""
    out, into = zip(*packets_by_worker(end), strict=True)
    return list(out), list(into)
