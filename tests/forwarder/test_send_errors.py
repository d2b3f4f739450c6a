"""What the kernel refuses to send, made to happen on a real interface: counted, and no more.

host0 eth0 ── host1 eth0      the sockets are host0's, VTEP B is host1
"""

import contextlib
import select
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest

from forwarder.batch import Outbound
from forwarder.counters import Drop, Total
from forwarder.udp import SEND_WAIT_MS, open_sockets
from perf.topology import UNDERLAY_DEVICE, Host, Topology
from tests.forwarder.fibs import OWN_MAC
from tests.forwarder.packets import NET_B, Flow, encapsulated
from tests.forwarder.sending import Sending
from tests.forwarder.stages import LANES, FromTun
from tests.forwarder.test_outbound import superpacket
from tests.reference.segmentation import split

pytestmark = pytest.mark.netns

PORT = 8472
IP_RECVERR = 11
FLOW = Flow.between(4, "tcp", 1, NET_B)
GOOD = FromTun(FLOW.packet(b"good"))
BIG = superpacket(FLOW.packet(bytes(i & 0xFF for i in range(60_000))), 1400)


class Wire:
    """What host0 sends, and what host1 gets."""

    def __init__(self, near: Host, far: Host) -> None:
        self.near = near
        with far.entered():
            self.receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            self.receiver.bind((str(far.address), PORT))
            self.receiver.settimeout(5)
        with near.entered():
            [sockets] = open_sockets([near.address], PORT, LANES, 1)
        self.sending = Sending.to(far.address, PORT, sockets)
        self.send = self.sending.send

    def drain(self) -> None:
        """Takes what has got through; a veth hands it over as it is sent."""
        while select.select([self.receiver], [], [], 0)[0]:
            self.receiver.recv(65535)

    def close(self) -> None:
        self.receiver.close()
        self.sending.sockets.close()


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    with Topology(2, default_route=False) as topology:
        yield topology.hosts


@pytest.fixture
def wire(hosts: list[Host], outbound_batch: Outbound) -> Iterator[Wire]:
    """It carries packets before, and again afterwards, whatever happened in between."""
    wire = Wire(*hosts)
    assert wire.send(outbound_batch, GOOD) == [Drop.NONE]
    assert wire.receiver.recv(65535) == encapsulated(GOOD.packet, source=OWN_MAC)
    yield wire
    assert wire.send(outbound_batch, GOOD) == [Drop.NONE]
    assert wire.receiver.recv(65535) == encapsulated(GOOD.packet, source=OWN_MAC)
    wire.close()


@contextlib.contextmanager
def slow_queue(host: Host, limit_bytes: int) -> Iterator[None]:
    """The interface sends 125 bytes a second, after a first packet."""
    tc = ["tc", "qdisc", "add", "dev", UNDERLAY_DEVICE, "root"]
    host.run([*tc, "tbf", "rate", "1kbit", "burst", "2000", "limit", str(limit_bytes)])
    try:
        yield
    finally:
        host.run([*tc[:2], "del", *tc[3:]])


def test_full_send_buffer_is_waited_for_once_and_counted(
    wire: Wire, outbound_batch: Outbound
) -> None:
    """EAGAIN."""
    for lane in wire.sending.lanes:
        lane.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel makes it its least
    with slow_queue(wire.near, 1_000_000):
        wire.send(outbound_batch, BIG)  # fills them
        began = time.monotonic()
        reasons = wire.send(outbound_batch, *[BIG] * 4)
        took_s = time.monotonic() - began
    assert reasons == [Drop.SEND_BUFFER_FULL] * 4
    assert took_s < 100 * SEND_WAIT_MS / 1000  # not for each of 180 datagrams
    wire.drain()


def test_full_device_queue_is_counted(wire: Wire, outbound_batch: Outbound) -> None:
    """ENOBUFS, which UDP tells those alone who ask for errors (udp(7))."""
    for lane in wire.sending.lanes:
        lane.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    with slow_queue(wire.near, 2000):
        reasons = [wire.send(outbound_batch, GOOD)[0] for _ in range(60)]
    assert set(reasons) == {Drop.NONE, Drop.SEND_NO_BUFFERS}
    assert reasons[-1] == Drop.SEND_NO_BUFFERS
    wire.drain()


def test_message_that_does_not_fit_the_interface_is_sent_in_fragments(
    wire: Wire, outbound_batch: Outbound
) -> None:
    """EMSGSIZE for the message as a whole; nothing of it is lost."""
    wire.near.ip(f"link set {UNDERLAY_DEVICE} mtu 1000")
    try:
        assert wire.send(outbound_batch, BIG) == [Drop.NONE]
    finally:
        wire.near.ip(f"link set {UNDERLAY_DEVICE} mtu 1500")
    segments = split(BIG.packet, 1400)
    arrived = [wire.receiver.recv(65535) for _ in segments]
    assert arrived == [encapsulated(segment, source=OWN_MAC) for segment in segments]
    assert wire.sending.row[Total.OUT_SEGMENTS] == 1 + len(segments)
    assert wire.sending.tunnel.udp_gso[0] == 1  # the next interface may take it


def test_interface_that_is_down_is_counted(wire: Wire, outbound_batch: Outbound) -> None:
    """ENETUNREACH: its routes have gone with it."""
    wire.near.ip(f"link set {UNDERLAY_DEVICE} down")
    try:
        assert wire.send(outbound_batch, GOOD, BIG) == [Drop.SEND_UNREACHABLE] * 2
    finally:
        wire.near.ip(f"link set {UNDERLAY_DEVICE} up")


def test_what_the_firewall_refuses_is_counted(wire: Wire, outbound_batch: Outbound) -> None:
    """EPERM."""
    chain = f"chain out {{ type filter hook output priority 0; udp dport {PORT} drop; }};"
    wire.near.run(["nft", f"table inet refuses {{ {chain} }}"])
    try:
        assert wire.send(outbound_batch, BIG, GOOD) == [Drop.SEND_REFUSED] * 2
    finally:
        wire.near.run(["nft", "delete table inet refuses"])


def test_one_refusal_keeps_no_other_packet_from_leaving(
    wire: Wire, outbound_batch: Outbound
) -> None:
    """A short count of sendmmsg: it goes on behind the message that was refused."""
    too_big = FromTun(FLOW.packet(bytes(65495)))
    reasons = wire.send(outbound_batch, GOOD, too_big, GOOD, too_big, GOOD)
    assert reasons == [Drop.NONE, Drop.TOO_BIG, Drop.NONE, Drop.TOO_BIG, Drop.NONE]
    assert [wire.receiver.recv(65535) for _ in range(3)] == [
        encapsulated(GOOD.packet, source=OWN_MAC)
    ] * 3


def test_socket_that_is_closed_is_counted(wire: Wire, outbound_batch: Outbound) -> None:
    """EBADF: none of the errors that are expected."""
    tunnel = wire.sending.tunnel
    wire.sending.tunnel = tunnel._replace(sockets=np.full(2 * LANES, 1023, np.int64))
    assert wire.send(outbound_batch, GOOD, BIG) == [Drop.SEND_FAILED] * 2
    wire.sending.tunnel = tunnel
