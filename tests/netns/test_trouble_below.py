"""Interfaces that go down and a firewall that refuses: counted, survived by the same workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.topology import UNDERLAY_DEVICE
from perf.traffic import ping
from tests.netns.forwarders import DEVICE, PORT, Pair, pair_of_forwarders
from tests.netns.nodes import wait_for

pytestmark = pytest.mark.netns


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """The same workers, and packets both ways, at the end."""
    with pair_of_forwarders(tmp_path) as pair:
        near, far = pair.ends
        before = [worker["pid"] for worker in near.client.stats()["per_worker"]]
        yield pair
        for end, other in ((near, far), (far, near)):
            address = other.pod.address
            # A neighbour may have to be found anew.
            wait_for(lambda: ping(end.pod, address, count=1, timeout_s=1).received, "a ping")  # noqa: B023
        workers = near.client.stats()["per_worker"]
        assert [worker["pid"] for worker in workers] == before
        assert {worker["deaths"] for worker in workers} == {0}


def lose_pings(pair: Pair, reason: str) -> None:
    """They are dropped by the near end for this reason."""
    end = pair.ends[0]
    before = end.drops().get(reason, 0)
    address = str(pair.address_of(1, 4))
    end.pod.run(["ping", "-c", "3", "-i", "0.01", "-W", "1", address], check=False)
    wait_for(lambda: end.drops().get(reason, 0) >= before + 3, f"three {reason}")


def test_underlay_that_is_down_or_refuses_to_send_costs_packets_only(pair: Pair) -> None:
    host = pair.ends[0].host
    host.ip(f"link set {UNDERLAY_DEVICE} down")
    lose_pings(pair, "send_unreachable")
    host.ip(f"link set {UNDERLAY_DEVICE} up")
    chain = f"chain out {{ type filter hook output priority 0; udp dport {PORT} drop; }};"
    host.run(["nft", f"table inet refuses {{ {chain} }}"])
    lose_pings(pair, "send_refused")
    host.run(["nft", "delete table inet refuses"])


def test_overlay_device_that_is_down_costs_packets_only(pair: Pair) -> None:
    """EIO on every write: what arrives meanwhile has nowhere to go."""
    near, far = pair.ends
    near.host.ip(f"link set {DEVICE} down")
    address = str(near.pod.address)
    far.pod.run(["ping", "-c", "3", "-i", "0.01", "-W", "1", address], check=False)
    wait_for(lambda: near.drops().get("tun_down", 0) >= 3, "three drops")
    near.host.ip(f"link set {DEVICE} up", f"route add 10.7.0.0/16 dev {DEVICE}")
