"""Control's look at the workers' signs of life."""

import mmap

from control.fib_link import WORKER_SILENT_S, silence_of
from forwarder.counters import Counters, Total, rows_bytes

SECOND_NS = 1_000_000_000


def test_worker_silent_for_too_long_is_named() -> None:
    counters = Counters(mmap.mmap(-1, rows_bytes(3)), None, 3)
    now_ns = 1000 * SECOND_NS
    counters.rows[:, Total.CPU] = (4, 5, 6)
    counters.rows[:, Total.HEARTBEAT_NS] = now_ns - int(WORKER_SILENT_S * SECOND_NS)
    assert silence_of(counters, now_ns) is None
    counters.rows[1, Total.HEARTBEAT_NS] = now_ns - 12 * SECOND_NS
    counters.rows[2, Total.HEARTBEAT_NS] = now_ns - 7 * SECOND_NS
    said = "the worker on CPU 5 has given no sign of life for 12 s"
    assert silence_of(counters, now_ns) == said
