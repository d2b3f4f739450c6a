"""Lookups by py-radix, a radix tree in C, address by address."""

from __future__ import annotations

import numpy as np
import radix

from perf.micro.inputs import FIRST_LEASE, FIRST_ROW, LEASES, Inputs
from perf.micro.task import Task, repeated


def tasks(inputs: Inputs) -> dict[str, Task]:
    return {"lookup-leases": searching(inputs)}


def searching(inputs: Inputs) -> Task:
    tree = radix.Radix()
    for number in range(LEASES):
        node = tree.add(packed=(FIRST_LEASE + (number << 8)).to_bytes(4, "big"), masklen=24)
        node.data["row"] = FIRST_ROW + number
    addresses = [address.to_bytes(4, "big") for address in inputs.leased.tolist()]

    def look_up() -> list[int]:
        search = tree.search_best
        return [search(packed=address).data["row"] for address in addresses]

    return Task(repeated(look_up), lambda: np.array(look_up(), np.uint32).tobytes())
