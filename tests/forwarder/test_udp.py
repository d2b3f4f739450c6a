"""Real sockets on loopback: what is planned is sent, what is sent is received."""

import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from forwarder import libc, udp
from forwarder.batch import MESSAGE_BYTES, Inbound, Outbound
from forwarder.counters import Drop, Total
from forwarder.dscp import COPY
from forwarder.fib.routes import IPAddress
from forwarder.udp import SocketError, WorkerSockets, open_sockets, reason_of
from tests.forwarder.fibs import OWN_MAC
from tests.forwarder.packets import NET_B, Flow, encapsulated
from tests.forwarder.sending import Sending
from tests.forwarder.stages import LANES, FromTun
from tests.forwarder.test_outbound import superpacket
from tests.reference.segmentation import split

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
LOOPBACK = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
NO_CHECKSUM = [(socket.SOL_SOCKET, 11), (udp.SOL_UDP, 101)]
"""SO_NO_CHECK, and UDP_NO_CHECK6_TX."""
UDP_NO_CHECK6_RX = 102


def free_port(address: IPAddress) -> int:
    with socket.socket(FAMILIES[address.version], socket.SOCK_DGRAM) as probe:
        probe.bind((str(address), 0))
        port: int = probe.getsockname()[1]
        return port


class Loop:
    """Sockets that send to themselves, and a FIB that routes B's pods there."""

    def __init__(self, version: int, gso: bool = True) -> None:
        address = LOOPBACK[version]
        self.family = 0 if version == 4 else 1
        port = free_port(address)
        [self.sockets] = open_sockets([address], port, LANES, 1)
        self.sending = Sending.to(address, port, self.sockets, gso)
        self.row = self.sending.row

    def send(self, batch: Outbound, *packets: FromTun) -> list[int]:
        return self.sending.send(batch, *packets)

    def receiver(self) -> socket.socket:
        receiver = self.sockets.receivers[self.family]
        assert receiver is not None
        return receiver

    def receive(self, batch: Inbound) -> list[tuple[bytes, int, int]]:
        """(payload, UDP_GRO size, TOS) of each message waiting."""
        count = int(udp.receive(self.receiver().fileno(), batch, self.row))
        found = []
        for m in range(count):
            size = int(batch.message_bytes[m])
            payload = batch.data[m * MESSAGE_BYTES : m * MESSAGE_BYTES + size].tobytes()
            found.append((payload, int(batch.message_gro[m]), int(batch.message_tos[m])))
        return found


@pytest.fixture(params=[4, 6])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    loop = Loop(request.param)
    yield loop
    loop.sockets.close()


FLOW = Flow.between(4, "tcp", 1, NET_B)
SUPERPACKET = superpacket(FLOW.packet(bytes(i & 0xFF for i in range(5000))), 1000)
SEGMENTS = [encapsulated(s, source=OWN_MAC) for s in split(SUPERPACKET.packet, 1000)]


def test_segments_go_out_in_one_message_and_come_in_as_one(
    loop: Loop, outbound_batch: Outbound, inbound_batch: Inbound
) -> None:
    assert loop.send(outbound_batch, SUPERPACKET) == [Drop.NONE]
    sent = (loop.row[Total.OUT_MESSAGES], loop.row[Total.OUT_SEGMENTS], loop.row[Total.OUT_CALLS])
    assert sent == (1, 5, 1)
    [(payload, gro_bytes, _)] = loop.receive(inbound_batch)
    assert payload == b"".join(SEGMENTS)
    assert gro_bytes == len(SEGMENTS[0])
    assert loop.receive(inbound_batch) == []


def test_outer_tos_arrives(loop: Loop, outbound_batch: Outbound, inbound_batch: Inbound) -> None:
    packets = [FromTun(FLOW.packet(b"x", {"tos": tos})) for tos in (0xB9, 0xBA, 0xBB)]
    for dscp, expected in ((0, [1, 2, 3]), (COPY, [0xB9, 0xBA, 0xBB])):
        loop.sending.tunnel = loop.sending.tunnel._replace(dscp=dscp)
        assert loop.send(outbound_batch, *packets) == [Drop.NONE] * 3
        assert [tos for _, _, tos in loop.receive(inbound_batch)] == expected


def test_message_refused_as_a_whole_is_sent_singly(
    loop: Loop, outbound_batch: Outbound, inbound_batch: Inbound
) -> None:
    for lane in loop.sending.lanes:
        lane.setsockopt(*NO_CHECKSUM[loop.family], 1)  # refuses UDP_SEGMENT: EINVAL
    if loop.family == 1:
        loop.receiver().setsockopt(udp.SOL_UDP, UDP_NO_CHECK6_RX, 1)
    marked = FLOW.packet(bytes(3000), {"tos": 3})
    assert loop.send(outbound_batch, superpacket(marked, 1000)) == [Drop.NONE]
    expected = [encapsulated(s, source=OWN_MAC) for s in split(marked, 1000)]
    messages = loop.receive(inbound_batch)
    assert [payload for payload, _, _ in messages] == expected
    assert {tos for _, _, tos in messages} == {3}
    assert loop.row[Total.OUT_SEGMENTS] == 3
    assert loop.sending.tunnel.udp_gso[0] == 1  # that refusal says nothing about the device


