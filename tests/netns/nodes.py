"""loden nodes on a topology, with an etcd that can be killed: for tests of whole nodes.

    host0 ─ node 0 ─┐
    host1 ─ node 1 ─┤ wire
    host2 ─ node 2 ─┤
    host3 ─ etcd ───┘   and room for a flannel node

Each node has run dir, state dir, subnet file and log in a folder of its own; the logs are shown
when a test fails.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, TypeVar

from control import status
from control.state import StateFile
from forwarder.api import ForwarderClient
from forwarder.fib.routes import next_hop_to_wire
from forwarder.rpc import RpcError
from perf.namespace import Namespace
from perf.nodes import LODEN, PACKAGES_DIR, Etcd, Node, init_network
from perf.topology import UNDERLAY_DEVICE, Host, Pod, Topology
from perf.traffic import IPAddress, ping

PREFIX = "/coreos.com/network"
NETWORK = "10.5.0.0/16"
FIRST_START_S = 240.0
"""The very first start of all compiles the data path."""

T = TypeVar("T")


def wait_for(probe: Callable[[], T | None], what: str, timeout_s: float = 10.0) -> T:
    """The first true value of `probe`; fails the test, saying what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not (value := probe()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)
    return value


class KillableEtcd(Etcd):
    """An etcd on a host, spoken to from inside that host by its JSON gateway."""

    def __init__(self, host: Host, directory: Path) -> None:
        super().__init__(host, directory)
        self.host = host

    def kill(self) -> None:
        """As when its machine loses power; `start` brings it back with its data."""
        process = self.host.processes[-1]
        process.kill()
        process.wait()

    def start(self) -> None:
        if self.log_path.exists():  # Etcd.start makes the directory, too
            self._start_again()
        else:
            super().start()

    def _start_again(self) -> None:
        with self.log_path.open("ab") as output:
            self.host.popen(
                ["etcd", *self._server.arguments()], stdout=output, stderr=subprocess.STDOUT
            )
        wait_for(self._answers, "etcd is back")

    def ask(self, path: str, **fields: Any) -> Any:
        """One request to /v3/`path`."""
        with self.host.entered():
            connection = http.client.HTTPConnection("127.0.0.1", 2379, timeout=5)
            try:
                connection.request("POST", f"/v3/{path}", json.dumps(fields))
                return json.loads(connection.getresponse().read())
            finally:
                connection.close()

    def put(self, key: str, value: str, prefix: str = PREFIX) -> None:
        self.ask("kv/put", key=_base64(prefix + key), value=_base64(value))

    def delete(self, key: str) -> None:
        self.ask("kv/deleterange", key=_base64(PREFIX + key))

    def get(self, key: str) -> str | None:
        """The value at `key` below the prefix."""
        return self.list(key).get(key)

    def list(self, below: str) -> dict[str, str]:
        """All keys that begin with `below`, both without the prefix, and their values."""
        begin = (PREFIX + below).encode()
        end = begin[:-1] + bytes([begin[-1] + 1])
        found = self.ask("kv/range", key=_base64(begin.decode()), range_end=_base64(end.decode()))
        return {
            base64.b64decode(pair["key"]).decode()[len(PREFIX) :]: base64.b64decode(
                pair.get("value", "")
            ).decode()
            for pair in found.get("kvs", [])
        }

    def leases(self) -> dict[str, Any]:
        """PublicIP of each lease's holder: its subnet, as `10.5.7.0/24`."""
        return {
            json.loads(value)["PublicIP"]: key.rpartition("/")[2].replace("-", "/")
            for key, value in self.list("/subnets/").items()
        }


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class LodenNode(Node):
    """`loden run` on a host, with what tests do to it and ask it."""

    def __init__(self, host: Host, directory: Path, etcd_url: str) -> None:
        super().__init__(host, directory, etcd_url)
        self._pod: Pod | None = None

    def launch(
        self, words: Sequence[str], env: Mapping[str, str] | None = None, before: Sequence[str] = ()
    ) -> None:
        """`loden` with just these words. `env`: what its environment has besides ours; `before`:
        a command that executes the rest of the command line."""
        with self.log_path.open("ab") as output:
            self.process = self.host.popen(
                [*before, *LODEN, *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=PACKAGES_DIR,
                env={**os.environ, **(env or {})},
            )

    def run_words(self) -> list[str]:
        """`run` with this node's folders, etcd and interface."""
        flags = {
            "--etcd-endpoints": self._etcd_url,
            "--iface": UNDERLAY_DEVICE,
            "--run-dir": str(self.run_dir),
            "--state-dir": str(self.state_dir),
            "--subnet-file": str(self.subnet_file),
        }
        return ["run", *(word for pair in flags.items() for word in pair)]

    # ---- what it says -------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Of the whole node; {} when nothing runs."""
        try:
            return status.gather(self.run_dir)
        except RpcError:
            return {}

    def is_ready(self) -> bool:
        return bool(self.status().get("ready"))

    def wait_ready(self, timeout_s: float = FIRST_START_S) -> None:
        wait_for(self._is_ready_or_dead, f"{self.host.name} is ready", timeout_s)
        assert self.is_running(), f"it has ended:\n{self.log()}"

    def _is_ready_or_dead(self) -> bool:
        assert self.process is not None
        return self.is_ready() or self.process.poll() is not None

    def routes(self) -> dict[str, str]:
        """What packets follow: prefix to VTEP address, or to "local"."""
        try:
            with ForwarderClient(self.run_dir, timeout_s=1.0) as forwarder:
                listed = forwarder.list_routes()
        except RpcError:
            return {}
        hops = {str(prefix): next_hop_to_wire(hop) for prefix, hop, _ in listed}
        return {prefix: str(hop.get("address", hop["kind"])) for prefix, hop in hops.items()}

    def state_holds(self, routes: Mapping[str, str]) -> bool:
        """Whether the state on disk has as many routes."""
        state = StateFile(self.state_dir).load()
        return state is not None and len(state.entries) == len(routes)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def subnet(self) -> str:
        """Such as 10.5.7.0/24; dual-stack: both, with " and " between them."""
        return str(self.status()["subnet"])

    @property
    def mac(self) -> str:
        return str(self.status()["node"]["vtep_mac"])

    def pod(self) -> Pod:
        """A pod of this node; the same one for as long as the subnet stays."""
        networks = [_network(text) for text in self.subnet.split(" and ")]
        if self._pod is None:
            self._pod = self.host.add_pod(*networks, mtu_bytes=self.status()["node"]["mtu_bytes"])
        return self._pod

    # ---- its processes ------------------------------------------------------------------------

    def pid_of(self, name: str) -> int:
        """Of "control" or "forwarder"."""
        assert self.process is not None
        for pid in _children_of(self.process.pid):
            # python -m forwarder ..., python -m control control ...
            at = 3 if name == "control" else 2
            if _command_line(pid)[at : at + 1] == [name.encode()]:
                return pid
        return 0

    def cpu_seconds(self, name: str) -> float:
        """What "control" or "forwarder" has used so far, threads included."""
        # proc(5): fields 14 and 15 are user and system time; the second may contain anything.
        stat = Path(f"/proc/{self.pid_of(name)}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def worker_pids(self) -> list[int]:
        return _children_of(self.pid_of("forwarder"))

    def pids(self) -> list[int]:
        """All of it that lives."""
        if self.process is None or self.process.poll() is not None:
            return []
        found = [self.process.pid]
        for pid in found:
            found += _children_of(pid)
        return found

    def kill(self, name: str) -> None:
        """SIGKILL to one of its processes."""
        os.kill(self.pid_of(name), signal.SIGKILL)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 15.0) -> int:
        """The exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def kill_everything(self) -> None:
        """As when the machine loses power, but for what is on disk."""
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        wait_for(lambda: not any(map(_is_alive, pids)), "all processes are gone")

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


def _network(text: str) -> IPv4Network | IPv6Network:
    return IPv6Network(text) if ":" in text else IPv4Network(text)


def _children_of(parent: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{parent}/task").glob("*/children") if parent else ():
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def _command_line(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Cluster:
    """Hosts, an etcd on the last one, and a node on each of the others."""

    def __init__(self, topology: Topology, directory: Path, etcd_urls: str | None = None) -> None:
        """`etcd_urls`: what the nodes are given, if it is not this one etcd."""
        self.topology = topology
        *hosts, last = topology.hosts
        self.etcd = KillableEtcd(last, directory / "etcd")
        self.nodes = [
            LodenNode(host, directory / f"node{number}", etcd_urls or self.etcd.url)
            for number, host in enumerate(hosts)
        ]

    def start(self, *numbers: int) -> None:
        """Has these nodes running, ready, and knowing each other."""
        wanted = [self.nodes[number] for number in numbers]
        for node in wanted:
            if not node.is_running():
                node.start()
        for node in wanted:
            node.wait_ready()
        subnets = {subnet for node in wanted for subnet in node.subnet.split(" and ")}
        wait_for(
            lambda: all(subnets <= node.routes().keys() for node in wanted), "routes to each other"
        )

    def init(self, *more: str) -> None:
        init_network(self.etcd.host, self.etcd.url, NETWORK, *more)

    def logs(self) -> str:
        return "\n".join(f"---- {node.host.name}\n{node.log()[-6000:]}" for node in self.nodes)


@contextlib.contextmanager
def cluster_of(nodes: int, directory: Path, **options: Any) -> Iterator[Cluster]:
    """Hosts, an etcd that runs, a network config; no node runs yet."""
    with Topology(nodes + 1, **options) as topology:
        cluster = Cluster(topology, directory)
        cluster.etcd.start()
        yield cluster


class SteadyPing:
    """Packets that were lost between entering and leaving, at 100 a second."""

    def __init__(self, source: Namespace, address: IPAddress) -> None:
        self._source, self._address = source, address
        self.sent = self.received = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = b""

    def __enter__(self) -> SteadyPing:
        argv = ["ping", "-n", "-i", "0.01", "-W", "1", str(self._address)]
        self._process = self._source.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), True)
        # "PING ..." and the first answer: it has begun.
        self._begun = self._process.stdout.readline() + self._process.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        output = (self._begun + self._process.communicate(timeout=10)[0]).decode()
        answered = {int(number) for number in re.findall(r"bytes from .* icmp_seq=(\d+)", output)}
        assert answered, output[-500:]
        assert "(DUP!)" not in output
        # The last ones may still have been on their way when ping was told to end.
        self.sent, self.received = max(answered) - min(answered) + 1, len(answered)

    @property
    def lost(self) -> int:
        return self.sent - self.received


def reaches(source: Pod, destination: Pod) -> bool:
    """Whether one ping comes back."""
    result = ping(source, destination.address, count=1, timeout_s=0.3)
    return result.received == 1
