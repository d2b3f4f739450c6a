"""Lookups in the FIB, as fast as one core makes them: the forwarder's own, over a batch.

Two tables: 10,000 neighbouring /24 leases, as a large cluster has them, all of which stay in the
CPU's caches; and one that is full of random routes, where nearly every lookup has to fetch from
memory (its first level alone is 64 MiB).
"""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

import numpy as np
import numpy.typing as npt

from forwarder.arrays import Words
from forwarder.fib.layout import (
    GROUP_ENTRIES,
    IS_GROUP,
    TBL24_ENTRIES,
    Capacity,
    FibMemory,
    FibView,
)
from forwarder.fib.lookup import lookup_ipv4
from forwarder.fib.routes import Prefix, RemoteVtep
from forwarder.fib.writer import FibWriter
from forwarder.jit import kernel
from perf.measure import Effort, Reading

LEASES = 10_000
FIRST_LEASE = int(IPv4Address("10.0.0.0"))
RANDOM_GROUPS = 4096
"""So many /24s of the random table have routes longer than that."""
BATCH = 1 << 18
OWN_MAC = bytes.fromhex("020000000001")


@dataclass
class Tables:
    """A site: the two tables, and addresses to look up in each."""

    leases: FibMemory
    random: FibMemory
    leased: Words
    """Random addresses within the leases."""
    anywhere: Words
    """Random addresses."""
    facts: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def tables(effort: Effort) -> Iterator[Tables]:
    generator = np.random.default_rng(1)
    leased = generator.integers(FIRST_LEASE, FIRST_LEASE + (LEASES << 8), BATCH, np.uint32)
    anywhere = generator.integers(0, 1 << 32, BATCH, np.uint32)
    yield Tables(lease_table(), random_table(generator), leased, anywhere)


def lease_table() -> FibMemory:
    """One route per node, each to a VTEP of its own."""
    memory = _new_memory()
    writer = FibWriter(memory, OWN_MAC, lambda generation: True, lambda: None)
    writer.apply(
        {
            Prefix(4, FIRST_LEASE + (number << 8), 24): RemoteVtep(
                IPv4Address(int(IPv4Address("172.16.0.1")) + number), OWN_MAC, 1, 8472
            )
            for number in range(LEASES)
        }
    )
    return memory


def random_table(generator: np.random.Generator) -> FibMemory:
    """Every /24 leads somewhere at random, and some have other routes in each address."""
    memory = _new_memory()
    rows = memory.capacity.adjacencies
    view = memory.view
    view.tbl24[:] = generator.integers(1, rows, TBL24_ENTRIES, np.uint32)
    inner = RANDOM_GROUPS * GROUP_ENTRIES
    view.groups[:inner] = generator.integers(1, rows, inner, np.uint32)
    slots = generator.choice(TBL24_ENTRIES, RANDOM_GROUPS, replace=False)
    view.tbl24[slots] = np.arange(RANDOM_GROUPS, dtype=np.uint32) | np.uint32(IS_GROUP)
    return memory


def _new_memory() -> FibMemory:
    capacity = Capacity()
    return FibMemory(mmap.mmap(-1, capacity.total_bytes), capacity)


@kernel
def look_up_all(fib: FibView, addresses: Words, found: Words) -> None:
    """The adjacency of each address."""
    for index in range(len(addresses)):
        found[index] = lookup_ipv4(fib, np.int64(addresses[index]))


def measure_leases(site: Tables, effort: Effort) -> Reading:
    """Million lookups a second."""
    return _measure(site.leases, site.leased, effort)


def measure_random(site: Tables, effort: Effort) -> Reading:
    """Million lookups a second."""
    return _measure(site.random, site.anywhere, effort)


def _measure(memory: FibMemory, addresses: Words, effort: Effort) -> Reading:
    found: npt.NDArray[np.uint32] = np.zeros_like(addresses)
    look_up_all(memory.view, addresses, found)  # compiles, and fetches what caches can hold
    if not found.all():
        raise ValueError("an address was not found: there is a route for every one")
    batches = max(1, effort.lookups // len(addresses))
    begun = time.perf_counter()
    for _ in range(batches):
        look_up_all(memory.view, addresses, found)
    seconds = time.perf_counter() - begun
    return Reading(batches * len(addresses) / seconds / 1e6)
