"""All there is to measure: the scenes, their contenders and measures, and the targets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from perf import lookup_speed, node_costs, pair_measures
from perf.contenders import connect_bare, connect_kernel
from perf.loden_contender import Loden
from perf.lookup_speed import Tables
from perf.measure import Effort, Measure, Scene, Target
from perf.node_costs import NodeSite
from perf.pair import Connect, Pair, pair_of

FEW_ROUTES = 10

CONTENDERS = {
    "bare": "no overlay: the hosts route to each other's pods",
    "kernel": "the kernel's vxlan",
    "loden": "loden, superpackets cut by itself (--no-tunnel-gso)",
    "loden-gso": "loden, TCP superpackets cut by the NIC (tunnel GSO)",
    "loden-busy": "loden, workers look 100 times before they block (--busy-poll-turns 100)",
    "loden-ten": "loden with ten routes to the far host",
    "loden-many": "loden with a million of them (--quick: 100,000)",
}

OVERLAYS = ("bare", "kernel", "loden", "loden-gso")
PLAIN = ("bare", "kernel", "loden")
WITH_BUSY = ("bare", "kernel", "loden", "loden-busy")


def built_by(
    connect: Connect, plain_nic: bool = False
) -> Callable[[Effort], AbstractContextManager[Pair]]:
    return lambda effort: pair_of(connect, plain_nic=plain_nic)


def _tcp_s(effort: Effort) -> float:
    return effort.tcp_s + 0.3


def _udp_s(effort: Effort) -> float:
    return effort.trial_s * 0.6 * effort.trials_max


def _ping_s(effort: Effort) -> float:
    return effort.pings * 100e-6


def _lookup_s(effort: Effort) -> float:
    return effort.lookups / 100e6


TCP = Measure[Pair]("tcp1", "TCP, one stream", "Gbit/s", OVERLAYS, pair_measures.tcp(), _tcp_s)
UDP = Measure[Pair](
    "udp64", "UDP, 64 bytes, one flow", "kpps", OVERLAYS, pair_measures.udp(64), _udp_s
)


def at_least(ratio: float, contender: str = "loden", than: str = "kernel") -> tuple[Target, ...]:
    return (Target(contender, ratio, than),)


OFFLOADS = Scene[Pair](
    "offloads",
    "veth as it is: superpackets cross it whole",
    {
        "bare": built_by(connect_bare),
        "kernel": built_by(connect_kernel),
        "loden": built_by(Loden()),
        "loden-gso": built_by(Loden((), tunnel_gso=True)),
        "loden-busy": built_by(Loden(("--no-tunnel-gso", "--busy-poll-turns", "100"))),
    },
    (
        replace(TCP, targets=at_least(0.9, "loden-gso")),
        replace(
            TCP,
            name="tcp1-reverse",
            title="TCP, one stream, the other way",
            take=pair_measures.tcp(reverse=True),
            targets=at_least(0.9, "loden-gso"),
        ),
        replace(
            TCP,
            name="tcp4",
            title="TCP, four streams",
            take=pair_measures.tcp(streams=4),
            targets=at_least(0.9, "loden-gso"),
        ),
        replace(UDP, targets=at_least(2.0)),
        replace(
            UDP,
            name="udp1300",
            title="UDP, 1300 bytes, one flow",
            take=pair_measures.udp(1300),
            targets=at_least(1.5),
        ),
        replace(
            UDP,
            name="udp64-flows",
            title="UDP, 64 bytes, 64 flows",
            take=pair_measures.udp(64, flows=64),
            targets=at_least(1.5),
        ),
        replace(
            UDP,
            name="udp1300-flows",
            title="UDP, 1300 bytes, 64 flows",
            take=pair_measures.udp(1300, flows=64),
        ),
        Measure(
            "latency",
            "request and response, median",
            "µs",
            WITH_BUSY,
            pair_measures.latency,
            _ping_s,
            more_is_better=False,
            targets=(Target("loden", 1.5, "kernel"), Target("loden-busy", 1.0, "kernel")),
        ),
    ),
    build_s=lambda effort: 14.0,
)

PLAIN_NIC = Scene[Pair](
    "plain",
    "a plain NIC: no segmentation, no checksums; GRO at the receiver",
    {
        "bare": built_by(connect_bare, plain_nic=True),
        "kernel": built_by(connect_kernel, plain_nic=True),
        "loden": built_by(Loden(), plain_nic=True),
    },
    tuple(
        replace(TCP, name=name, title=title, contenders=PLAIN, take=take, targets=at_least(0.9))
        for name, title, take in (
            ("tcp1-plain", "TCP, one stream", pair_measures.tcp()),
            ("tcp1-reverse-plain", "TCP, one stream, the other way", pair_measures.tcp(1, True)),
            ("tcp4-plain", "TCP, four streams", pair_measures.tcp(streams=4)),
        )
    ),
    build_s=lambda effort: 6.0,
)

ROUTES = Scene[Pair](
    "routes",
    "packets to addresses all over a /4, which so many routes lead to",
    {
        "loden-ten": lambda effort: pair_of(Loden(far_routes=FEW_ROUTES)),
        "loden-many": lambda effort: pair_of(Loden(far_routes=effort.routes)),
    },
    (
        replace(
            UDP,
            name="routes",
            title="UDP, 64 bytes, many routes",
            contenders=("loden-ten", "loden-many"),
            take=pair_measures.udp_spread(64),
            reference="loden-ten",
            targets=at_least(0.95, "loden-many", "loden-ten"),
        ),
    ),
    build_s=lambda effort: 6.0 + effort.routes * 35e-6,
)

LOOKUPS = Scene[Tables](
    "lookups",
    "the forwarding table alone, on one core",
    {"loden": lookup_speed.tables},
    (
        Measure(
            "lookup-leases",
            "IPv4 lookups, 10,000 /24 leases",
            "million/s",
            ("loden",),
            lookup_speed.measure_leases,
            _lookup_s,
            reference=None,
            targets=(Target("loden", 500),),
        ),
        Measure(
            "lookup-random",
            "IPv4 lookups, a table full of random routes",
            "million/s",
            ("loden",),
            lookup_speed.measure_random,
            _lookup_s,
            reference=None,
            targets=(Target("loden", 60),),
        ),
    ),
)


def _cost(name: str, title: str, unit: str, take: Any, seconds: Any, most: float) -> Any:
    targets = (Target("loden", most),)
    return Measure[NodeSite](name, title, unit, ("loden",), take, seconds, False, None, targets)


NODE = Scene[NodeSite](
    "node",
    "a whole node: `loden run` with etcd and one other node",
    {"loden": node_costs.running_nodes},
    (
        _cost(
            "start", "start to ready, kernels cached", "s", node_costs.measure_start, lambda e: 4, 3
        ),
        _cost(
            "idle", "idle node", "% of a CPU", node_costs.measure_idle, lambda e: e.idle_s + 1, 0.5
        ),
        _cost(
            "memory",
            "a worker's memory (PSS)",
            "MB",
            node_costs.measure_worker_memory,
            lambda e: 1,
            40,
        ),
    ),
    build_s=lambda effort: 8.0,
)

SCENES: tuple[Scene[Any], ...] = (LOOKUPS, NODE, OFFLOADS, PLAIN_NIC, ROUTES)
MEASURES = tuple(measure for scene in SCENES for measure in scene.measures)
