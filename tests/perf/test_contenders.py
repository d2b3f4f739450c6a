"""Contenders get through on the same topology, or say why they cannot."""

from __future__ import annotations

from ipaddress import IPv4Network
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from forwarder.fib.routes import Prefix
from perf.contenders import MTU_BYTES, connect_bare, connect_kernel, pair_of, split_network
from perf.topology import Topology
from perf.traffic import MeasurementError, ping


@pytest.mark.parametrize("count", [1, 2, 10, 1000, 1 << 16])
def test_split_network_is_covered_once(count: int) -> None:
    network = IPv4Network("16.0.0.0/8")
    prefixes = split_network(network, count)

    assert len(prefixes) == count
    in_order = sorted(prefixes, key=lambda prefix: prefix.address)
    assert in_order[0].address == int(network.network_address)
    assert in_order[-1].last == int(network.broadcast_address)
    for one, following in pairwise(in_order):
        assert following.address == one.last + 1
    assert max(prefix.length for prefix in prefixes) <= 24


def test_split_network_is_in_random_order_and_the_same_each_time() -> None:
    network = IPv4Network("16.0.0.0/8")
    assert split_network(network, 64) == split_network(network, 64)
    assert split_network(network, 64) != sorted(split_network(network, 64))
    assert split_network(network, 2) == [Prefix.parse("16.0.0.0/9"), Prefix.parse("16.128.0.0/9")]


@pytest.mark.parametrize("count", [0, (1 << 16) + 1])
def test_count_out_of_range_is_named(count: int) -> None:
    with pytest.raises(ValueError, match=f"count: {count} is not allowed; allowed: 1 to 65536"):
        split_network(IPv4Network("16.0.0.0/8"), count)


@pytest.mark.netns
@pytest.mark.parametrize("plain_nic", [False, True])
def test_kernel_carries_full_packets_and_the_offloads_are_on_record(plain_nic: bool) -> None:
    with pair_of(connect_kernel, plain_nic=plain_nic) as pair:
        full = ping(pair.near, pair.far.address, packet_bytes=MTU_BYTES, dont_fragment=True)
        assert full.loss == 0
        for name in ("tx-udp_tnl-segmentation", "generic-segmentation-offload"):
            assert pair.facts["offloads"][name] is not plain_nic
        assert pair.directory.exists()
    assert not pair.directory.exists()


@pytest.mark.netns
def test_contender_that_carries_nothing_is_no_contender() -> None:
    def connect_badly(topology: Topology, directory: Path) -> dict[str, Any]:
        facts = connect_bare(topology, directory)
        topology.hosts[1].ip("route flush 10.7.1.0/24")
        return facts

    with (
        pytest.raises(MeasurementError, match=r"no ping gets through to 10\.7\.2\.2"),
        pair_of(connect_badly),
    ):
        pass
