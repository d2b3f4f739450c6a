"""The routes that loden is measured with divide a network, in an order that is no help."""

from __future__ import annotations

from ipaddress import IPv4Network
from itertools import pairwise

import pytest

from forwarder.fib.routes import Prefix
from perf.far_network import split_network


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
