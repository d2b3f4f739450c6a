"""How control grows with the cluster: `python -m perf.scale --nodes 1000,10000,50000`.

    etcd (real) ──> loden control (real, a process of its own) ──> FIB (shared memory)
     ^   simulated nodes' leases                                     │
     └── this process: puts ─────────────── and sees it change ──────┘

Everything runs in a namespace of its own. For each number of nodes:

1. the leases are put, and etcd's own time to list them is taken;
2. control starts: until its FIB is complete and in use is the cold start;
3. single changes: from the put to the store in the FIB;
4. 1,000 changes a second: does it follow, and how far behind?
5. nothing: how many requests does it make, and what memory does it hold?

At the end, what one etcd can carry: CPU per change and watcher.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from control.lease import LeaseAttrs, NodeSubnet, Vtep, config_key, subnet_key
from control.network_config import NetworkConfig
from forwarder.wire.vxlan import format_mac
from perf.bulk_etcd import BulkEtcd, process_cpu_s
from perf.fib_receiver import FibReceiver
from perf.namespace import CommandError
from perf.nodes import LODEN, PACKAGES_DIR, log_tail
from perf.topology import Topology, TopologyError

PREFIX = "/coreos.com/network"
NETWORK = IPv4Network("10.0.0.0/8")
FIRST_PUBLIC_IP = int(IPv4Address("172.16.0.0"))
MOST_NODES = 65_000
"""/24s in the network, with some left over for the one measured."""

DEVICE = "loden0"
START_S = 120.0
CHANGE_S = 30.0
POLL_S = 0.0002
CHANGES_PER_S = 1000
CHANGES_AT_ONCE = 20
"""In one transaction: a process like this one cannot make 1,000 of them a second besides."""

TARGET_NODES = 10_000
COLD_START_TARGET_S = 2.0
PUT_TO_FIB_TARGET_MS = 50.0
MEMORY_TARGET_MB = 200.0


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    single_changes: int = 300
    stream_s: float = 10.0
    idle_s: float = 20.0
    watchers: int = 50
    watched_changes: int = 2000


QUICK = Effort(single_changes=50, stream_s=2.0, idle_s=2.0, watchers=10, watched_changes=200)


@dataclass(frozen=True)
class Measured:
    """One control process among so many nodes."""

    nodes: int
    list_s: float
    """etcd's own time to list all leases."""
    cold_start_s: float
    """From the start of the process to a complete FIB in use."""
    single_p50_ms: float
    single_p99_ms: float
    """From the put to the FIB."""
    stream_per_s: float
    """Changes a second that were put."""
    stream_p99_ms: float
    stream_last_ms: float
    """From the last put to the FIB: behind by how much at the end?"""
    stream_cpu: float
    """Control's share of a CPU meanwhile."""
    rss_mb: float
    pss_mb: float
    idle_requests_per_s: float

    def misses(self) -> list[str]:
        """The targets it does not meet; there are none for more than TARGET_NODES."""
        if self.nodes > TARGET_NODES:
            return []
        found = {
            "cold start": self.cold_start_s - self.list_s > COLD_START_TARGET_S,
            "put to FIB": self.single_p99_ms > PUT_TO_FIB_TARGET_MS,
            "1,000 changes/s": self.stream_last_ms > 1000,
            "memory": self.rss_mb > MEMORY_TARGET_MB,
        }
        return [name for name, missed in found.items() if missed]


@dataclass(frozen=True)
class FanOut:
    """What it costs one etcd to tell watchers of changes."""

    watchers: int
    changes: int
    cpu_us_per_change: float
    """With nobody watching."""
    cpu_us_per_event: float
    """For each watcher told of each change, on top."""


class ScaleError(RuntimeError):
    """Nothing was measured; says why."""


# ---- simulated nodes ----------------------------------------------------------------------------