def test_without_udp_gso_every_datagram_travels_alone(
    outbound_batch: Outbound, inbound_batch: Inbound
) -> None:
    loop = Loop(4, gso=False)
    assert loop.send(outbound_batch, SUPERPACKET) == [Drop.NONE]
    assert [(payload, gro) for payload, gro, _ in loop.receive(inbound_batch)] == [
        (segment, 0) for segment in SEGMENTS
    ]
    loop.sockets.close()


def test_datagram_of_more_than_64_kib_is_dropped_and_the_next_one_is_not(
    loop: Loop, outbound_batch: Outbound, inbound_batch: Inbound
) -> None:
    big, small = FromTun(FLOW.packet(bytes(65495))), FromTun(FLOW.packet(b"small"))
    assert loop.send(outbound_batch, small, big, small) == [Drop.NONE, Drop.TOO_BIG, Drop.NONE]
    payloads = [payload for payload, _, _ in loop.receive(inbound_batch)]
    assert b"".join(payloads) == encapsulated(small.packet, source=OWN_MAC) * 2


def test_errors_have_their_reasons() -> None:
    assert reason_of(libc.EAGAIN) == Drop.SEND_BUFFER_FULL
    assert reason_of(libc.ENOBUFS) == reason_of(libc.ENOMEM) == Drop.SEND_NO_BUFFERS
    assert reason_of(libc.EMSGSIZE) == Drop.TOO_BIG
    assert reason_of(libc.ENETUNREACH) == reason_of(libc.EHOSTUNREACH) == Drop.SEND_UNREACHABLE
    assert reason_of(libc.EPERM) == reason_of(libc.EACCES) == Drop.SEND_REFUSED
    assert reason_of(libc.EIO) == Drop.SEND_FAILED


# ---- opening ------------------------------------------------------------------------------------


def ports_of(group: WorkerSockets, family: int) -> list[int]:
    return [lane.getsockname()[1] for lane in group.lanes[family] if lane is not None]


def test_a_lanes_port_is_the_same_for_every_worker() -> None:
    port = free_port(LOOPBACK[4])
    groups = open_sockets([LOOPBACK[4]], port, LANES, 3)
    try:
        assert len(set(ports_of(groups[0], 0))) == LANES
        assert all(ports_of(group, 0) == ports_of(groups[0], 0) for group in groups)
        assert groups[0].lanes[1] == [None] * LANES
        assert groups[0].receivers[1] is None
    finally:
        for group in groups:
            group.close()


@pytest.mark.parametrize("version", [4, 6])
def test_each_worker_receives_what_arrives_on_its_cpu(version: int) -> None:
    address = LOOPBACK[version]
    port = free_port(address)
    usable = sorted(os.sched_getaffinity(0))
    cpus = usable[::-1][:8]  # not in the order of the workers
    groups = open_sockets([address], port, 1, len(cpus), steer_by=cpus)
    try:
        for group, cpu in zip(groups, cpus, strict=True):
            os.sched_setaffinity(0, {cpu})
            for _ in range(16):  # as many source ports: a hash would spread them
                with socket.socket(FAMILIES[version], socket.SOCK_DGRAM) as sender:
                    sender.sendto(b"x", (str(address), port))
            receiver = group.receivers[0 if version == 4 else 1]
            assert receiver is not None
            receiver.settimeout(5)
            assert [receiver.recv(100) for _ in range(16)] == [b"x"] * 16
    finally:
        os.sched_setaffinity(0, usable)
        for group in groups:
            group.close()


def test_packet_on_a_cpu_without_worker_goes_by_the_hash() -> None:
    address, port = LOOPBACK[4], free_port(LOOPBACK[4])
    [group] = open_sockets([address], port, 1, 1, steer_by=[4095])
    receiver = group.receivers[0]
    assert receiver is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (str(address), port))
    receiver.settimeout(5)
    assert receiver.recv(100) == b"x"
    group.close()


def test_lane_receives_nothing() -> None:
    [group] = open_sockets([LOOPBACK[4]], free_port(LOOPBACK[4]), 1, 1)
    lane = group.lanes[0][0]
    assert lane is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"unwanted", lane.getsockname())
        with pytest.raises(BlockingIOError):
            lane.recv(100)
    group.close()


def test_port_that_is_taken_and_address_that_is_not_ours_are_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(SocketError, match=f"port: UDP port {port} on 127.0.0.1 is taken"):
            open_sockets([LOOPBACK[4]], port, LANES, 2)
    with pytest.raises(SocketError, match=r"address: 192\.0\.2\.1 is not an address of this host"):
        open_sockets([ip_address("192.0.2.1")], port, LANES, 1)
