"""Capturing: what is copied of a batch, what is left out, and how a capture ends."""

import os
import signal
import time
from collections.abc import Iterator
from ipaddress import ip_network

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder import capture, shm
from forwarder.batch import Inbound, Outbound
from forwarder.capture_reader import (
    SNAP_BYTES_MIN,
    Capture,
    CaptureBusy,
    Captured,
    Wanted,
)
from forwarder.capture_ring import (
    RING_BYTES,
    CaptureRing,
    Control,
    Direction,
    memory_bytes,
    ring_of,
)
from forwarder.counters import Drop
from forwarder.fib.routes import Blackhole
from tests.forwarder.fibs import to_array
from tests.forwarder.packets import (
    MAC_A,
    MAC_B,
    NET_A,
    NET_B,
    NET_C,
    VTEP_A,
    VTEP_B,
    VTEP_C,
    Flow,
    encapsulated,
    flows,
    make_node,
    odd_packets,
    payloads,
)
from tests.forwarder.stages import Arrived, FromTun, make_tunnel, run_inbound, run_outbound
from tests.reference.capture_filter import is_wanted

OUT, IN = Direction


@pytest.fixture
def memory() -> Iterator[int]:
    """The descriptor of a forwarder's capture memory, for two workers."""
    fd = shm.create("capture-under-test", memory_bytes(2))
    yield fd
    os.close(fd)


@pytest.fixture
def ring(memory: int) -> CaptureRing:
    """As the second worker has it."""
    return ring_of(shm.map_writable(memory), 1)


def start(memory: int, wanted: Wanted | None = None) -> Capture:
    return Capture(memory, 2, wanted or Wanted())


def forward_out(ring: CaptureRing, batch: Outbound, *packets: FromTun) -> None:
    """Node A sends a batch."""
    node = make_node("A")
    node.route_to(("10.9.0.0/16", Blackhole()))
    run_outbound(batch, make_tunnel(mac=MAC_A), node.view, packets)
    capture.outbound(ring, batch, len(packets), node.view)


def forward_in(ring: CaptureRing, batch: Inbound, *messages: Arrived) -> None:
    """Node B receives a batch."""
    node = make_node("B")
    delivery = run_inbound(batch, make_tunnel(mac=MAC_B), node.view, messages)
    capture.inbound(ring, batch, len(delivery.reasons), len(delivery.written))


def fates(packets: list[Captured]) -> list[tuple[Drop, object]]:
    return [(packet.reason, packet.vtep) for packet in packets]


# ---- what is copied -----------------------------------------------------------------------------


def test_outbound_packets_are_copied_with_their_fate(
    memory: int, ring: CaptureRing, outbound_batch: Outbound
) -> None:
    sent = [
        Flow().packet(b"to B"),
        Flow.between(6, "udp", 0, NET_C).packet(b"to C"),
        Flow(destination="172.16.0.1").packet(b"to nowhere"),
        Flow(destination="10.9.0.1").packet(b"to a hole"),
        b"\x45 is no packet",
    ]
    with start(memory) as running:
        forward_out(ring, outbound_batch, *map(FromTun, sent))
        packets = running.drain()
    assert fates(packets) == [
        (Drop.NONE, VTEP_B.address),
        (Drop.NONE, VTEP_C.address),
        (Drop.NO_ROUTE, None),
        (Drop.BLACKHOLE, None),
        (Drop.MALFORMED, None),
    ]
    assert [packet.frame[14:] for packet in packets] == sent
    assert packets[0].frame[:14] == MAC_B + MAC_A + b"\x08\x00"
    assert packets[1].frame[:14] == VTEP_C.mac + MAC_A + b"\x86\xdd"
    assert packets[2].frame[:14] == bytes(12) + b"\x08\x00"
    assert all(packet.direction is OUT for packet in packets)
    assert all(abs(packet.time_ns - time.time_ns()) < 10e9 for packet in packets)


