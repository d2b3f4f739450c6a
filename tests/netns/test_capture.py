"""`loden capture` on a host whose pods speak: what Wireshark makes of it, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from forwarder.capture_reader import Capture, Wanted
from forwarder.capture_ring import Control, ring_of
from forwarder.shm import map_writable
from perf.namespace import run_command
from perf.nodes import LODEN, PACKAGES_DIR
from perf.traffic import ping
from tests.forwarder.packets import Flow, encapsulated
from tests.netns.forwarders import PORT, VNI, Pair, pair_of_forwarders
from tests.netns.nodes import wait_for
from tests.netns.streams import copy_by_tcp

pytestmark = pytest.mark.netns

NOWHERE = ip_address("10.7.200.1")
"""In the overlay, and no host's."""
FIELDS = (
    "frame.packet_flags_direction",
    "frame.comment",
    "frame.time_epoch",
    "frame.len",
    "frame.cap_len",
    "ip.src",
    "ip.dst",
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """With a stranger on the same wire."""
    with pair_of_forwarders(tmp_path_factory.mktemp("capture"), hosts=3) as pair:
        yield pair


class Running:
    """`loden capture` at the first end of a pair."""

    def __init__(self, pair: Pair, *words: str) -> None:
        argv = [*LODEN, "capture", "--run-dir", str(pair.ends[0].run_dir), *words]
        self.process = pair.hosts[0].popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=PACKAGES_DIR
        )
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), True)
        self.first_words = self.process.stderr.readline().decode()

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
        """Its exit status, standard output and the rest of standard error."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str, str]:
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), True)
        output, errors = self.process.communicate(timeout=15)
        return self.process.returncode, output.decode(errors="replace"), errors.decode()


@contextlib.contextmanager
def capturing(pair: Pair, *words: str) -> Iterator[Running]:
    running = Running(pair, *words)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def dissected(path: Path) -> list[dict[str, str]]:
    """What tshark reads in a file, packet by packet."""
    argv = ["tshark", "-n", "-r", str(path), "-T", "fields"]
    rows = run_command([*argv, *(word for name in FIELDS for word in ("-e", name))]).stdout
    return [dict(zip(FIELDS, row.split("\t"), strict=True)) for row in rows.splitlines()]


def send_as_stranger(pair: Pair, payload: bytes) -> None:
    """From the host that is no node, to the first one's VXLAN port."""
    near = pair.ends[0]
    with pair.hosts[2].entered():
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with stranger:
        stranger.sendto(payload, (str(near.underlay), PORT))


