"""`loden run`'s keeping of its children, with children that do as they are told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from control.exits import EXIT_FINAL, EXIT_RESTART, EXIT_USAGE
from control.run import RESTART_MAX_S, SETTLED_S, Child, Run, RunDirError
from tests.control.conftest import wait_for

CHILD = """
import os, pathlib, signal, sys, time
directory, name, ending_s = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
def end(*_):
    time.sleep(ending_s)
    with (directory / "ended").open("a") as ended:
        print(name, file=ended)
    sys.exit()
signal.signal(signal.SIGTERM, end)
with (directory / name).open("a") as begun:
    print(os.getpid(), file=begun)
signal.pause()
"""
RUN = """
import ast, logging, pathlib, sys
from control.run import Run
logging.basicConfig(format="%(message)s")
sys.exit(Run(pathlib.Path(sys.argv[1]), *map(ast.literal_eval, sys.argv[2:])).run())
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Runs a forwarder and a control: a child that goes on until it is told to end, or `control`.

    `ending_s`: how long control takes to end.  What is said goes to `tmp_path`/log.
    """
    started: list[subprocess.Popen[bytes]] = []

    def run(control: Sequence[str] = (), ending_s: float = 0.0) -> subprocess.Popen[bytes]:
        child = [sys.executable, "-c", CHILD, str(tmp_path)]
        forwarder = [*child, "forwarder", "0"]
        control = control or [*child, "control", str(ending_s)]
        argv = [sys.executable, "-c", RUN, str(tmp_path / "run"), repr(forwarder), repr(control)]
        with (tmp_path / "log").open("ab") as log:
            started.append(subprocess.Popen(argv, stderr=log))
        return started[-1]

    yield run
    for process in started:
        process.terminate()
        process.wait(10)


def pids(directory: Path, name: str) -> list[int]:
    """Of all children of this name so far."""
    path = directory / name
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def environment_of(directory: Path, name: str) -> set[str]:
    """The names of the variables that the first child of this name was given."""
    environ = Path(f"/proc/{pids(directory, name)[0]}/environ").read_bytes().decode()
    return {entry.partition("=")[0] for entry in environ.split("\0")}


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_ends_control_first(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    run = start()
    wait_for(lambda: pids(tmp_path, "forwarder") and pids(tmp_path, "control"))
    run.send_signal(number)
    assert run.wait(10) == 0
    assert (tmp_path / "ended").read_text().split() == ["control", "forwarder"]
    assert list((tmp_path / "run").iterdir()) == []


def test_control_alone_speaks_to_systemd_and_run_says_goodbye(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WATCHDOG_PID is run's, which systemd started; etcd, say, would call itself ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10.0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        monkeypatch.setenv("WATCHDOG_PID", "1")
        run = start()
        wait_for(lambda: pids(tmp_path, "control") and pids(tmp_path, "forwarder"))
        wanted = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
        told = {name: environment_of(tmp_path, name) & wanted for name in ("control", "forwarder")}
        assert told == {"control": {"NOTIFY_SOCKET", "WATCHDOG_USEC"}, "forwarder": set()}
        run.terminate()
        assert systemd.recv(1024) == b"STOPPING=1"


def test_child_that_dies_is_started_again_at_once(start: Start, tmp_path: Path) -> None:
    start()
    wait_for(lambda: pids(tmp_path, "forwarder") and pids(tmp_path, "control"))
    os.kill(pids(tmp_path, "control")[0], signal.SIGKILL)
    wait_for(lambda: len(pids(tmp_path, "control")) == 2, timeout_s=1)
    assert lives(pids(tmp_path, "forwarder")[0])
    assert len(pids(tmp_path, "forwarder")) == 1


@pytest.mark.parametrize("status", [EXIT_FINAL, EXIT_USAGE])
def test_child_that_ends_for_good_ends_all_with_its_status(
    start: Start, tmp_path: Path, status: int
) -> None:
    run = start(shell(f"echo nothing to be done >&2; exit {status}"))
    assert run.wait(10) == status
    assert (tmp_path / "log").read_text() == "nothing to be done\n"
    assert not any(map(lives, pids(tmp_path, "forwarder")))


def test_child_that_wants_to_be_started_anew_is_not_delayed(start: Start, tmp_path: Path) -> None:
    begun = tmp_path / "control"
    is_tenth = f"test $(wc -l < {begun}) -eq 10"
    start(shell(f"echo $$ >> {begun}; {is_tenth} && exec sleep 9; exit {EXIT_RESTART}"))
    wait_for(lambda: len(pids(tmp_path, "control")) == 10, timeout_s=5)


def test_children_do_not_outlive_it(start: Start, tmp_path: Path) -> None:
    run = start()
    wait_for(lambda: pids(tmp_path, "forwarder") and pids(tmp_path, "control"))
    run.kill()
    wait_for(lambda: not any(map(lives, pids(tmp_path, "forwarder") + pids(tmp_path, "control"))))
    assert sorted((tmp_path / "ended").read_text().split()) == ["control", "forwarder"]


def test_run_dir_is_held_until_the_last_child_has_ended(start: Start, tmp_path: Path) -> None:
    run = start(ending_s=0.5)
    wait_for(lambda: pids(tmp_path, "control"))
    run.kill()
    start()
    wait_for(lambda: len(pids(tmp_path, "control")) == 2)
    assert not lives(pids(tmp_path, "control")[0])


def test_second_run_in_a_run_dir_is_refused(start: Start, tmp_path: Path) -> None:
    start()
    wait_for(lambda: pids(tmp_path, "control"))
    second = Run(tmp_path / "run", ["true"], ["true"])
    with pytest.raises(RunDirError, match=r"another 'loden run' uses .*; stop it, or choose"):
        second.run()


def test_run_dir_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirError, match=r"run-dir: .*/file/run cannot be used: Not a directory"):
        Run(tmp_path / "file" / "run", ["true"], ["true"]).run()


def test_child_that_keeps_dying_waits_longer_each_time() -> None:
    child = Child("control", ["true"], started_at=time.monotonic())
    delays = []
    for _ in range(10):
        child.note_end(1)
        delays.append(child.due_at - time.monotonic())
    assert delays[0] <= 0
    assert delays[1] == pytest.approx(0.1, abs=0.02)
    assert delays[2] == pytest.approx(0.2, abs=0.02)
    assert delays[-1] == pytest.approx(RESTART_MAX_S, abs=0.02)


def test_child_that_lived_long_is_started_again_without_delay() -> None:
    child = Child("control", ["true"], delay_s=RESTART_MAX_S)
    child.started_at = time.monotonic() - SETTLED_S - 1
    child.note_end(1)
    assert child.due_at <= time.monotonic()