def test_superpacket_is_copied_whole_before_it_is_split(
    memory: int, ring: CaptureRing, outbound_batch: Outbound
) -> None:
    packet = Flow().packet(bytes(range(256)) * 200)
    with start(memory) as running:
        forward_out(ring, outbound_batch, FromTun(packet, 1, 1400, 20, 16))
        (copied,) = running.drain()
    assert copied.original_bytes == 14 + len(packet)
    assert copied.frame[14:] == packet


def test_refused_frames_are_copied_with_the_reason(
    memory: int, ring: CaptureRing, inbound_batch: Inbound
) -> None:
    packet = Flow().packet(b"to B")
    stranger = VTEP_B.address
    whole = encapsulated(packet)
    odd = encapsulated(packet, vni=9)
    arriving = {
        Drop.WRONG_VNI: Arrived(odd, VTEP_A.address),
        Drop.NOT_OUR_MAC: Arrived(encapsulated(packet, to=MAC_A), VTEP_A.address),
        Drop.UNKNOWN_VTEP: Arrived(whole, stranger),
        Drop.SPOOFED_SOURCE: Arrived(whole, VTEP_C.address),
        Drop.NOT_IP: Arrived(whole[:20] + b"\x08\x06" + whole[22:], VTEP_A.address),
    }
    with start(memory) as running:
        forward_in(ring, inbound_batch, *arriving.values())
        packets = running.drain()
    assert fates(packets) == [(reason, a.sender) for reason, a in arriving.items()]
    assert [packet.frame for packet in packets] == [a.payload[8:] for a in arriving.values()]
    assert packets[0].vxlan == odd[:8]
    assert all(packet.direction is IN for packet in packets)


@pytest.mark.parametrize("length", [0, 5, 8, 21])
def test_datagram_too_short_for_a_frame_is_copied_as_far_as_it_goes(
    memory: int, ring: CaptureRing, inbound_batch: Inbound, length: int
) -> None:
    datagram = encapsulated(Flow().packet(b""))[:length]
    with start(memory) as running:
        forward_in(ring, inbound_batch, Arrived(datagram, VTEP_A.address))
        (packet,) = running.drain()
    assert (packet.reason, packet.frame) == (Drop.TRUNCATED, datagram[8:])
    assert packet.vxlan == datagram[:8].ljust(8, b"\0")
    assert packet.original_bytes == len(datagram[8:])


def test_delivered_packets_are_copied_as_the_chains_they_became(
    memory: int, ring: CaptureRing, inbound_batch: Inbound
) -> None:
    sizes, sequence, packets = [1000, 1000, 300], 5, []
    for size in sizes:
        packets.append(Flow().packet(bytes([size & 255]) * size, transport={"seq": sequence}))
        sequence += size
    other = Flow.between(6, "udp", 3, NET_B).packet(b"alone")
    arriving = [Arrived(encapsulated(packet), VTEP_A.address) for packet in (*packets, other)]
    with start(memory) as running:
        forward_in(ring, inbound_batch, *arriving[:3])
        (chain,) = running.drain()
        forward_in(ring, inbound_batch, *(Arrived(a.payload, VTEP_C.address) for a in arriving))
        assert {reason for reason, _ in fates(running.drain())} == {Drop.SPOOFED_SOURCE}
    payload = b"".join(bytes([size & 255]) * size for size in sizes)
    assert (chain.reason, chain.vtep) == (Drop.NONE, VTEP_A.address)
    assert chain.frame[:14] == MAC_B + MAC_A + b"\x08\x00"
    assert chain.frame[54:] == payload
    assert chain.original_bytes == len(chain.frame) == 54 + len(payload)
    assert int.from_bytes(chain.frame[16:18], "big") == 40 + len(payload)


