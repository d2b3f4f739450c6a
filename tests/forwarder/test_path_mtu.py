"""What the kernel knows of a way reaches the workers, and is what pods are told."""

from ipaddress import ip_address

import numpy as np
import pytest

from forwarder.batch import Outbound
from forwarder.counters import PEER_OUT_PACKETS, Drop
from forwarder.fib.routes import IPAddress, Local, RemoteVtep
from forwarder.path_mtu import PEERS_PER_REFRESH, PathMtus, mtu_towards
from tests.forwarder.fibs import SMALL, VNI, Fib, make_fib, vtep
from tests.forwarder.packets import MAC_B, NET_B, Flow
from tests.forwarder.stages import FromTun, make_tunnel, run_outbound
from tests.forwarder.test_outbound import superpacket

LOOPBACK = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
LIMITS = {4: 65535 - 50, 6: 65536 - 70}
"""Of loopback, whose MTU is 65536: more than an IPv4 packet can have."""
HUGE = 70_000


# ---- what the workers do with a limit -----------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "version", "expected"),
    [
        (0, 4, 1450),
        (0, 6, 1450),
        (1350, 4, 1350),
        (1350, 6, 1350),
        (1210, 4, 1210),
        (1210, 6, 1280),  # no IPv6 sender may be asked for less
        (1, 4, 68),
        (9000, 4, 1450),  # the device's MTU has shrunk since
    ],
)
def test_the_smaller_limit_holds_but_none_below_the_protocols(
    limit: int, version: int, expected: int
) -> None:
    assert mtu_towards(make_tunnel(path_mtu={5: limit}), 5, version) == expected


ROW = 1


@pytest.fixture(scope="module")
def far() -> Fib:
    """One peer, on adjacency row 1."""
    fib = make_fib()
    fib.route_to((NET_B[4] + "0/24", vtep(2)), (NET_B[6] + "/64", vtep(2)))
    return fib


def flow(version: int, *, protocol: str = "udp") -> Flow:
    return Flow.between(version, protocol, 1, NET_B)


def headers_of(version: int, protocol: str) -> int:
    return (20 if version == 4 else 40) + (20 if protocol == "tcp" else 8)


@pytest.mark.parametrize("version", [4, 6])
def test_packet_is_too_big_by_one_byte(outbound_batch: Outbound, far: Fib, version: int) -> None:
    tunnel = make_tunnel(path_mtu={ROW: 1300})
    fits = 1300 - headers_of(version, "udp")
    packets = [FromTun(flow(version).packet(bytes(size))) for size in (fits, fits + 1)]
    sent, reasons = run_outbound(outbound_batch, tunnel, far.view, packets)
    assert reasons == [Drop.NONE, Drop.TOO_BIG]
    assert sum(len(message.datagrams) for message in sent) == 1


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_superpacket_is_too_big_when_its_segments_are(
    outbound_batch: Outbound, far: Fib, version: int, protocol: str
) -> None:
    tunnel = make_tunnel(path_mtu={ROW: 1300})
    fits = 1300 - headers_of(version, protocol)
    packet = flow(version, protocol=protocol).packet(bytes(5000))
    packets = [superpacket(packet, size) for size in (fits, fits + 1)]
    _, reasons = run_outbound(outbound_batch, tunnel, far.view, packets)
    assert reasons == [Drop.NONE, Drop.TOO_BIG]


def test_ipv4_packet_that_may_be_cut_is_sent_all_the_same(
    outbound_batch: Outbound, far: Fib
) -> None:
    tunnel = make_tunnel(path_mtu={ROW: 1300})
    packet = FromTun(flow(4).packet(bytes(1400), {"flags": 0}))
    assert run_outbound(outbound_batch, tunnel, far.view, [packet])[1] == [Drop.NONE]


# ---- asking the kernel --------------------------------------------------------------------------


class Asked:
    """A FIB with one peer on loopback, and the counters of what was sent to it."""

    def __init__(self, version: int) -> None:
        self.address: IPAddress = LOOPBACK[version]
        self.limit = LIMITS[version]
        self.fib = make_fib()
        self.fib.route_to(("10.7.1.0/24", RemoteVtep(self.address, MAC_B, VNI, 8472)))
        self.fib.route_to(("10.7.2.0/24", Local()))
        self.per_peer = np.zeros((2, SMALL.adjacencies, 4), np.int64)
        self.path_mtus = PathMtus(self.fib.memory, self.per_peer)

    def send(self, row: int = ROW) -> None:
        self.per_peer[1, row, PEER_OUT_PACKETS] += 1

    def refresh(self, mtu_bytes: int) -> dict[str, int]:
        return self.path_mtus.refresh(LOOPBACK.values(), mtu_bytes)


@pytest.fixture(params=[4, 6])
def asked(request: pytest.FixtureRequest) -> Asked:
    return Asked(request.param)


def test_peer_gets_the_limit_of_the_way_to_it(asked: Asked) -> None:
    assert asked.refresh(HUGE) == {}  # nothing was sent yet
    asked.send()
    assert asked.refresh(HUGE) == {str(asked.address): asked.limit}
    assert asked.path_mtus.column[:3].tolist() == [0, asked.limit, 0]
    assert asked.path_mtus.limits() == {str(asked.address): asked.limit}


def test_limit_goes_when_everything_fits_again_though_nothing_is_sent(asked: Asked) -> None:
    asked.send()
    asked.refresh(HUGE)
    assert asked.refresh(HUGE) == {}  # nothing new
    assert asked.refresh(1450) == {str(asked.address): 0}
    assert asked.path_mtus.limits() == {}


def test_row_that_no_longer_leads_to_a_peer_loses_its_limit(asked: Asked) -> None:
    asked.send()
    asked.refresh(HUGE)
    asked.fib.writer.memory.adjacencies[ROW]["kind"] = 0
    asked.refresh(HUGE)
    assert not asked.path_mtus.column.any()


def test_what_is_no_peer_or_cannot_be_reached_has_no_limit(asked: Asked) -> None:
    asked.send(row=2)  # a local route's
    assert asked.refresh(HUGE) == {}
    asked.send()
    others = [a for a in LOOPBACK.values() if a != asked.address]
    assert asked.path_mtus.refresh(others, HUGE) == {}


def test_busy_peers_take_turns() -> None:
    per_peer = np.zeros((1, SMALL.adjacencies, 4), np.int64)
    fib = make_fib()
    peers = range(1, 41)
    fib.route_to(*((f"10.7.{n}.0/24", vtep(n, f"127.0.0.{n}")) for n in peers))
    path_mtus = PathMtus(fib.memory, per_peer)
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forwarder.path_mtu.PEERS_PER_REFRESH", 16)
        for _ in range(3):
            per_peer[0, 1:41, PEER_OUT_PACKETS] += 1
            asked += path_mtus.refresh([LOOPBACK[4]], HUGE)
    assert len(asked) == len(set(asked)) == 40
    assert PEERS_PER_REFRESH > 16


def test_worker_cannot_write_the_limits() -> None:
    column = PathMtus(make_fib().memory, np.zeros((1, SMALL.adjacencies, 4), np.int64)).column
    with pytest.raises(ValueError, match="read-only"):
        column[0] = 1
