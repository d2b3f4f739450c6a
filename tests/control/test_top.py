"""`loden top`: rates between two looks, in order; and a terminal that is left as it was."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from control.cli import main
from control.top import ORDERS, Sample, Top, compare, render, take_sample
from forwarder.api import ForwarderClient
from forwarder.rpc import RpcError

ALTERNATE_SCREEN, NORMAL_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"


@pytest.fixture
def idle(idle_forwarder: Path) -> Sample:
    with ForwarderClient(idle_forwarder) as client:
        return take_sample(client)


def peer(out_packets: int, out_bytes: int, in_packets: int, in_bytes: int) -> dict[str, int]:
    return {
        "out_packets": out_packets,
        "out_bytes": out_bytes,
        "in_packets": in_packets,
        "in_bytes": in_bytes,
    }


def sample_after(before: Sample, seconds: float, peers: dict[str, dict[str, int]]) -> Sample:
    return Sample(before.at + seconds, before.stats, peers)


def text_of(view: Any, order: str = "bytes", peers_shown: int | None = None) -> str:
    output = io.StringIO()
    Console(file=output, width=80).print(render(view, order, peers_shown))
    return output.getvalue()


def test_rates_of_peers_are_those_between_the_looks(idle: Sample) -> None:
    before = sample_after(idle, 0, {"192.0.2.1": peer(10, 1000, 20, 2000)})
    after = sample_after(idle, 2, {"192.0.2.1": peer(30, 5000, 20, 2000)})
    assert compare(before, after).peers == [
        ("192.0.2.1", {"out_packets": 10, "out_bytes": 2000, "in_packets": 0, "in_bytes": 0})
    ]


def test_peers_that_came_count_from_nothing_and_those_that_went_are_gone(idle: Sample) -> None:
    before = sample_after(idle, 0, {"192.0.2.1": peer(10, 1000, 20, 2000)})
    after = sample_after(idle, 1, {"192.0.2.2": peer(5, 50, 0, 0)})
    ((name, rates),) = compare(before, after).peers
    assert (name, rates["out_packets"]) == ("192.0.2.2", 5)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("bytes", ["b", "c", "a"]),
        ("packets", ["a", "b", "c"]),
        ("sent", ["c", "b", "a"]),
        ("received", ["b", "a", "c"]),
    ],
)
def test_most_comes_first(idle: Sample, order: str, expected: list[str]) -> None:
    nothing = peer(0, 0, 0, 0)
    peers = {
        "node-a": peer(100, 1, 100, 40),
        "node-b": peer(20, 30, 20, 50),
        "node-c": peer(1, 50, 1, 0),
    }
    before = sample_after(idle, 0, dict.fromkeys(peers, nothing))
    view = compare(before, sample_after(idle, 1, peers))
    assert re.findall(r"node-(\w)", text_of(view, order)) == expected
    assert set(ORDERS) >= {order}


def test_screen_keeps_within_80_columns_and_the_peers_there_is_room_for(idle: Sample) -> None:
    peers = {f"2001:db8::{n:x}": peer(n, 10**12, n, 10**12) for n in range(100)}
    view = compare(sample_after(idle, 0, {}), sample_after(idle, 1, peers))
    text = text_of(view, peers_shown=5)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("2001:db8") == 5
    assert "95 more" in text
    assert "8000 G" in text


def test_once_prints_a_table_for_scripts(idle_forwarder: Path) -> None:
    words = ["top", "--once", "--interval", "0.1", "--run-dir", str(idle_forwarder)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "worker" in result.output
    assert "peer" in result.output
    assert "\x1b" not in result.output


def test_without_a_forwarder_it_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["top", "--run-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert f"no forwarder is running in {tmp_path}" in result.output


def test_forwarder_that_went_is_missed_from_then_on(tmp_path: Path) -> None:
    top = Top(tmp_path, "bytes")
    with pytest.raises(RpcError):
        top.look()
    output = io.StringIO()
    Console(file=output, width=200).print(top.picture(None))
    assert output.getvalue().endswith("(see --run-dir); for 0 s\n")


# ---- at a terminal ------------------------------------------------------------------------------


@dataclass
class Terminal:
    """A pseudo-terminal with `loden top` in its foreground."""

    pid: int
    fd: int
    settings: list[Any]
    """Before it was started."""
    output: bytes = b""

    def read_until(self, condition: Callable[[bytes], bool], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition(self.output):
            assert time.monotonic() < deadline, self.output
            if select.select([self.fd], [], [], 0.1)[0]:
                self.output += os.read(self.fd, 65536)


@pytest.fixture
def terminal(idle_forwarder: Path) -> Iterator[Terminal]:
    # The parent opens the terminal too: its settings stay to be looked at.
    argv = [sys.executable, "-m", "control", "top", "--run-dir", str(idle_forwarder)]
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", COLUMNS="80", LINES="24")
        os.execv(sys.executable, argv)
    terminal = Terminal(pid, fd, termios.tcgetattr(fd))
    yield terminal
    os.close(fd)


@pytest.mark.parametrize("end", ["q", "Ctrl-C", "SIGTERM"])
def test_terminal_is_left_as_it_was(terminal: Terminal, end: str) -> None:
    terminal.read_until(lambda output: ALTERNATE_SCREEN in output and b"by bytes" in output)
    assert termios.tcgetattr(terminal.fd) != terminal.settings, "keys come without Enter"
    os.write(terminal.fd, b"s")
    terminal.read_until(lambda output: b"by packets" in output)
    if end == "SIGTERM":
        os.kill(terminal.pid, signal.SIGTERM)
    else:
        os.write(terminal.fd, b"q" if end == "q" else b"\x03")
    terminal.read_until(lambda output: NORMAL_SCREEN in output)
    _, status = os.waitpid(terminal.pid, 0)
    expected = 128 + signal.SIGTERM if end == "SIGTERM" else 0
    assert os.waitstatus_to_exitcode(status) == expected
    assert termios.tcgetattr(terminal.fd) == terminal.settings