def test_what_the_kernel_refused_is_copied_once_with_that_reason(
    memory: int, ring: CaptureRing, inbound_batch: Inbound
) -> None:
    """`deliver` marks every frame of a chain."""
    packets = [Flow().packet(b"x" * 9, transport={"seq": 9 * n}) for n in range(3)]
    node = make_node("B")
    messages = [Arrived(encapsulated(packet), VTEP_A.address) for packet in packets]
    delivery = run_inbound(inbound_batch, make_tunnel(mac=MAC_B), node.view, messages)
    inbound_batch.reason[:3] = Drop.TUN_DOWN
    with start(memory) as running:
        capture.inbound(ring, inbound_batch, 3, len(delivery.written))
        (packet,) = running.drain()
    assert (packet.reason, packet.original_bytes) == (Drop.TUN_DOWN, 54 + 27)


def test_snap_length_cuts_what_is_kept_and_not_the_length_told(
    memory: int, ring: CaptureRing, outbound_batch: Outbound, inbound_batch: Inbound
) -> None:
    packets = [Flow().packet(b"x" * 500, transport={"seq": 500 * n}) for n in range(3)]
    with start(memory, Wanted(snap_bytes=SNAP_BYTES_MIN)) as running:
        forward_out(ring, outbound_batch, FromTun(packets[0]))
        forward_in(
            ring, inbound_batch, *(Arrived(encapsulated(p), VTEP_A.address) for p in packets)
        )
        outbound, inbound = running.drain()
    assert outbound.frame[14:] == packets[0][: SNAP_BYTES_MIN - 14]
    assert outbound.original_bytes == 14 + len(packets[0])
    assert len(inbound.frame) == SNAP_BYTES_MIN
    assert inbound.original_bytes == 54 + 1500


# ---- what is left out ---------------------------------------------------------------------------

networks = st.sampled_from(
    [
        *(f"{NET_A[4]}2/32", f"{NET_A[4]}0/24", f"{NET_B[4]}2/31", "0.0.0.0/0", "192.0.2.0/24"),
        *(f"{NET_A[6]}2/128", f"{NET_B[6]}/64", "::/0", "fd07::/16", "2001:db8::/32"),
    ]
).map(ip_network)
filters = st.builds(
    Wanted,
    addresses=st.lists(networks, max_size=2).map(tuple),
    port=st.none() | st.sampled_from([80, 40000, 40003, 0]),
    reasons=st.frozensets(st.sampled_from(Drop)) | st.just(frozenset(Drop)),
    directions=st.frozensets(st.sampled_from(Direction)),
)
some_packets = st.builds(Flow.packet, flows(), payloads) | odd_packets() | st.binary(max_size=60)


@given(filters, some_packets, st.sampled_from(Direction), st.sampled_from(Drop))
def test_what_is_wanted_is_what_the_filter_says(
    wanted: Wanted, packet: bytes, direction: Direction, reason: Drop
) -> None:
    fd = shm.create("filter-under-test", memory_bytes(1))
    try:
        with Capture(fd, 1, wanted):
            controls = ring_of(shm.map_writable(fd), 0).controls
            data = to_array(packet.ljust(1, b"\0"))
            got = capture.is_wanted(controls, data, 0, len(packet), direction, np.int64(reason))
    finally:
        os.close(fd)
    assert bool(got) == is_wanted(wanted, packet, direction, reason)


@pytest.mark.parametrize(
    "fields",
    [
        {"addresses": (ip_network("10.0.0.0/8"),) * 3},
        {"port": 65536},
        {"snap_bytes": SNAP_BYTES_MIN - 1},
    ],
)
def test_filter_that_cannot_be_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="allowed: "):
        Wanted(**fields)  # type: ignore[arg-type]  # each is of its field's type


# ---- the ring -----------------------------------------------------------------------------------


