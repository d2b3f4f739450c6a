"""Every metric: what it is called, what it means, its labels, how to read it out of the status.

Names and units follow Prometheus's conventions.  `status` is what `status.gather` found; `cpu` is
the CPU that a worker is pinned to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from control.rib import Reason
from control.watch import Phase
from forwarder.counters import BUCKETS, OUTBOUND_DROPS

Status = Mapping[str, Any]
Samples = Iterable[tuple[tuple[str, ...], float | None]]
"""Values of the labels, and the sample's; None: not known now."""


@dataclass(frozen=True)
class Family:
    """One metric."""

    name: str
    """As it is exposed: counters end in _total."""
    help: str
    read: Callable[[Status], Samples]
    labels: tuple[str, ...] = ()

    def metric(self, status: Status) -> Metric:
        counts = self.name.endswith("_total")
        kind = CounterMetricFamily if counts else GaugeMetricFamily
        metric = kind(self.name, self.help, labels=self.labels)
        for values, sample in self.read(status):
            if sample is not None:
                metric.add_metric(values, sample)
        return metric


def _one(*path: str) -> Callable[[Status], Samples]:
    """The value found by this path, without labels."""

    def read(status: Status) -> Samples:
        found: Any = status
        for name in path:
            found = found[name]
        return [((), found)]

    return read


NODE: tuple[Family, ...] = (
    Family(
        "loden_build_info",
        "The version of loden.",
        lambda status: [((status["version"],), 1)],
        ("version",),
    ),
    Family("loden_ready", "Whether packets can flow.", _one("ready")),
    Family(
        "loden_control_up",
        "Whether the control process answers.",
        lambda status: [((), "node" in status)],
    ),
    Family(
        "loden_forwarder_up",
        "Whether the forwarder answers.",
        lambda status: [((), "totals" in status)],
    ),
)

NODE_LABELS = ("device", "interface", "public_ip", "public_ipv6", "vtep_mac")

CONTROL: tuple[Family, ...] = (
    Family(
        "loden_node_info",
        "Where this node is, and what is its own.",
        lambda status: [
            (
                (*(status["node"][name] or "" for name in NODE_LABELS), status["subnet"] or ""),
                1,
            )
        ],
        (*NODE_LABELS, "subnet"),
    ),
    Family("loden_mtu_bytes", "The largest inner packet.", _one("node", "mtu_bytes")),
    Family(
        "loden_etcd_state",
        "1 for the state in which the watch of etcd is.",
        lambda status: [
            ((phase.name.lower(),), status["etcd"]["state"] == phase.name.lower())
            for phase in Phase
        ],
        ("state",),
    ),
    Family(
        "loden_etcd_revision",
        "The etcd revision that the routes follow.",
        lambda status: [((), status["etcd"].get("revision"))],
    ),
    Family(
        "loden_etcd_attempts_total",
        "How often listing or watching etcd was tried.",
        lambda status: [((), status["etcd"].get("attempts"))],
    ),
    Family(
        "loden_etcd_listings_total",
        "How often everything in etcd was listed.",
        lambda status: [((), status["etcd"].get("listings"))],
    ),
    Family(
        "loden_etcd_retained_entries",
        "Leases and routes that etcd has lost and that are still followed.",
        lambda status: [((), status["etcd"].get("retained"))],
    ),
    Family(
        "loden_lease_held",
        "Whether etcd has said that the subnet is ours, and that holds.",
        lambda status: [((), status["etcd"]["lease_not_held_because"] is None)],
    ),
    Family(
        "loden_lease_remaining_seconds",
        "Time until the lease ends if it is not renewed; +Inf for a reservation.",
        lambda status: [((), _lease_remaining_s(status["etcd"].get("lease")))],
    ),
    Family(
        "loden_routes_age_seconds",
        "Time since the routes were last known to be what etcd holds; 0 in sync.",
        _one("routes", "age_s"),
    ),
    Family("loden_rib_routes", "Routes believed.", _one("routes", "count")),
    Family(
        "loden_routes_from_saved_state",
        "Whether the routes are those saved on disk, for want of etcd.",
        _one("routes", "from_saved_state"),
    ),
    Family(
        "loden_ignored_entries",
        "Entries in etcd that make no route, by reason.",
        lambda status: [
            ((reason.name.lower(),), status["routes"]["ignored"].get(reason.value, 0))
            for reason in Reason
        ],
        ("reason",),
    ),
)


