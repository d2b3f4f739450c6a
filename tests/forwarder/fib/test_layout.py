"""The layout that two processes agree on."""

import mmap
import os

import numpy as np
import pytest

from forwarder import shm
from forwarder.fib.layout import (
    ADJACENCY,
    ADJACENCY_BYTES,
    GENERATION_WORD,
    HEADER,
    IPV6_ACTIVE_WORD,
    MAGIC,
    Capacity,
    FibMemory,
    vtep_hash,
)
from forwarder.fib.routes import Prefix
from forwarder.fib.writer import FibWriter
from forwarder.jit import kernel
from tests.forwarder.fibs import OWN_MAC, Workers, make_fib, vtep

CAPACITIES = [Capacity(), Capacity(1, 1, 1, 1), Capacity(3, 1000, 1001, 777)]


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_parts_are_page_aligned_and_apart(capacity: Capacity) -> None:
    end = 0
    for offset, size in capacity.offsets().values():
        assert offset % mmap.PAGESIZE == 0
        assert offset >= end
        end = offset + size
    assert end <= capacity.total_bytes < end + mmap.PAGESIZE


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_vtep_table_is_at_most_half_full_and_a_power_of_two_long(capacity: Capacity) -> None:
    slots = capacity.vtep_slots
    assert slots & (slots - 1) == 0
    assert slots >= 2 * capacity.adjacencies


def test_words_that_readers_look_at_are_where_the_header_has_them() -> None:
    fib = make_fib()
    header = fib.writer.memory.header
    header["ipv6_active"] = 1 << 32 | 5
    assert fib.view.header[GENERATION_WORD] == header["generation"] == 1
    assert fib.view.header[IPV6_ACTIVE_WORD] == 1 << 32 | 5
    assert header["magic"] == MAGIC
    assert HEADER.itemsize <= mmap.PAGESIZE


def test_an_adjacency_is_a_cache_line() -> None:
    assert ADJACENCY.itemsize == ADJACENCY_BYTES == 64


def test_workers_cannot_write_to_what_they_map() -> None:
    for part in make_fib().view:
        with pytest.raises(ValueError, match="read-only"):
            part[...] = 0


def test_nearly_empty_fib_takes_next_to_no_memory() -> None:
    capacity = Capacity()
    fd = shm.create("fib-under-test", capacity.total_bytes)
    try:
        memory = FibMemory(shm.map_writable(fd), capacity)
        writer = FibWriter(memory, OWN_MAC, Workers().all_past, shm.order_writes)
        writer.apply({Prefix.parse(p): vtep(1) for p in ("10.0.0.0/16", "10.0.0.1/32", "::/0")})
        taken_bytes = os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)
    assert capacity.total_bytes > 100 << 20
    assert taken_bytes < 64 << 10


def test_hash_is_the_same_compiled_and_interpreted() -> None:
    compiled = kernel(vtep_hash)
    for high, low in np.random.default_rng(1).integers(0, 1 << 32, (200, 2)).tolist():
        assert compiled(high, low) == vtep_hash(high, low)