def test_packets_of_all_sizes_come_through_in_order_round_and_round(
    memory: int, ring: CaptureRing, outbound_batch: Outbound
) -> None:
    sizes = [*range(0, 1400, 13), 30_000, 9_000]
    packets = [Flow().packet(bytes([n & 255]) * size) for n, size in enumerate(sizes)]
    seen = 0
    with start(memory) as running:
        for _ in range(3 * RING_BYTES // sum(map(len, packets)) + 1):
            forward_out(ring, outbound_batch, *map(FromTun, packets))
            drained = running.drain()
            assert [packet.frame[14:] for packet in drained] == packets
            seen += len(drained)
        assert running.missed == 0
    assert seen * 64 > RING_BYTES // 64


def test_packets_that_find_no_room_are_counted_as_missed(
    memory: int, ring: CaptureRing, outbound_batch: Outbound
) -> None:
    packets = [FromTun(Flow().packet(bytes(8000)))] * 40
    fed = 0
    with start(memory) as running:
        while running.missed == 0:
            forward_out(ring, outbound_batch, *packets)
            fed += len(packets)
            assert fed * 8000 < 2 * RING_BYTES
        missed = running.missed
        assert len(running.drain()) + missed == fed
        forward_out(ring, outbound_batch, *packets)
        assert (len(running.drain()), running.missed) == (len(packets), missed)
    with start(memory) as following:
        assert (following.drain(), following.missed) == ([], 0)


# ---- beginning and end --------------------------------------------------------------------------


def test_capture_that_is_gone_disarms_itself(
    memory: int, ring: CaptureRing, outbound_batch: Outbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forwarder.capture_reader.LEASE_S", 0.0)  # as one that was killed
    monkeypatch.setattr("forwarder.capture_reader.RENEW_S", 60.0)
    with start(memory) as running:
        assert ring.controls[Control.ARMED_UNTIL_NS] != 0
        forward_out(ring, outbound_batch, FromTun(Flow().packet(b"")))
        assert ring.controls[Control.ARMED_UNTIL_NS] == 0
        assert running.drain() == []


def test_capture_stays_armed_while_it_lives(memory: int, ring: CaptureRing) -> None:
    with start(memory):
        first = int(ring.controls[Control.ARMED_UNTIL_NS])
        deadline = time.monotonic() + 10
        while ring.controls[Control.ARMED_UNTIL_NS] <= first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert ring.controls[Control.ARMED_UNTIL_NS] == 0


def test_what_was_copied_for_an_earlier_capture_is_not_shown_to_the_next(
    memory: int, ring: CaptureRing, outbound_batch: Outbound
) -> None:
    with start(memory):
        forward_out(ring, outbound_batch, FromTun(Flow().packet(b"old")))
    with start(memory) as running:
        forward_out(ring, outbound_batch, FromTun(Flow().packet(b"new")))
        assert [packet.frame[54:] for packet in running.drain()] == [b"new"]


def test_second_capture_is_refused_until_the_first_has_ended(memory: int) -> None:
    with start(memory), pytest.raises(CaptureBusy, match="another capture is running"):
        start(memory)
    start(memory).close()


def test_killed_capture_does_not_keep_others_out(memory: int) -> None:
    arrived, arrive = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            held = start(memory)
            os.write(arrive, b"x")
            signal.pause()
            held.close()
        finally:
            os._exit(1)
    assert os.read(arrived, 1) == b"x"
    with pytest.raises(CaptureBusy):
        start(memory)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    start(memory).close()
    os.close(arrived)
    os.close(arrive)


def test_memory_is_given_back_at_the_end(
    memory: int, ring: CaptureRing, outbound_batch: Outbound
) -> None:
    before = os.fstat(memory).st_blocks
    with start(memory) as running:
        forward_out(ring, outbound_batch, *[FromTun(Flow().packet(bytes(60_000)))] * 6)
        assert os.fstat(memory).st_blocks * 512 > 6 * 60_000
        assert len(running.drain()) == 6
    assert os.fstat(memory).st_blocks <= before + 2 * 4096 * 3 // 512
