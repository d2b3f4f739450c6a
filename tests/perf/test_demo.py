"""`loden demo` shows what it promises, and takes down what it built, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from perf.demo import KEPT_DIR, KEPT_PREFIX, command
from perf.namespace import list_namespaces

ROOT = Path(__file__).parents[2]
DEMO = (sys.executable, "-m", "control", "demo")
TIMEOUT_S = 300.0  # the first one compiles the data path

needs_all = [pytest.mark.netns, pytest.mark.etcd, pytest.mark.slow]


def start_demo(
    temporary: Path, *options: str, program: Sequence[str] = DEMO
) -> subprocess.Popen[str]:
    """A demo with its files below `temporary`."""
    return subprocess.Popen(
        [*program, "--seconds", "1", *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], wanted: str) -> None:
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if wanted in line:
            return
    pytest.fail(f"{wanted!r} never came:\n{''.join(lines)}")


def processes_below(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if str(folder) in words:
            found.append(words)
    return found


def assert_nothing_is_left(demo: subprocess.Popen[str], temporary: Path) -> None:
    assert list_namespaces(f"loden-{demo.pid}-") == []
    assert list(temporary.iterdir()) == []
    assert processes_below(temporary) == []


class TestWithHosts:
    pytestmark = needs_all

    def test_demo_carries_traffic_and_leaves_nothing(self, tmp_path: Path) -> None:
        demo = start_demo(tmp_path)
        output, _ = demo.communicate(timeout=TIMEOUT_S)

        assert demo.returncode == 0, output
        assert output.count("1450 bytes, DF: 3 of 3 came back") == 2
        assert output.count("Gbit/s") >= 2
        for promised in ("kpps", "Routes", "remote", "Workers", "Packets dropped"):
            assert promised in output
        assert_nothing_is_left(demo, tmp_path)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signal_takes_all_down(self, tmp_path: Path, number: signal.Signals) -> None:
        demo = start_demo(tmp_path)
        read_until(demo, "loden run on both")

        demo.send_signal(number)
        demo.communicate(timeout=60)

        assert demo.returncode == 128 + number
        assert_nothing_is_left(demo, tmp_path)

    def test_failure_is_told_and_leaves_nothing(self, tmp_path: Path) -> None:
        too_small = "import perf.demo; perf.demo.NETWORK = '10.5.0.0/30'; perf.demo.command()"
        demo = start_demo(tmp_path, program=(sys.executable, "-c", too_small))
        output, _ = demo.communicate(timeout=TIMEOUT_S)

        assert demo.returncode == 1
        assert "failed: " in output
        assert "10.5.0.0/30" in output.partition("failed: ")[2]
        assert_nothing_is_left(demo, tmp_path)

    @pytest.fixture
    def kept(self) -> Iterator[None]:
        yield
        subprocess.run([*DEMO, "--down"], cwd=ROOT, check=True)

    @pytest.mark.usefixtures("kept")
    def test_kept_demo_runs_on_until_it_is_taken_down(self, tmp_path: Path) -> None:
        demo = start_demo(tmp_path, "--keep")
        output, _ = demo.communicate(timeout=TIMEOUT_S)
        assert demo.returncode == 0, output

        typed = [line for line in output.splitlines() if "status --run-dir" in line]
        assert len(typed) == 2
        for line in typed:
            assert (
                subprocess.run(line, shell=True, cwd=ROOT, stdout=subprocess.DEVNULL).returncode
                == 0
            )
        again = subprocess.run([*DEMO, "--keep"], cwd=ROOT, capture_output=True, text=True)
        assert "a demo is up already" in again.stderr

        down = subprocess.run([*DEMO, "--down"], cwd=ROOT, capture_output=True, text=True)
        assert "has been taken down" in down.stdout
        assert list_namespaces(KEPT_PREFIX) == []
        assert not KEPT_DIR.exists()
        assert processes_below(KEPT_DIR) == []


@pytest.mark.parametrize(
    ("lack", "said"),
    [
        ("root", "Error: the demo builds network namespaces and needs root"),
        (
            "programs",
            "Error: programs are missing, install Debian's packages: "
            "etcd-server iproute2 iperf3 iputils-ping",
        ),
    ],
)
def test_what_is_lacking_is_said_in_one_line(
    lack: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000 if lack == "root" else 0)
    monkeypatch.setattr(Path, "exists", lambda _: True)
    if lack == "programs":
        monkeypatch.setenv("PATH", "")

    result = CliRunner().invoke(command)

    assert (result.exit_code, result.output) == (1, f"{said}\n")


def test_machine_without_tun_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Path, "exists", lambda path: path != Path("/dev/net/tun"))

    result = CliRunner().invoke(command)

    assert result.exit_code == 1
    assert result.output.startswith("Error: there is no /dev/net/tun")
