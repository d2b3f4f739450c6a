"""Routes come back out as they were put in."""

from forwarder.fib.listing import list_routes
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
