"""An etcd and loden nodes on the hosts of a topology, started as an operator starts them.

Each node keeps what it writes in a folder of its own:

    DIRECTORY/run          sockets of its processes (--run-dir)
    DIRECTORY/state        what outlives a restart (--state-dir)
    DIRECTORY/subnet.env   (--subnet-file)
    DIRECTORY/log          what it says

The processes belong to the host's namespace and end with it at the latest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from control.embedded_etcd import EmbeddedEtcd, find_etcd_binary
from control.subnet_env import SubnetEnv, read_subnet_env
from perf.topology import UNDERLAY_DEVICE, Host

ETCD_CLIENT_PORT = 2379
ETCD_PEER_PORT = 2380
ETCD_START_S = 30.0
NODE_START_S = 240.0
"""The first start of all compiles the data path, and two nodes may do so at once."""
ROUTES_S = 15.0
POLL_S = 0.05
LOG_TAIL_LINES = 15

LODEN = ("env", f"FLANNELD_CONFIG={os.devnull}", sys.executable, "-m", "control")
"""Not as this machine itself may be configured to run it."""
PACKAGES_DIR = Path(__file__).parents[1]
"""Where the packages are, installed or not; as working directory it makes `-m` find them."""

T = TypeVar("T")


class NodeFailed(RuntimeError):
    """A process ended, or did not become ready; the message ends with the tail of its log."""


class Etcd:
    """A private etcd, on loopback and at its host's underlay address."""

    def __init__(self, host: Host, directory: Path) -> None:
        self._host = host
        self._server = EmbeddedEtcd(
            directory,
            client_port=ETCD_CLIENT_PORT,
            peer_port=ETCD_PEER_PORT,
            listen_address=str(host.address),
        )
        self.url = f"http://{host.address}:{ETCD_CLIENT_PORT}"
        """Where every host reaches it."""
        self.log_path = self._server.log_path

    def start(self) -> None:
        """Returns when it answers. Raises NodeFailed, EmbeddedEtcdError."""
        self._server.data_dir.mkdir(mode=0o700, parents=True)
        with self.log_path.open("ab") as output:
            process = self._host.popen(
                [find_etcd_binary(), *self._server.arguments()],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={k: v for k, v in os.environ.items() if not k.startswith("ETCD_")},
            )
        wait_for(self._answers, process, "etcd", self.log_path, ETCD_START_S)

    def _answers(self) -> bool:
        with self._host.entered():
            return self._server.answers()


class Node:
    """`loden run` on a host."""

    def __init__(self, host: Host, directory: Path, etcd_url: str) -> None:
        self.host = host
        self.run_dir = directory / "run"
        self.state_dir = directory / "state"
        self.subnet_file = directory / "subnet.env"
        self.log_path = directory / "log"
        self._etcd_url = etcd_url
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(mode=0o700, parents=True)

    def start(self, *more: str) -> None:
        """Returns at once. `more`: further words of the command line."""
        self.subnet_file.unlink(missing_ok=True)  # its coming tells that the node is ready
        argv = [*LODEN, "run", "--etcd-endpoints", self._etcd_url, "--iface", UNDERLAY_DEVICE]
        argv += ["--run-dir", str(self.run_dir), "--state-dir", str(self.state_dir)]
        argv += ["--subnet-file", str(self.subnet_file), *more]
        with self.log_path.open("ab") as output:
            self.process = self.host.popen(
                argv, stdout=output, stderr=subprocess.STDOUT, cwd=PACKAGES_DIR
            )

    def wait_until_ready(self, timeout_s: float = NODE_START_S) -> SubnetEnv:
        """subnet.env, which is written when packets can flow. Raises NodeFailed."""
        assert self.process is not None, "start it first"
        name = f"loden on {self.host.name}"
        return wait_for(
            lambda: read_subnet_env(self.subnet_file), self.process, name, self.log_path, timeout_s
        )

    def wait_for_routes(self, peers: int, timeout_s: float = ROUTES_S) -> None:
        """Returns when it has routes to so many other nodes. Raises NodeFailed, CommandError."""
        assert self.process is not None, "start it first"
        wait_for(
            lambda: sum(route["kind"] == "remote" for route in self.ask("routes")) >= peers,
            self.process,
            f"loden on {self.host.name}, with routes to {peers} other nodes,",
            self.log_path,
            timeout_s,
        )

    def ask(self, command: str) -> Any:
        """What `loden COMMAND --json` says about this node. Raises CommandError."""
        argv = [*LODEN, command, "--json", "--run-dir", str(self.run_dir)]
        return json.loads(self.host.run(argv, cwd=PACKAGES_DIR).stdout)


def init_network(host: Host, etcd_url: str, network: str, *more: str) -> None:
    """`loden init`: put the pod network into etcd. Raises CommandError."""
    argv = [*LODEN, "init", "--etcd-endpoints", etcd_url, "--network", network, *more]
    host.run(argv, cwd=PACKAGES_DIR)


def wait_for(
    probe: Callable[[], T | None],
    process: subprocess.Popen[bytes],
    name: str,
    log_path: Path,
    timeout_s: float,
) -> T:
    """The first true value of `probe`, while the process lives. Raises NodeFailed."""
    deadline = time.monotonic() + timeout_s
    while not (value := probe()):
        if process.poll() is not None:
            raise NodeFailed(f"{name} ended with {process.returncode}:\n{log_tail(log_path)}")
        if time.monotonic() > deadline:
            raise NodeFailed(f"{name} is not ready after {timeout_s:g} s:\n{log_tail(log_path)}")
        time.sleep(POLL_S)
    return value


def log_tail(log_path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines, indented, to stand under a message."""
    said = log_path.read_text(errors="replace").splitlines() if log_path.exists() else []
    return "\n".join(f"    {line}" for line in said[-lines:]) or "    (its log is empty)"
