"""What a whole node costs: time to start, CPU while idle, memory per worker.

host0: etcd, loden run        host1: loden run, the one that is measured
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perf.measure import Effort, Reading
from perf.namespace import end_process
from perf.nodes import Etcd, Node, init_network
from perf.topology import Topology
from perf.traffic import MeasurementError

NETWORK = "10.5.0.0/16"
SETTLE_S = 1.0
"""After a start: routes are exchanged, first looks are taken."""
STOP_S = 10.0


@dataclass
class NodeSite:
    """A site: a node that runs and knows of another one."""

    node: Node
    facts: dict[str, Any] = field(default_factory=dict)

    def pids(self) -> list[int]:
        """All processes of the node."""
        return self.node.host.pids()

    def worker_pids(self) -> list[int]:
        return [int(worker["pid"]) for worker in self.node.ask("status")["workers"]]


@contextlib.contextmanager
def running_nodes(effort: Effort) -> Iterator[NodeSite]:
    """Raises NodeFailed, EmbeddedEtcdError, CommandError."""
    with contextlib.ExitStack() as leaving:
        directory = Path(leaving.enter_context(tempfile.TemporaryDirectory(prefix="loden-bench-")))
        topology = leaving.enter_context(Topology(2))
        etcd = Etcd(topology.hosts[0], directory / "etcd")
        etcd.start()
        init_network(topology.hosts[0], etcd.url, NETWORK)
        nodes = [Node(host, directory / host.name, etcd.url) for host in topology.hosts]
        for node in nodes:
            node.start()
        for node in nodes:
            node.wait_until_ready()
        nodes[1].wait_for_routes(1)
        yield NodeSite(nodes[1], {"workers": len(nodes[1].ask("status")["workers"])})


def measure_start(site: NodeSite, effort: Effort) -> Reading:
    """Seconds from `loden run` to packets can flow; the kernels are in the cache."""
    node = site.node
    assert node.process is not None
    end_process(node.process.pid, STOP_S)
    node.process.wait()
    begun = time.monotonic()
    node.start()
    node.wait_until_ready()
    seconds = time.monotonic() - begun
    node.wait_for_routes(1)
    return Reading(seconds)


def measure_idle(site: NodeSite, effort: Effort) -> Reading:
    """Per cent of one CPU that all processes of the node use, with no packet about."""
    time.sleep(SETTLE_S)
    before, begun = cpu_ns(site.pids()), time.monotonic_ns()
    time.sleep(effort.idle_s)
    after, ended = cpu_ns(site.pids()), time.monotonic_ns()
    if after.keys() != before.keys():
        raise MeasurementError("a process of the node ended or began meanwhile")
    used_ns = sum(after.values()) - sum(before.values())
    return Reading(100 * used_ns / (ended - begun))


def cpu_ns(pids: Iterable[int]) -> dict[int, int]:
    """CPU time of each process, all its threads together (sched-stats.rst: first field)."""
    return {
        pid: sum(
            int(path.read_text().split()[0])
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
        )
        for pid in pids
    }


def measure_worker_memory(site: NodeSite, effort: Effort) -> Reading:
    """MB of the largest worker; the rest of the node's processes beside it."""
    workers = site.worker_pids()
    largest = max(pss_mb(pid) for pid in workers)
    rest = sum(pss_mb(pid) for pid in site.pids() if pid not in workers)
    return Reading(largest, {"other processes MB": rest, "workers": len(workers)})


def pss_mb(pid: int) -> float:
    """Memory of a process in MB; a page that n processes share counts a n-th."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise MeasurementError(f"process {pid} has no Pss in smaps_rollup")
