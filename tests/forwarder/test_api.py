"""The api's client against a forwarder process that has nothing to do yet."""

from pathlib import Path

from forwarder.api import ForwarderClient
from forwarder.counters import BUCKETS, Drop, Total
from tests.forwarder.fibs import SMALL


def test_stats_have_every_counter(idle_forwarder: Path) -> None:
    with ForwarderClient(idle_forwarder) as client:
        stats = client.stats()
    reasons = {drop.name.lower() for drop in Drop if drop}
    assert stats["drops"].keys() == stats["drop_help"].keys() == reasons
    assert stats["workers"] == len(stats["per_worker"]) > 0
    for worker in stats["per_worker"]:
        assert worker["drops"].keys() == reasons
        assert worker["totals"].keys() == stats["totals"].keys()
        assert worker["batches"] == {"out": [0] * BUCKETS, "in": [0] * BUCKETS}
    assert Total.OUT_PACKETS.name.lower() in stats["totals"]
    assert 0 < stats["up_s"] <= 1000
    assert stats["resident_bytes"] > 0


def test_there_is_no_fib_to_view_before_one_is_activated(idle_forwarder: Path) -> None:
    with ForwarderClient(idle_forwarder) as client:
        assert client.view_fib() is None
        assert client.peers() == []
        pending = client.new_fib(SMALL)  # to be filled, and not in use yet
        pending.counters.per_peer[:, 1] = 5
        pending.counters.clear_peer(1)
        assert not pending.counters.per_peer.any()
        assert client.view_fib() is None


def test_control_is_gone_until_somebody_fills_a_fib(idle_forwarder: Path) -> None:
    with ForwarderClient(idle_forwarder) as client:
        first = client.stats()["control_gone_s"]
        assert first <= client.stats()["control_gone_s"]