def lease_of(number: int, version: int = 0) -> tuple[str, str]:
    """Key and value of a simulated node's lease; its MAC says which version it is."""
    subnet = IPv4Network((int(NETWORK.network_address) + ((number + 1) << 8), 24))
    mac = format_mac(bytes([0x0E]) + version.to_bytes(2, "big") + number.to_bytes(3, "big"))
    attrs = LeaseAttrs(IPv4Address(FIRST_PUBLIC_IP + number), None, Vtep(1, mac))
    return subnet_key(PREFIX, NodeSubnet(subnet)), attrs.to_json()


def version_in(receiver: FibReceiver, number: int) -> int:
    """The version of a node's lease that packets to it would follow now."""
    slot = (int(NETWORK.network_address) >> 8) + number + 1
    return int.from_bytes(receiver.mac_of(slot)[1:3], "big")


# ---- measuring ----------------------------------------------------------------------------------


@contextlib.contextmanager
def running_control(
    directory: Path, etcd_url: str
) -> Iterator[tuple[subprocess.Popen[bytes], float, FibReceiver]]:
    """`loden control` here; the process, when it was started, and where its routes arrive."""
    run_dir = directory / "run"
    log_path = directory / "log"
    argv = [*LODEN, "control", "--etcd-endpoints", etcd_url, "--run-dir", str(run_dir)]
    argv += ["--state-dir", str(directory / "state"), "--device", DEVICE]
    argv += ["--subnet-file", str(directory / "subnet.env")]
    with FibReceiver(run_dir) as receiver, log_path.open("wb") as log:
        started_at = time.monotonic()
        process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=PACKAGES_DIR)
        try:
            yield process, started_at, receiver
        except ScaleError as error:
            raise ScaleError(f"{error}; control says:\n{log_tail(log_path)}") from error
        finally:
            process.terminate()
            process.wait(30)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float) -> float:
    """When it came true, by time.monotonic(). Raises ScaleError if it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise ScaleError(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)
    return time.monotonic()


def measure(etcd: BulkEtcd, nodes: int, effort: Effort, directory: Path) -> Measured:
    """Raises ScaleError."""
    etcd.fill(lease_of(number) for number in range(nodes))
    list_s = min(etcd.list_s(f"{PREFIX}/subnets/") for _ in range(3))
    with running_control(directory, etcd.url) as (process, started_at, receiver):
        wait_until(
            lambda: receiver.activated_at is not None or process.poll() is not None,
            "the FIB is complete",
            START_S,
        )
        if receiver.activated_at is None:
            raise ScaleError(f"control ended with {process.returncode}")
        if receiver.ipv4_routes() != nodes + 1:
            raise ScaleError(f"the FIB has {receiver.ipv4_routes()} routes, not {nodes + 1}")
        cold_start_s = receiver.activated_at - started_at
        single_ms = sorted(measure_single_changes(etcd, receiver, nodes, effort))
        cpu_s, begun = process_cpu_s(process.pid), time.monotonic()
        stream_ms = measure_stream(etcd, receiver, nodes, effort)
        stream_s = time.monotonic() - begun
        cpu_s = process_cpu_s(process.pid) - cpu_s
        requests = etcd.requests()
        time.sleep(effort.idle_s)
        requests = etcd.requests() - requests
        memory = read_memory_mb(process.pid)
    return Measured(
        nodes=nodes,
        list_s=list_s,
        cold_start_s=cold_start_s,
        single_p50_ms=statistics.median(single_ms),
        single_p99_ms=percentile(single_ms, 0.99),
        stream_per_s=CHANGES_AT_ONCE * len(stream_ms) / stream_s,
        stream_p99_ms=percentile(sorted(stream_ms), 0.99),
        stream_last_ms=stream_ms[-1],
        stream_cpu=cpu_s / stream_s,
        rss_mb=memory["Rss"],
        pss_mb=memory["Pss"],
        idle_requests_per_s=requests / effort.idle_s,
    )


def measure_single_changes(
    etcd: BulkEtcd, receiver: FibReceiver, nodes: int, effort: Effort
) -> list[float]:
    """Milliseconds from each put to the FIB, one change at a time."""
    took_ms = []
    for version in range(1, effort.single_changes + 1):
        number = version * 7919 % nodes
        begun = time.monotonic()
        answer = etcd.put([lease_of(number, version)])
        seen = wait_until(
            lambda n=number, v=version: version_in(receiver, n) >= v,  # type: ignore[misc]
            f"change {version} is in the FIB",
            CHANGE_S,
        )
        took_ms.append(1000 * (seen - begun))
        answer.result()
        time.sleep(0.005)
    return took_ms


def measure_stream(
    etcd: BulkEtcd, receiver: FibReceiver, nodes: int, effort: Effort
) -> list[float]:
    """Milliseconds from each transaction's put to the FIB, at CHANGES_PER_S."""
    count = int(effort.stream_s * CHANGES_PER_S / CHANGES_AT_ONCE)
    awaited: deque[tuple[float, int, int]] = deque()  # put when, which node, version
    took_ms: list[float] = []
    answers = []
    begun = time.monotonic()

    def collect() -> bool:
        while awaited and version_in(receiver, awaited[0][1]) >= awaited[0][2]:
            took_ms.append(1000 * (time.monotonic() - awaited.popleft()[0]))
        return not awaited

    for batch in range(count):
        due = begun + batch * CHANGES_AT_ONCE / CHANGES_PER_S
        while time.monotonic() < due:
            collect()
            time.sleep(POLL_S)
        numbers = [(batch * CHANGES_AT_ONCE + n) % nodes for n in range(CHANGES_AT_ONCE)]
        version = effort.single_changes + batch + 1
        awaited.append((time.monotonic(), numbers[-1], version))
        # Kept: a call whose future is forgotten is cancelled.
        answers.append(etcd.put([lease_of(number, version) for number in numbers]))
    wait_until(collect, f"{count * CHANGES_AT_ONCE} changes are in the FIB", CHANGE_S)
    for answer in answers:
        answer.result()
    return took_ms