def _lease_remaining_s(lease: Mapping[str, Any] | None) -> float | None:
    if lease is None:
        return None
    remaining_s: float | None = lease["expires_in_s"]
    return float("inf") if remaining_s is None else remaining_s


def _per_worker(read: Callable[[Status], float | None]) -> Callable[[Status], Samples]:
    return lambda status: [((str(worker["cpu"]),), read(worker)) for worker in status["workers"]]


def _total(name: str) -> Callable[[Status], Samples]:
    """One of the worker's totals (forwarder.counters.Total)."""
    return _per_worker(lambda worker: worker["totals"][name])


def _both_ways(name: str) -> Callable[[Status], Samples]:
    """Two of them, outbound and inbound."""
    return lambda status: [
        ((str(worker["cpu"]), way), worker["totals"][f"{way}_{name}"])
        for worker in status["workers"]
        for way in ("out", "in")
    ]


FORWARDER: tuple[Family, ...] = (
    Family(
        "loden_forwarder_uptime_seconds",
        "Time since the forwarder started.",
        _one("forwarder", "up_s"),
    ),
    Family(
        "loden_forwarder_cpu_seconds_total",
        "CPU time of the forwarder's own process.",
        lambda status: [
            ((mode,), status["forwarder"][f"cpu_{mode}_s"]) for mode in ("user", "system")
        ],
        ("mode",),
    ),
    Family(
        "loden_forwarder_resident_memory_bytes",
        "Resident memory of the forwarder's own process.",
        _one("forwarder", "resident_bytes"),
    ),
    Family(
        "loden_offload_enabled",
        "Whether an offload is in use; `loden status` says why not.",
        lambda status: [((name,), state == "on") for name, state in status["offloads"].items()],
        ("offload",),
    ),
    Family(
        "loden_seccomp_enabled",
        "Whether the workers' system calls are filtered; `loden status` says why not.",
        lambda status: [((), status["seccomp"] == "on")],
    ),
    Family(
        "loden_fib_routes",
        "Routes that packets follow.",
        lambda status: [((), status["fib"] and status["fib"]["routes"])],
    ),
    Family(
        "loden_fib_routes_capacity",
        "Routes that there is room for.",
        lambda status: [((), status["fib"] and status["fib"]["routes_capacity"])],
    ),
    Family(
        "loden_fib_adjacencies",
        "Next hops of these routes.",
        lambda status: [((), status["fib"] and status["fib"]["adjacencies"])],
    ),
    Family(
        "loden_fib_adjacencies_capacity",
        "Next hops that there is room for.",
        lambda status: [((), status["fib"] and status["fib"]["adjacencies_capacity"])],
    ),
    Family(
        "loden_device_dropped_packets_total",
        "Packets of pods that found the overlay device's queues full.",
        _one("device_drops"),
    ),
    Family(
        "loden_socket_dropped_datagrams_total",
        "Datagrams that found the worker's receive queue full, or had a wrong checksum.",
        _per_worker(lambda worker: worker["receive_drops"]),
        ("cpu",),
    ),
    Family(
        "loden_dropped_packets_total",
        "Packets dropped, by reason.",
        lambda status: [
            ((str(worker["cpu"]), reason), count)
            for worker in status["workers"]
            for reason, count in worker["drops"].items()
        ],
        ("cpu", "reason"),
    ),
    Family(
        "loden_packets_total",
        "Inner packets sent and received; what a pod hands over uncut counts as one.",
        _both_ways("packets"),
        ("cpu", "direction"),
    ),
    Family("loden_bytes_total", "Their bytes.", _both_ways("bytes"), ("cpu", "direction")),
    Family(
        "loden_datagrams_total",
        "VXLAN datagrams on the underlay.",
        _both_ways("segments"),
        ("cpu", "direction"),
    ),
    Family(
        "loden_messages_total",
        "Messages to and from the sockets; each carries up to 64 datagrams.",
        _both_ways("messages"),
        ("cpu", "direction"),
    ),
    Family(
        "loden_socket_calls_total",
        "sendmmsg and recvmmsg system calls.",
        _both_ways("calls"),
        ("cpu", "direction"),
    ),
    Family("loden_tun_reads_total", "Reads of the overlay device.", _total("tun_reads"), ("cpu",)),
    Family(
        "loden_tun_writes_total", "Writes to the overlay device.", _total("tun_writes"), ("cpu",)
    ),
    Family(
        "loden_whole_superpackets_total",
        "Superpackets that left whole, for the NIC to cut.",
        _total("out_whole"),
        ("cpu",),
    ),
    Family(
        "loden_icmp_sent_total",
        "Unreachable and too-big messages sent to pods.",
        _total("icmp_sent"),
        ("cpu",),
    ),
    Family("loden_worker_turns_total", "Turns of the worker's loop.", _total("turns"), ("cpu",)),
    Family(
        "loden_worker_polls_total",
        "Times the worker blocked for want of work.",
        _total("polls"),
        ("cpu",),
    ),
    Family(
        "loden_worker_up",
        "Whether the worker's process lives.",
        _per_worker(lambda worker: worker["alive"]),
        ("cpu",),
    ),
    Family(
        "loden_worker_restarts_total",
        "How often the worker died and was replaced.",
        _per_worker(lambda worker: worker["deaths"]),
        ("cpu",),
    ),
    Family(
        "loden_worker_hangs_total",
        "How often it was ended because it had stopped moving; counted as a restart, too.",
        _per_worker(lambda worker: worker["hangs"]),
        ("cpu",),
    ),
    Family(
        "loden_worker_heartbeat_age_seconds",
        "Time since the worker's last sign of life; an idle one gives one a second.",
        _per_worker(lambda worker: worker["heartbeat_age_s"]),
        ("cpu",),
    ),
    Family(
        "loden_worker_cpu_seconds_total",
        "CPU time of the worker's process.",
        lambda status: [
            ((str(worker["cpu"]), mode), worker.get(f"cpu_{mode}_s"))
            for worker in status["workers"]
            for mode in ("user", "system")
        ],
        ("cpu", "mode"),
    ),
    Family(
        "loden_worker_resident_memory_bytes",
        "Resident memory of the worker's process, most of it shared with the forwarder's.",
        _per_worker(lambda worker: worker.get("resident_bytes")),
        ("cpu",),
    ),
)

