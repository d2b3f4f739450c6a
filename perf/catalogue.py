"""All there is to measure: the scenes, their contenders and measures, and the targets.

Two pods and an overlay between them are in `perf/pair_catalogue.py`, the data path's kernels in
`perf/micro/scene.py`, the rest is here.
"""

from __future__ import annotations

from typing import Any

from perf import node_costs
from perf.measure import Measure, Scene, Target
from perf.micro import scene as micro
from perf.node_costs import NodeSite
from perf.pair_catalogue import OFFLOADS, PLAIN_NIC, ROUTES, WORKERS

CONTENDERS = {
    "bare": "no overlay: the hosts route to each other's pods",
    "kernel": "the kernel's vxlan",
    "loden": "loden, superpackets cut by itself (--no-tunnel-gso)",
    "loden-gso": "loden, TCP superpackets cut by the NIC (tunnel GSO)",
    "loden-busy": "loden, workers look for 100 µs before they block (--busy-poll-us 100)",
    "wireguard-go": "WireGuard in user space; encrypts, which the others do not",
    "nebula": "nebula with AES; encrypts, too",
    **micro.CONTENDERS,
}


def _cost(
    name: str, title: str, unit: str, take: Any, seconds: Any, at_most: float
) -> Measure[NodeSite]:
    return Measure(
        name,
        title,
        unit,
        ("loden",),
        take,
        seconds,
        more_is_better=False,
        reference=None,
        targets=(Target("loden", at_most),),
        quick=("loden",),
    )


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

SCENES: tuple[Scene[Any], ...] = (micro.KERNELS, NODE, OFFLOADS, PLAIN_NIC, WORKERS, ROUTES)
MEASURES = tuple(measure for scene in SCENES for measure in scene.measures)
"""In the order in which they are taken."""
CURVES = tuple({point.curve: None for measure in MEASURES for point in measure.points})
