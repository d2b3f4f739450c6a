"""What every test can rely on: the machine has what the test needs, and nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from forwarder.api import ForwarderClient, socket_path
from perf.namespace import list_namespaces

REQUIRE_ALL = "LODEN_REQUIRE_ALL"
"""In the environment: what this machine cannot test is a failure. `make test` and CI set it."""

FORWARDER_START_S = 240.0
"""The very first start of all compiles the data path."""

SESSION_MARK = "LODEN_TEST_SESSION"
"""In the environment of every process the tests start, so that a stray one is known as ours."""

TOOLS = {
    "netns": ("ip", "nft", "iptables", "ping", "iperf3", "ethtool", "socat", "tcpdump", "tshark"),
    "etcd": ("etcd", "etcdctl"),
    "systemd": ("systemd-analyze", "systemctl", "unshare", "nsenter"),
    "docker": ("dockerd", "docker", "containerd", "runc", "busybox", "systemd-analyze"),
    "cni": ("/usr/lib/cni/bridge", "/usr/lib/cni/portmap", "busybox"),
}
"""The programs a test with this mark may use."""

# gRPC's fork handlers run in a child of a process that has gRPC threads, and can end it before it
# becomes the program it was forked for: here many an etcd is started beside clients.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

# Whatever this machine is configured to run, no test runs it.
os.environ["FLANNELD_CONFIG"] = os.devnull

# A busy machine is no failure of what is tested.
hypothesis.settings.register_profile("loden", deadline=None)
hypothesis.settings.load_profile("loden")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in TOOLS:
        if item.get_closest_marker(mark) and (lack := what_is_lacking(mark)):
            if os.environ.get(REQUIRE_ALL):
                pytest.fail(f"{lack} (and {REQUIRE_ALL} is set)", pytrace=False)
            pytest.skip(lack)


def what_is_lacking(mark: str) -> str | None:
    """Why this machine cannot run tests with the mark, or None if it can."""
    if mark == "netns" and os.geteuid() != 0:
        return "building network namespaces needs root"
    if mark == "netns" and not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    missing = [tool for tool in TOOLS[mark] if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Set up before every other fixture, and so torn down after them."""
    mark = str(os.getpid())
    os.environ[SESSION_MARK] = mark
    yield
    del os.environ[SESSION_MARK]
    namespaces = [n.name for n in list_namespaces("") if re.search(rf"\b{mark}\b", n.name)]
    assert not namespaces, f"tests left namespaces behind: {namespaces}"
    processes = stray_processes(mark)
    assert not processes, f"tests left processes behind: {processes}"


@pytest.fixture(scope="session")
def idle_forwarder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run dir of a forwarder that nobody configures: half a node."""
    run_dir = tmp_path_factory.mktemp("run")
    forwarder = subprocess.Popen([sys.executable, "-m", "forwarder", "--run-dir", str(run_dir)])
    try:
        deadline = time.monotonic() + FORWARDER_START_S
        while not socket_path(run_dir).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with ForwarderClient(run_dir, FORWARDER_START_S) as client:
            client.hello()
        yield run_dir
    finally:
        forwarder.terminate()
        forwarder.wait(10)


def stray_processes(mark: str) -> list[str]:
    """Our children, and whatever else carries the session's mark: "pid: command line".

    Not zombies: they have ended, and where we are a container's first process, orphans become
    ours to collect.
    """
    entry = f"{SESSION_MARK}={mark}".encode()
    strays = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = _state_and_parent(process)
            environment = (process / "environ").read_bytes().split(b"\0")
            if state != "Z" and (parent == os.getpid() or entry in environment):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                strays.append(f"{process.name}: {command}")
        except OSError:
            continue  # it ended meanwhile, or is somebody else's
    return strays


def _state_and_parent(process: Path) -> tuple[str, int]:
    # proc(5): the third and fourth field; the second, in parentheses, may contain anything.
    state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
    return state, int(parent)