PEER_LABELS = ("peer", "mac", "direction")


def _per_peer(name: str) -> Callable[[Status], Samples]:
    return lambda status: [
        ((peer["address"], peer["mac"], way), peer[f"{way}_{name}"])
        for peer in status["peers"]
        for way in ("out", "in")
    ]


PEERS: tuple[Family, ...] = (
    Family(
        "loden_peer_packets_total",
        "Inner packets sent to and received from one VTEP.",
        _per_peer("packets"),
        PEER_LABELS,
    ),
    Family("loden_peer_bytes_total", "Their bytes.", _per_peer("bytes"), PEER_LABELS),
)

BATCH_NAME = "loden_batch_packets"
BATCH_LABELS = ("cpu", "direction")
BATCH_HELP = "Inner packets that the worker found waiting at once, when there were any."


def batches(workers: Iterable[Status]) -> Metric:
    """Histograms of powers of two, see forwarder.counters.BUCKETS."""
    metric = HistogramMetricFamily(BATCH_NAME, BATCH_HELP, labels=BATCH_LABELS)
    bounds = [*(str(float(1 << bucket)) for bucket in range(BUCKETS - 1)), "+Inf"]
    for worker in workers:
        # Every packet of a batch is sent, delivered or dropped in the same turn.
        totals, drops = worker["totals"], worker["drops"]
        lost = sum(drops[drop.name.lower()] for drop in OUTBOUND_DROPS)
        packets = {"out": totals["out_packets"] + lost, "in": totals["in_segments"]}
        for way, counts in worker["batches"].items():
            upto = [sum(counts[: bucket + 1]) for bucket in range(BUCKETS)]
            buckets = list(zip(bounds, upto, strict=True))
            metric.add_metric((str(worker["cpu"]), way), buckets, packets[way])
    return metric
