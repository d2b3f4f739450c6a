"""What is measured between two pods: on two kinds of underlay, and along curves.

Which contenders take part in what: tunnel GSO is of TCP alone, and for UDP `loden-gso` would be
`loden` once more.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from perf.contenders import (
    connect_bare,
    connect_kernel,
    connect_nebula,
    connect_wireguard_go,
)
from perf.cpu_measures import cpu_per_gigabyte, cpu_per_million_packets
from perf.loden_contender import Loden
from perf.measure import Curve, Effort, Measure, Point, Scene, Target
from perf.pair import Connect, Ladder, Pair, pair_of
from perf.pair_measures import (
    PairMeasurement,
    at,
    latency,
    latency_under_tcp,
    tcp,
    udp,
    udp_offered,
    udp_spread,
)
from perf.udp_generator import IMIX

ALL = ("bare", "kernel", "loden", "loden-gso", "wireguard-go", "nebula")
ALL_UDP = ("bare", "kernel", "loden", "wireguard-go", "nebula")
QUICK = ("kernel", "loden")

SIZES = (64, 256, 512, 1024, 1300)
FLOWS = (1, 8, 64, 300, 1000)
OFFERED_KPPS = (25, 50, 100, 150, 200, 300, 400, 600)
ROUTE_COUNTS = (10, 1_000, 100_000, 1_000_000)
COST_KPPS = 20
"""All contenders carry so much, so that what it costs can be compared."""
LOAD_MBIT_PER_S = 100
"""Likewise."""

BY_SIZE = Curve("udp-size", "UDP by the size of packets, one flow", "payload", "bytes")
BY_FLOWS = Curve("udp-flows", "UDP, 64 bytes, by the number of flows", "flows")
BY_OFFER = Curve("overload", "UDP, 64 bytes: what arrives of what is offered", "offered", "kpps")
BY_ROUTES = Curve("routes", "UDP, 64 bytes, by the number of routes", "routes")
TCP_BY_WORKERS = Curve("workers-tcp", "TCP, four streams, by the number of workers", "workers")
UDP_BY_WORKERS = Curve("workers-udp", "UDP, 64 bytes, 64 flows, by workers", "workers")


def of_tcp(
    name: str,
    title: str,
    take: PairMeasurement,
    targets: tuple[Target, ...] = (),
    quick: tuple[str, ...] = (),
) -> Measure[Pair]:
    return Measure(
        name, title, "Gbit/s", ALL, take, lambda e: e.tcp_s + 0.4, targets=targets, quick=quick
    )


def of_udp(
    name: str, title: str, take: PairMeasurement, targets: tuple[Target, ...] = ()
) -> Measure[Pair]:
    return Measure(
        name,
        title,
        "kpps",
        ALL_UDP,
        take,
        lambda e: (e.trial_s + 0.06) * max(3, 0.4 * e.trials_max),  # fast ones need three trials
        targets=targets,
    )


def at_least(ratio: float, contender: str = "loden") -> tuple[Target, ...]:
    return (Target(contender, ratio, "kernel"),)


def by_size(size: int) -> Measure[Pair]:
    targets = {64: at_least(2.0), 1300: at_least(1.5)}.get(size, ())
    measure = of_udp(f"udp{size}", f"UDP, {size} bytes, one flow", udp(size), targets)
    points = (Point(BY_SIZE, size), *((Point(BY_FLOWS, 1),) if size == 64 else ()))
    return replace(measure, points=points, quick={64: ALL_UDP, 1300: QUICK}.get(size, ()))


def by_flows(flows: int) -> Measure[Pair]:
    name = "udp64-flows" + ("" if flows == 64 else str(flows))
    targets = at_least(1.5) if flows == 64 else ()
    measure = of_udp(name, f"UDP, 64 bytes, {flows} flows", udp(64, flows=flows), targets)
    points = (Point(BY_FLOWS, flows),)
    return replace(measure, points=points, quick=QUICK if targets else ())


def by_offer(kpps: int) -> Measure[Pair]:
    return Measure(
        f"overload{kpps}",
        f"UDP, 64 bytes, {kpps} kpps offered",
        "kpps",
        ALL_UDP,
        udp_offered(kpps, 64),
        lambda e: e.trial_s + 0.2,
        targets=(Target("loden", 0.8, "loden", of="udp64"),) if kpps == OFFERED_KPPS[-1] else (),
        points=(Point(BY_OFFER, kpps),),
        quick=("loden",) if kpps == OFFERED_KPPS[-1] else (),
    )


TO_KERNEL = at_least(0.9, "loden-gso")
TCP = (
    of_tcp("tcp1", "TCP, one stream", tcp(), TO_KERNEL, quick=ALL),
    of_tcp("tcp1-reverse", "TCP, one stream, the other way", tcp(reverse=True), TO_KERNEL),
    of_tcp("tcp4", "TCP, four streams", tcp(4), TO_KERNEL, quick=("kernel", "loden-gso")),
    of_tcp("tcp4-reverse", "TCP, four streams, the other way", tcp(4, True), TO_KERNEL),
)

LATENCY = Measure[Pair](
    "latency",
    "request and response, median",
    "µs",
    (*ALL_UDP, "loden-busy"),
    latency,
    lambda e: e.pings * 120e-6,
    more_is_better=False,
    targets=(Target("loden", 1.5, "kernel"), Target("loden-busy", 1.0, "kernel")),
    quick=(*ALL_UDP, "loden-busy"),
)
COST = Measure[Pair](
    "cpu-tcp",
    "CPU per gigabyte, one TCP stream",
    "CPU s/GB",
    ALL,
    cpu_per_gigabyte,
    lambda e: e.tcp_s + 0.5,
    more_is_better=False,
    quick=("kernel", "loden-gso"),
)


def built_by(
    connect: Connect, plain_nic: bool = False
) -> Callable[[Effort], AbstractContextManager[Pair]]:
    return lambda effort: pair_of(connect, plain_nic=plain_nic)


STEERED = ("--steer-by-cpu",)
"""What the README advises for links on which packets arrive on the CPU that sent them."""

OFFLOADS = Scene[Pair](
    "offloads",
    "veth as it is: superpackets cross it whole",
    {
        "bare": built_by(connect_bare),
        "kernel": built_by(connect_kernel),
        "loden": built_by(Loden(("--no-tunnel-gso", *STEERED))),
        "loden-gso": built_by(Loden(STEERED, tunnel_gso=True)),
        "loden-busy": built_by(Loden(("--no-tunnel-gso", *STEERED, "--busy-poll-us", "100"))),
        "wireguard-go": built_by(connect_wireguard_go),
        "nebula": built_by(connect_nebula),
    },
    (
        *TCP,
        *map(by_size, SIZES),
        of_udp("udp-imix", "UDP, a mix of sizes, one flow", udp(*IMIX)),
        *map(by_flows, FLOWS[1:]),
        of_udp("udp1300-flows", "UDP, 1300 bytes, 64 flows", udp(1300, flows=64)),
        *map(by_offer, OFFERED_KPPS),
        LATENCY,
        replace(
            LATENCY,
            name="latency-load",
            title=f"request and response beside {LOAD_MBIT_PER_S} Mbit/s of TCP, median",
            take=latency_under_tcp(LOAD_MBIT_PER_S),
            seconds=lambda e: e.tcp_s + 2.4,
            targets=(),
            quick=(),
        ),
        replace(
            LATENCY,
            name="latency-full",
            title="request and response beside TCP at full speed, median",
            contenders=(*ALL, "loden-busy"),
            take=latency_under_tcp(),
            seconds=lambda e: e.tcp_s + 2.4,
            targets=(),
            quick=(),
        ),
        COST,
        replace(
            COST,
            name="cpu-udp",
            title=f"CPU per million packets of 64 bytes, {COST_KPPS} kpps",
            unit="CPU s/million",
            contenders=(*ALL_UDP, "loden-busy"),
            take=cpu_per_million_packets(COST_KPPS, 64),
            quick=QUICK,
        ),
    ),
    build_s=lambda effort: 20.0,
)

PLAIN_NIC = Scene[Pair](
    "plain",
    "a plain NIC: no segmentation, no checksums; GRO at the receiver",
    {
        "bare": built_by(connect_bare, plain_nic=True),
        "kernel": built_by(connect_kernel, plain_nic=True),
        "loden": built_by(Loden(), plain_nic=True),
        "wireguard-go": built_by(connect_wireguard_go, plain_nic=True),
        "nebula": built_by(connect_nebula, plain_nic=True),
    },
    (
        *(
            replace(
                measure,
                name=f"{measure.name}-plain",
                contenders=tuple(name for name in ALL if name != "loden-gso"),
                targets=at_least(0.9),
                quick=QUICK if measure.quick else (),
            )
            for measure in TCP
        ),
        *(
            of_udp(f"udp{size}-plain", f"UDP, {size} bytes, one flow", udp(size))
            for size in (64, 1300)
        ),
    ),
    build_s=lambda effort: 8.0,
)


def worker_counts(cpus: int) -> list[int]:
    """1, 2, 4... and as many as there are CPUs."""
    return [*(1 << bit for bit in range(cpus.bit_length()) if 1 << bit < cpus), cpus]


def by_workers(workers: int) -> tuple[Measure[Ladder], ...]:
    plural = "" if workers == 1 else "s"
    tcp4 = of_tcp(f"tcp4-workers{workers}", f"TCP, four streams, {workers} worker{plural}", tcp(4))
    udp64 = of_udp(
        f"udp64-workers{workers}",
        f"UDP, 64 bytes, 64 flows, {workers} worker{plural}",
        udp(64, flows=64),
    )
    return tuple(
        Measure(
            measure.name,
            measure.title,
            measure.unit,
            ("loden",),
            at(workers, measure.take),
            measure.seconds,
            reference=None,
            points=(Point(curve, workers),),
        )
        for measure, curve in ((tcp4, TCP_BY_WORKERS), (udp64, UDP_BY_WORKERS))
    )


def with_workers(workers: int) -> AbstractContextManager[Pair]:
    return pair_of(Loden(("--no-tunnel-gso", "--workers", str(workers))))


WORKERS = Scene[Ladder](
    "workers",
    "by the number of workers on each host",
    {"loden": lambda effort: Ladder(with_workers)},
    tuple(m for count in worker_counts(os.cpu_count() or 1) for m in by_workers(count)),
    build_s=lambda effort: 2.0 * len(worker_counts(os.cpu_count() or 1)),
)


def by_routes(routes: int) -> Measure[Ladder]:
    measure = of_udp(f"routes{routes}", f"UDP, 64 bytes, {routes:,} routes", udp_spread(64))
    return Measure(
        measure.name,
        measure.title,
        measure.unit,
        ("loden",),
        at(routes, udp_spread(64)),
        measure.seconds,
        reference=None,
        targets=(Target("loden", 0.95, "loden", of="routes10"),) if routes >= 100_000 else (),
        points=(Point(BY_ROUTES, routes),),
        quick=("loden",) if routes in (10, 100_000) else (),
    )


ROUTES = Scene[Ladder](
    "routes",
    "packets to addresses all over a /4, which so many routes lead to",
    {"loden": lambda effort: Ladder(lambda routes: pair_of(Loden(far_routes=routes)))},
    tuple(map(by_routes, ROUTE_COUNTS)),
    build_s=lambda effort: 10.0,
)