def measure_fan_out(etcd: BulkEtcd, effort: Effort) -> FanOut:
    """Raises ScaleError."""
    count = effort.watched_changes

    def spend() -> float:
        before = etcd.cpu_s()
        for version in range(count):
            etcd.put([lease_of(version % 100, version)]).result()
        return etcd.cpu_s() - before

    alone_s = spend()
    watchers = etcd.watchers(f"{PREFIX}/subnets/", effort.watchers)
    try:
        watched_s = spend()
        wait_until(lambda: all(w.events >= count for w in watchers), "all are told", CHANGE_S)
    finally:
        for watcher in watchers:
            watcher.close()
    return FanOut(
        watchers=effort.watchers,
        changes=count,
        cpu_us_per_change=1e6 * alone_s / count,
        cpu_us_per_event=1e6 * max(0.0, watched_s - alone_s) / count / effort.watchers,
    )


def percentile(ascending: list[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    return ascending[max(0, -(-int(share * 1000) * len(ascending) // 1000) - 1)]


def read_memory_mb(pid: int) -> dict[str, float]:
    """Rss and Pss (a shared page counts by its share) of a process, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: line.split()[1] for line in lines}
    return {name: int(sizes[name]) * 1024 / 1e6 for name in ("Rss", "Pss")}


# ---- the command --------------------------------------------------------------------------------


def measure_all(node_counts: list[int], effort: Effort, say: Callable[[str], object]) -> Any:
    """All measurements in a namespace of their own. Raises ScaleError, TopologyError."""
    with Topology(1) as topology, tempfile.TemporaryDirectory(prefix="loden-scale-") as directory:
        (host,) = topology.hosts
        host.ip(f"tuntap add {DEVICE} mode tun")  # which the forwarder would have made
        with host.entered():  # before the first connection to etcd: its threads come along
            measured = []
            for nodes in node_counts:
                say(f"{nodes:,} nodes")
                own = Path(directory, str(nodes))
                with etcd_in(own / "etcd") as etcd:
                    measured.append(measure(etcd, nodes, effort, own))
            with etcd_in(Path(directory) / "etcd") as etcd:
                say("watchers")
                fan_out = measure_fan_out(etcd, effort)
    return measured, fan_out


@contextlib.contextmanager
def etcd_in(directory: Path) -> Iterator[BulkEtcd]:
    etcd = BulkEtcd(directory)
    etcd.start()
    try:
        config = NetworkConfig.build(str(NETWORK)).to_json()
        etcd.fill([(config_key(PREFIX), config)])
        yield etcd
    finally:
        etcd.stop()


def show(measured: list[Measured], fan_out: FanOut, console: Console) -> None:
    """For a person."""
    rows: list[tuple[str, str, Callable[[Measured], str]]] = [
        ("etcd's own list", "", lambda m: f"{m.list_s:.2f} s"),
        (
            "cold start beyond it",
            f"< {COLD_START_TARGET_S:g} s",
            lambda m: f"{m.cold_start_s - m.list_s:.2f} s",
        ),
        ("put to FIB, p50", "", lambda m: f"{m.single_p50_ms:.1f} ms"),
        (
            "put to FIB, p99",
            f"< {PUT_TO_FIB_TARGET_MS:g} ms",
            lambda m: f"{m.single_p99_ms:.1f} ms",
        ),
        ("changes followed", f"{CHANGES_PER_S:,}/s", lambda m: f"{m.stream_per_s:,.0f}/s"),
        ("  behind by, p99", "", lambda m: f"{m.stream_p99_ms:.0f} ms"),
        ("  behind at the end", "< 1,000 ms", lambda m: f"{m.stream_last_ms:.0f} ms"),
        ("  control's CPU", "", lambda m: f"{m.stream_cpu:.0%}"),
        ("memory, RSS", f"< {MEMORY_TARGET_MB:g} MB", lambda m: f"{m.rss_mb:.0f} MB"),
        ("memory, PSS", "", lambda m: f"{m.pss_mb:.0f} MB"),
        ("idle requests", "", lambda m: f"{m.idle_requests_per_s:.2f}/s"),
    ]
    headings = [f"target ({TARGET_NODES:,})", *(f"{m.nodes:,} nodes" for m in measured)]
    table = Table(Column("", no_wrap=True), *headings, box=None)
    for name, target, cell in rows:
        table.add_row(name, target, *map(cell, measured))
    table.add_row("missed", "", *map(missed_in_words, measured))
    console.print(table)
    console.print(
        f"etcd: {fan_out.cpu_us_per_change:.0f} µs of CPU per change, "
        f"{fan_out.cpu_us_per_event:.1f} µs per change and watcher "
        f"({fan_out.watchers} watchers, {fan_out.changes:,} changes)"
    )


def missed_in_words(measured: Measured) -> str:
    if measured.nodes > TARGET_NODES:
        return "(no target)"
    return ", ".join(measured.misses()) or "nothing"


def parse_counts(ctx: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = [0]
    if not all(CHANGES_AT_ONCE <= count <= MOST_NODES for count in counts):
        allowed = f"numbers from {CHANGES_AT_ONCE} to {MOST_NODES}, separated by commas"
        raise click.BadParameter(f"{text!r}; allowed: {allowed}", ctx, parameter)
    return counts


@click.command()
@click.option("--nodes", "counts", callback=parse_counts, default="1000,10000,50000")
@click.option("--quick", is_flag=True, help="Measure for a few seconds only.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all there, too.")
def command(counts: list[int], quick: bool, json_path: Path | None) -> None:
    """Measure control against a real etcd with the leases of so many simulated nodes."""
    if os.geteuid() != 0:
        raise click.ClickException("building a network namespace needs root")
    try:
        measured, fan_out = measure_all(
            counts, QUICK if quick else Effort(), lambda text: click.echo(text, err=True)
        )
    except (ScaleError, TopologyError, CommandError) as error:
        raise click.ClickException(str(error)) from error
    if json_path is not None:
        results = {"measured": [asdict(m) for m in measured], "fan_out": asdict(fan_out)}
        json_path.write_text(json.dumps(results, indent=2) + "\n")
    show(measured, fan_out, Console())


if __name__ == "__main__":
    sys.exit(command())
