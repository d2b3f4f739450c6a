"""Packets are sent as told and counted as they are: lost, doubled, late, or not ours."""

from __future__ import annotations

import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from perf import udp_generator
from perf.agent import Agent
from perf.udp_generator import IMIX, _scatter, check_sizes

LOOPBACK = "127.0.0.1"
PAYLOAD_BYTES = 64
TRIAL = 7


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent()
    yield agent
    agent.quiet()


@pytest.fixture
def port() -> int:
    """A UDP port that is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def send(agent: Agent, port: int, **changed: Any) -> dict[str, Any]:
    arguments = {"address": LOOPBACK, "port": port, "flows": 1, "sizes": [PAYLOAD_BYTES]}
    arguments |= {"trial": TRIAL, "rate_pps": 10_000.0, "seconds": 0.05, "most": 1000, "spread": 0}
    return agent.send(**{**arguments, **changed})


def receive(
    agent: Agent, port: int, flows: int = 1, sizes: Sequence[int] = (PAYLOAD_BYTES,)
) -> None:
    agent.receive(LOOPBACK, port, flows, sizes, TRIAL, most=1000)


@pytest.mark.parametrize("flows", [1, 64])
def test_every_packet_arrives_once_and_in_order(agent: Agent, port: int, flows: int) -> None:
    receive(agent, port, flows)
    sent = send(agent, port, flows=flows)
    got = agent.received(sent["sent"])

    assert sent["refused"] == 0
    assert got["received"] == sent["sent"] > 0
    assert (got["duplicates"], got["reordered"], got["strange"]) == (0, 0, 0)
    assert sent["begun_ns"] < got["first_ns"] < got["last_ns"]


def test_sizes_take_turns(agent: Agent, port: int) -> None:
    receive(agent, port, sizes=IMIX)
    sent = send(agent, port, sizes=IMIX)
    got = agent.received(sent["sent"])
    assert (got["received"], got["strange"]) == (sent["sent"], 0)

    receive(agent, port, sizes=IMIX)
    sent = send(agent, port, sizes=[64], most=12)
    assert agent.received(sent["sent"])["received"] == IMIX.count(64)


def test_mix_is_the_simple_internet_mix() -> None:
    assert [IMIX.count(size) for size in (64, 576 - 28, 1420 - 28)] == [7, 4, 1]
    assert len(IMIX) == 12


def test_what_the_counter_had_no_room_for_is_told(
    agent: Agent, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_generator, "RECEIVE_BUFFER_BYTES", 4096)
    monkeypatch.setattr(udp_generator, "receive_numbered", wait_for_stop)
    receive(agent, port)
    sent = send(agent, port, rate_pps=0.0, most=200)
    got = agent.received(sent["sent"])

    assert got["received"] == 0
    assert 100 < got["uncounted"] < 200


def wait_for_stop(*arguments: Any) -> None:
    """Counts nothing."""
    while arguments[-1][0] == 0:
        time.sleep(0.001)


def test_pace_is_never_exceeded_and_the_time_is_kept(agent: Agent, port: int) -> None:
    receive(agent, port)
    sent = send(agent, port, rate_pps=2000.0, seconds=0.2)

    seconds = (sent["ended_ns"] - sent["begun_ns"]) / 1e9
    assert 0.2 <= seconds < 2
    assert 200 < sent["sent"] <= 1 + 2000 * seconds


def test_most_is_the_end(agent: Agent, port: int) -> None:
    receive(agent, port)
    assert send(agent, port, rate_pps=0.0, seconds=60.0, most=100)["sent"] == 100


def test_sender_spends_its_time_in_the_kernel(agent: Agent, port: int) -> None:
    receive(agent, port)
    before = resource.getrusage(resource.RUSAGE_THREAD)
    send(agent, port, rate_pps=0.0, seconds=0.4, most=10_000_000)
    after = resource.getrusage(resource.RUSAGE_THREAD)

    own = after.ru_utime - before.ru_utime
    assert own < 0.3 * (own + after.ru_stime - before.ru_stime)


def test_each_flow_has_a_port_and_they_take_turns(agent: Agent, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((LOOPBACK, port))
        receiver.settimeout(5)
        send(agent, port, flows=64, rate_pps=0.0, most=128)
        arrived = [receiver.recvfrom(2048) for _ in range(128)]

    words = [struct.unpack("<QQ", data[:16]) for data, _ in arrived]
    assert [number for _, number in words] == list(range(128))
    assert [word >> 32 for word, _ in words] == [*range(64), *range(64)]
    assert {word & 0xFFFFFFFF for word, _ in words} == {TRIAL}
    assert {len(data) for data, _ in arrived} == {PAYLOAD_BYTES}
    assert len({source for _, source in arrived}) == 64


def test_spread_packets_visit_every_address_in_leaps() -> None:
    visited = [int(_scatter(np.int64(number), np.int64(256))) for number in range(256)]

    assert sorted(visited) == list(range(256))
    assert all(abs(a - b) > 1 for a, b in pairwise(visited))


def test_spread_packets_arrive_at_their_addresses(agent: Agent, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("0.0.0.0", port))
        receiver.settimeout(5)
        receiver.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO: tells where it was sent to
        send(agent, port, address="127.7.0.0", spread=1 << 16, rate_pps=0.0, most=32)
        sent_to = set()
        for _ in range(32):
            _, [(_, _, info)], _, _ = receiver.recvmsg(2048, 64)
            sent_to.add(socket.inet_ntoa(info[8:12]))

    assert len(sent_to) == 32
    assert all(address.startswith("127.7.") for address in sent_to)


def numbered(number: int, flow: int = 0, trial: int = TRIAL, size: int = PAYLOAD_BYTES) -> bytes:
    return struct.pack("<QQ", trial | flow << 32, number).ljust(size, b"\0")


@pytest.mark.parametrize(
    ("packets", "received", "duplicates", "reordered", "strange"),
    [
        ([numbered(0), numbered(2), numbered(3)], 3, 0, 0, 0),
        ([numbered(0), numbered(1), numbered(1), numbered(0)], 2, 2, 0, 0),
        ([numbered(0), numbered(3), numbered(1), numbered(2), numbered(4)], 5, 0, 2, 0),
        ([numbered(5, flow=1), numbered(4, flow=0)], 2, 0, 0, 0),
        ([numbered(0), numbered(1, trial=TRIAL - 1)], 1, 0, 0, 1),
        ([numbered(0), numbered(1, size=63), numbered(2, size=65)], 1, 0, 0, 2),
        ([numbered(0), numbered(1000), numbered(1, flow=2), b"short"], 1, 0, 0, 3),
    ],
    ids=["lost", "doubled", "late", "late in another flow", "old", "cut", "out of range"],
)
def test_what_happened_to_packets_is_counted(
    agent: Agent,
    port: int,
    packets: list[bytes],
    received: int,
    duplicates: int,
    reordered: int,
    strange: int,
) -> None:
    receive(agent, port, flows=2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for packet in packets:
            sender.sendto(packet, (LOOPBACK, port))
    got = agent.received(sent=1000)

    counts = (got["received"], got["duplicates"], got["reordered"], got["strange"])
    assert counts == (received, duplicates, reordered, strange)


def test_refused_packets_count_as_sent(agent: Agent, port: int) -> None:
    sent = send(agent, port, rate_pps=0.0, most=100)  # nobody listens: ECONNREFUSED, now and then

    assert sent["sent"] == 100
    assert 0 < sent["refused"] < 100


def test_questions_are_answered_and_timed(agent: Agent, port: int) -> None:
    agent.echo(LOOPBACK, port)
    times_ns = agent.ping_pong(LOOPBACK, port, 100, 10.0)["times_ns"]

    assert len(times_ns) == 100
    assert times_ns == sorted(times_ns)
    assert 0 < times_ns[0] < 1e9


def test_slow_answers_take_their_time(agent: Agent, port: int) -> None:
    def answer_slowly(receiver: socket.socket) -> None:
        for _ in range(2 * 5):  # it warms up with as many
            question, asker = receiver.recvfrom(10)
            time.sleep(0.005)
            receiver.sendto(question, asker)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((LOOPBACK, port))
        receiver.settimeout(5)
        answering = threading.Thread(target=answer_slowly, args=(receiver,))
        answering.start()
        times_ns = agent.ping_pong(LOOPBACK, port, 5, 10.0)["times_ns"]
        answering.join()

    assert len(times_ns) == 5
    assert times_ns[0] >= 5_000_000


def test_unanswered_questions_have_no_time(agent: Agent, port: int) -> None:
    answers = agent.ping_pong(LOOPBACK, port, 3, 10.0)
    assert answers == {"asked": 3, "times_ns": []}


def test_questions_end_with_their_time(agent: Agent, port: int) -> None:
    agent.echo(LOOPBACK, port)
    begun = time.monotonic()
    asked = agent.ping_pong(LOOPBACK, port, 10_000_000, 0.1)["asked"]

    assert 0 < asked < 10_000_000
    assert 0.1 <= time.monotonic() - begun < 10


def test_payload_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="sizes: 15 is not allowed; allowed: 16 to 2048"):
        check_sizes([64, 15])
