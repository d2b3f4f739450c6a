"""The microbenchmarks as a scene: contenders are loden and libraries, measures are kernels.

What a contender comes to is compared with what loden does before anything is timed.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from forwarder.batch import PACKETS
from perf.measure import Effort, Measure, NotHere, Reading, Scene, Target
from perf.micro import loden_tasks
from perf.micro.inputs import (
    FLOWS,
    LEASED_LOOKUPS,
    LEASES,
    RANDOM_LOOKUPS,
    SEGMENT_BYTES,
    SEGMENTS,
    TCP_HEADER_BYTES,
    Inputs,
)
from perf.micro.task import Task, per_second
from perf.traffic import MeasurementError

CONTENDERS = {
    "numpy": "plain NumPy, a whole batch in each call",
    "py-radix": "py-radix, a radix tree in C, called for each address",
    "dpkt": "dpkt, packet by packet",
    "scapy": "scapy, packet by packet",
}
MODULES = {
    "loden": "loden",
    "numpy": "numpy",
    "py-radix": "radix",
    "dpkt": "dpkt",
    "scapy": "scapy",
}
FRAME_BYTES = TCP_HEADER_BYTES + SEGMENT_BYTES


@dataclass
class Toolbox:
    """A site: what one contender can do."""

    tasks: dict[str, Task]
    facts: dict[str, Any] = field(default_factory=dict)


@lru_cache(1)
def the_inputs() -> Inputs:
    return Inputs()


@lru_cache
def right_result(name: str) -> object:
    """What loden comes to; tests hold it against oracles."""
    return loden_tasks.tasks(the_inputs())[name].result()


def toolbox_of(contender: str) -> Callable[[Effort], AbstractContextManager[Toolbox]]:
    @contextlib.contextmanager
    def build(effort: Effort) -> Iterator[Toolbox]:
        try:
            module = importlib.import_module(f"perf.micro.{MODULES[contender]}_tasks")
        except ModuleNotFoundError as error:
            why = f"there is no module {error.name}: pip install 'loden[perf]'"
            raise NotHere(why) from error
        yield Toolbox(module.tasks(the_inputs()))

    return build


def measure_of(
    name: str,
    title: str,
    contenders: tuple[str, ...],
    *,
    amount: int,
    unit: str = "million/s",
    unit_size: float = 1e6,
    at_least: float | None = None,
) -> Measure[Toolbox]:
    """`amount`: what the inputs hold of what is counted."""

    def take(site: Toolbox, effort: Effort) -> Reading:
        task = site.tasks[name]
        if task.result() != right_result(name):
            raise MeasurementError("it does not come to the same as loden")
        return Reading(per_second(task, effort.kernel_s) * amount / unit_size)

    return Measure(
        name,
        title,
        unit,
        contenders,
        take,
        lambda effort: 2 * effort.kernel_s + 0.1,
        reference="numpy",
        targets=() if at_least is None else (Target("loden", at_least),),
        quick=("loden", "numpy"),
    )


KERNELS = Scene[Toolbox](
    "kernels",
    "the kernels alone, on one core, beside what else a Python user would take",
    {name: toolbox_of(name) for name in MODULES},
    (
        measure_of(
            "parse",
            f"parse: IP headers, a batch of {PACKETS}",
            ("loden", "numpy", "dpkt", "scapy"),
            amount=PACKETS,
        ),
        measure_of(
            "lookup-leases",
            f"lookup: {LEASES:,} /24 leases",
            ("loden", "numpy", "py-radix"),
            amount=LEASED_LOOKUPS,
            at_least=500,
        ),
        measure_of(
            "lookup-random",
            "lookup: a table full of random routes",
            ("loden", "numpy"),
            amount=RANDOM_LOOKUPS,
            at_least=60,
        ),
        measure_of(
            "encap",
            f"encapsulate: a batch of {PACKETS} small packets",
            ("loden", "numpy", "dpkt", "scapy"),
            amount=PACKETS,
        ),
        measure_of(
            "split",
            "split: TCP superpackets into segments",
            ("loden", "numpy", "dpkt", "scapy"),
            amount=SEGMENTS,
        ),
        measure_of(
            "coalesce",
            "coalesce: full TCP packets",
            ("loden", "numpy", "dpkt"),
            amount=FLOWS * SEGMENTS,
        ),
        measure_of(
            "checksum",
            f"checksum: packets of {FRAME_BYTES} bytes",
            ("loden", "numpy", "dpkt", "scapy"),
            amount=FLOWS * SEGMENTS * FRAME_BYTES,
            unit="GB/s",
            unit_size=1e9,
        ),
    ),
    build_s=lambda effort: 3.0,
)
