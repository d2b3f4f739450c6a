"""CPU time and memory are those of the processes named."""

from __future__ import annotations

import os
import time

from perf.node_costs import cpu_ns, pss_mb


def test_cpu_time_is_that_of_the_process() -> None:
    before = cpu_ns([os.getpid()])[os.getpid()]
    busy_until = time.process_time() + 0.05
    while time.process_time() < busy_until:
        pass
    used_ns = cpu_ns([os.getpid()])[os.getpid()] - before

    assert used_ns > 40_000_000


def test_memory_in_use_counts() -> None:
    before = pss_mb(os.getpid())
    held = bytearray(os.urandom(30_000_000))
    assert 25 < pss_mb(os.getpid()) - before < 100
    del held