def test_wireshark_shows_direction_fate_time_and_length(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "inner.pcapng"
    near, far = (end.pod for end in pair.ends)
    before = time.time()
    with capturing(pair, "-w", str(path)) as running:
        assert "capturing on loden0" in running.first_words
        assert ping(near, far.address, count=1, packet_bytes=700).received == 1
        assert ping(near, NOWHERE, count=1, timeout_s=0.5).received == 0
        inner = Flow(source="10.7.1.2", destination="10.7.0.2", protocol="udp").packet(b"spoofed")
        send_as_stranger(pair, encapsulated(inner, to=pair.ends[0].mac, vni=VNI))
        send_as_stranger(pair, encapsulated(inner, to=pair.ends[0].mac, vni=VNI + 1))
        send_as_stranger(pair, b"short")
        wait_for(lambda: path.stat().st_size > 0 and len(dissected(path)) >= 6, "all packets")
        status, _, said = running.end()
    packets = dissected(path)
    assert (status, f"{len(packets)} packets captured, 0 missed") == (0, said.strip())
    assert path.stat().st_mode & 0o777 == 0o600
    peer, stranger = pair.ends[1].underlay, pair.hosts[2].address
    no_route = "dropped no_route: no route for the inner destination"
    told = {(p[FIELDS[0]], p["frame.comment"].split(" VXLAN")[0], p["ip.dst"]) for p in packets}
    assert {
        ("2", f"to {peer}", str(far.address)),
        ("1", f"from {peer}", str(near.address)),
        ("2", no_route, "10.7.200.1"),
    } <= {(way.removeprefix("0x").lstrip("0"), comment, to) for way, comment, to in told}
    comments = [packet["frame.comment"] for packet in packets]
    for reason in ("unknown_vtep", "wrong_vni", "truncated"):
        assert any(f"from {stranger}, dropped {reason}" in comment for comment in comments)
    assert any("VXLAN header 08 00 00 00 00 00 02 00" in comment for comment in comments)
    echo = next(p for p in packets if p["ip.dst"] == str(far.address))
    assert echo["frame.len"] == echo["frame.cap_len"] == str(700 + 14)
    assert all(before < float(packet["frame.time_epoch"]) < time.time() for packet in packets)


def test_tcp_is_shown_in_superpackets_both_ways(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "tcp.pcapng"
    near, far = (end.pod for end in pair.ends)
    with capturing(pair, "-w", str(path), "--snap-bytes", "128", str(far.address)) as running:
        data = bytes(3_000_000)
        copy_by_tcp(near, far, far.address, data)
        copy_by_tcp(far, near, near.address, data)
        assert running.end()[0] == 0
    packets = dissected(path)
    assert max(int(packet["frame.cap_len"]) for packet in packets) == 128
    for source in (near.address, far.address):
        lengths = [int(p["frame.len"]) for p in packets if p["ip.src"] == str(source)]
        assert max(lengths) > 3000
        assert sum(lengths) > len(data)


def test_filtered_packets_are_told_in_lines(pair: Pair) -> None:
    near, far = (end.pod for end in pair.ends)
    words = ["--drop", "no_route", "10.7.0.0/24", "10.7.200.0/24", "--count", "2"]
    with capturing(pair, *words) as running:
        assert ping(near, far.address, count=2).received == 2
        ping(near, NOWHERE, count=2, timeout_s=0.3)
        status, output, said = running.wait()
    lines = output.splitlines()
    assert (status, len(lines), said.strip()) == (0, 2, "2 packets captured, 0 missed")
    ending = "out 10.7.0.2 > 10.7.200.1 ICMP, 84 bytes, dropped no_route: no route for"
    assert all(ending in line for line in lines)


def test_pipe_can_be_watched_as_it_grows(pair: Pair) -> None:
    near, far = (end.pod for end in pair.ends)
    with capturing(pair, "-w", "-", "--direction", "out") as running:
        assert running.process.stdout is not None
        argv = ["tshark", "-l", "-n", "-r", "-", "-c", "1", "-T", "fields", "-e", "ip.dst"]
        with subprocess.Popen(argv, stdin=running.process.stdout, stdout=subprocess.PIPE) as reader:
            running.process.stdout.close()
            assert ping(near, far.address, count=3).received == 3
            output, _ = reader.communicate(timeout=15)
        assert output.decode().strip() == str(far.address)
        # Its reader has gone: that is an end, and no failure.
        ping(near, far.address, count=1)
        assert running.process.wait(10) == 0


def test_killed_capture_disarms_itself_and_the_next_one_begins_at_once(pair: Pair) -> None:
    near, far = (end.pod for end in pair.ends)
    fd, _ = pair.ends[0].client.capture()
    controls = ring_of(map_writable(fd), 0).controls
    with capturing(pair) as running:
        with capturing(pair) as second:
            assert "another capture is running" in second.first_words
            assert second.wait()[0] == 1
        running.end(signal.SIGKILL)
    assert controls[Control.ARMED_UNTIL_NS] != 0

    def is_disarmed() -> bool:
        ping(near, far.address, count=1)
        return bool(controls[Control.ARMED_UNTIL_NS] == 0)

    wait_for(is_disarmed, "a worker finds that the capture has gone")
    with Capture(fd, 1, Wanted()):
        assert controls[Control.ARMED_UNTIL_NS] != 0
    os.close(fd)
