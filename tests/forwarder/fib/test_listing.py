"""Routes and peers come back out as they were put in."""

from ipaddress import ip_address

import numpy as np

from forwarder.fib.listing import find_route, list_peers, list_routes, usage
from forwarder.fib.routes import Blackhole, Local, NextHop, Prefix
from tests.forwarder.fibs import Fib, make_fib, vtep

ROUTES: dict[Prefix, NextHop | None] = {
    Prefix.parse("10.0.0.0/24"): Local(),
    Prefix.parse("10.0.1.0/24"): vtep(1),
    Prefix.parse("10.0.1.77/32"): vtep(2, "2001:db8::2"),
    Prefix.parse("0.0.0.0/0"): Blackhole(),
    Prefix.parse("2001:db8:5::/48"): vtep(1),
    Prefix.parse("::/0"): vtep(3),
}


def listed(fib: Fib, page_size: int) -> dict[Prefix, NextHop]:
    found: dict[Prefix, NextHop] = {}
    after: int | None = 0
    rows = dict(fib.writer.adjacency_rows())
    while after is not None:
        page, after = list_routes(fib.memory, after, page_size)
        assert len(page) <= page_size
        for prefix, hop, row in page:
            assert prefix not in found
            assert rows[hop] == row
            found[prefix] = hop
    return found


def test_routes_are_listed_as_they_were_given() -> None:
    fib = make_fib()
    assert listed(fib, 10) == {}
    fib.writer.apply(ROUTES)
    for page_size in (1, 2, 6, 100):
        assert listed(fib, page_size) == ROUTES


def test_removed_routes_are_not_listed_and_their_slots_are_used_again() -> None:
    fib = make_fib()
    fib.writer.apply(ROUTES)
    gone = list(ROUTES)[::2]
    fib.writer.apply(dict.fromkeys(gone))
    left = {prefix: hop for prefix, hop in ROUTES.items() if prefix not in gone}
    assert listed(fib, 1) == left
    used = int(fib.memory.header["routes_used"])
    fib.route_to(("10.99.0.0/24", vtep(9)))
    assert listed(fib, 100) == left | {Prefix.parse("10.99.0.0/24"): vtep(9)}
    assert fib.memory.header["routes_used"] == used


def test_peers_are_listed_once_with_their_counters() -> None:
    fib = make_fib()
    per_peer = np.zeros((2, fib.memory.capacity.adjacencies, 4), np.int64)
    assert list_peers(fib.memory, per_peer) == []
    fib.writer.apply(ROUTES)
    for hop, row in fib.writer.adjacency_rows():
        per_peer[:, row] = hash(hop) % 1000
    peers = dict(list_peers(fib.memory, per_peer))
    assert peers.keys() == {vtep(1), vtep(2, "2001:db8::2"), vtep(3)}
    assert all(counts == [2 * (hash(hop) % 1000)] * 4 for hop, counts in peers.items())
    fib.writer.apply(dict.fromkeys(prefix for prefix, hop in ROUTES.items() if hop == vtep(1)))
    assert dict(list_peers(fib.memory, per_peer)).keys() == peers.keys() - {vtep(1)}


def test_usage_counts_what_is_in_use() -> None:
    fib = make_fib()
    fib.writer.apply(ROUTES)
    gone = [prefix for prefix, hop in ROUTES.items() if hop == vtep(1)]
    fib.writer.apply(dict.fromkeys(gone))
    assert usage(fib.memory) == {
        "routes": len(ROUTES) - len(gone),
        "routes_capacity": 512,
        "adjacencies": 4,  # local, blackhole, two peers
        "adjacencies_capacity": 64,
    }


def test_route_found_is_the_longest_that_holds_the_address() -> None:
    fib = make_fib()
    assert find_route(fib.memory, ip_address("10.0.0.1")) is None
    fib.writer.apply(ROUTES)
    expected = {
        "10.0.0.1": "10.0.0.0/24",
        "10.0.1.76": "10.0.1.0/24",
        "10.0.1.77": "10.0.1.77/32",
        "192.0.2.1": "0.0.0.0/0",
        "2001:db8:5:ffff::": "2001:db8:5::/48",
        "2001:db8:6::": "::/0",
    }
    for address, text in expected.items():
        prefix = Prefix.parse(text)
        assert find_route(fib.memory, ip_address(address)) == (prefix, ROUTES[prefix])
    fib.route_to(("0.0.0.0/0", None))
    assert find_route(fib.memory, ip_address("192.0.2.1")) is None
