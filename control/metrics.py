"""/metrics: the node's status as Prometheus takes it.

What there is stands in metric_families.py.  A part of the node that is not running has no series
but `loden_control_up` and `loden_forwarder_up`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from pathlib import Path

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from control.health import Page
from control.metric_families import CONTROL, FORWARDER, NODE, PEERS, Status, batches
from control.status import VERSION, gather
from forwarder.rpc import RpcError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def families_of(status: Status) -> Iterator[Metric]:
    """Everything there is to say about what `status.gather` found."""
    tables = [NODE]
    if "node" in status:
        tables.append(CONTROL)
    if "totals" in status:
        tables.append(FORWARDER)
        yield batches(status["workers"])
    if "peers" in status:
        tables.append(PEERS)
    for table in tables:
        for family in table:
            yield family.metric(status)


class NodeCollector(Collector):
    """Asks the node of a run dir at each scrape."""

    def __init__(self, run_dir: Path, with_peers: bool) -> None:
        self._run_dir = run_dir
        self._with_peers = with_peers

    def describe(self) -> Iterable[Metric]:
        return []  # or else the registry would ask the node

    def collect(self) -> Iterator[Metric]:
        try:
            found = gather(self._run_dir, with_peers=self._with_peers)
        except RpcError:  # not even the loop of this process answers: /healthz says why
            found = {"version": VERSION, "ready": False}
        yield from families_of(found)


def metrics_page(run_dir: Path, with_peers: bool) -> Callable[[], Page]:
    """The page; `with_peers`: four series for every peer.

    It reads shared memory and asks two sockets: nothing that a packet would wait for.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(NodeCollector(run_dir, with_peers))
    return lambda: Page(HTTPStatus.OK, generate_latest(registry).decode(), CONTENT_TYPE)
