"""Counters: sums over workers, and what tells the FIB's writer that they have passed on."""

import mmap

from forwarder.counters import (
    BUCKETS,
    DROPS_AT,
    IDLE,
    IN_BATCHES_AT,
    OUT_BATCHES_AT,
    OUTBOUND_DROPS,
    Counters,
    Drop,
    Total,
    per_peer_bytes,
    rows_bytes,
)
from forwarder.histogram import bucket_of


def counters_of(workers: int, adjacencies: int = 0) -> Counters:
    per_peer = mmap.mmap(-1, per_peer_bytes(workers, adjacencies)) if adjacencies else None
    return Counters(mmap.mmap(-1, rows_bytes(workers)), per_peer, workers)


def test_totals_and_drops_are_summed_over_workers() -> None:
    counters = counters_of(3, 8)
    for worker in range(3):
        row = counters.of_worker(worker).row
        row[Total.OUT_PACKETS] = 10 + worker
        row[DROPS_AT + Drop.NO_ROUTE] = 1
    assert counters.totals()["out_packets"] == 33
    assert counters.totals(1)["out_packets"] == 11
    assert counters.drops()["no_route"] == 3
    assert "heartbeat_ns" not in counters.totals()


def test_batches_of_a_worker_are_told_by_direction() -> None:
    counters = counters_of(2)
    counters.rows[1, IN_BATCHES_AT] = 5
    counters.rows[1, OUT_BATCHES_AT + BUCKETS - 1] = 7
    assert counters.batches(1) == {"out": [0] * 11 + [7], "in": [5] + [0] * 11}
    assert counters.batches(0) == {"out": [0] * 12, "in": [0] * 12}


def test_cleared_peer_is_cleared_for_every_worker_and_no_other_peer() -> None:
    counters = counters_of(2, 3)
    counters.per_peer[:] = 9
    counters.clear_peer(1)
    assert counters.per_peer[:, :, 0].tolist() == [[9, 0, 9], [9, 0, 9]]


def test_direction_of_a_drop() -> None:
    assert {Drop.MALFORMED, Drop.SEND_FAILED, Drop.HEADERS_TOO_LONG} <= OUTBOUND_DROPS
    assert not OUTBOUND_DROPS & {Drop.NONE, Drop.TRUNCATED, Drop.TUN_NO_BUFFERS}


def test_workers_rows_do_not_touch() -> None:
    counters = counters_of(2, 4)
    counters.of_worker(0).row[:] = 7
    counters.of_worker(0).per_peer[:] = 7
    assert not counters.of_worker(1).row.any()
    assert not counters.of_worker(1).per_peer.any()


def test_generation_is_past_when_the_slowest_worker_has_seen_it() -> None:
    counters = counters_of(2)
    seen = counters.rows[:, Total.GENERATION_SEEN]
    seen[:] = (5, IDLE)
    assert counters.all_past(5)
    assert not counters.all_past(6)
    seen[0] = IDLE
    assert counters.all_past(1 << 40)


def test_counters_without_a_fib_have_no_peers() -> None:
    assert counters_of(2).per_peer.shape == (2, 0, 4)


def test_every_drop_has_a_sentence() -> None:
    for drop in Drop:
        assert drop.sentence
        assert drop.sentence == drop.sentence.strip()
    assert len({drop.sentence for drop in Drop}) == len(Drop)


def test_batch_sizes_are_counted_in_powers_of_two() -> None:
    sizes = (1, 2, 3, 4, 5, 8, 9, 1024, 1025, 100_000)
    assert [bucket_of(size) for size in sizes] == [0, 1, 2, 2, 3, 3, 4, 10, 11, BUCKETS - 1]
