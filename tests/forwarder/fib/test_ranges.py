"""Flattened longest-prefix match, on tables small enough to try every address."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from forwarder.fib.layout import NO_ADJACENCY
from forwarder.fib.ranges import RangeTable, disjoint_ranges
from forwarder.fib.routes import Prefix

BITS = 6
TOP = (1 << 128) - (1 << BITS)


@st.composite
def small_tables(draw: st.DrawFn) -> dict[Prefix, int]:
    """Prefixes of the first or the last 64 addresses there are, and the default route."""
    base = draw(st.sampled_from([0, TOP]))
    routes = {}
    for row in range(1, draw(st.integers(0, 10)) + 1):
        length = draw(st.sampled_from([0, *range(128 - BITS, 129)]))
        number = base + draw(st.integers(0, (1 << BITS) - 1))
        routes[Prefix(6, number, 128).shortened(length)] = row
    return routes


@given(small_tables())
def test_ranges_say_what_the_longest_prefix_says(routes: dict[Prefix, int]) -> None:
    ranges = list(disjoint_ranges(routes.items()))
    firsts = [first for first, _ in ranges]
    assert firsts == sorted(set(firsts))
    assert all(a[1] != b[1] for a, b in pairwise(ranges))
    assert len(ranges) <= 2 * len(routes) + 1
    for number in (*range(1 << BITS), *range(TOP, 1 << 128)):
        covering = [p for p in routes if p.address <= number <= p.last]
        longest = max(covering, key=lambda prefix: prefix.length, default=None)
        expected = NO_ADJACENCY if longest is None else routes[longest]
        below = [row for first, row in ranges if first <= number]
        assert (below[-1] if below else NO_ADJACENCY) == expected


def ranges_of(table: RangeTable) -> list[tuple[int, int]]:
    firsts = [int(high) << 64 | int(low) for high, low in table.words]
    return list(zip(firsts, table.rows.tolist(), strict=True))


@given(small_tables(), small_tables())
def test_changes_one_by_one_end_where_a_new_compilation_does(
    before: dict[Prefix, int], after: dict[Prefix, int]
) -> None:
    table = RangeTable()
    table.load(before)
    routes = dict(before)
    for prefix in sorted(before.keys() | after.keys(), key=hash):
        if prefix in after:
            routes[prefix] = after[prefix]
            first = table.set(prefix, after[prefix])
        else:
            del routes[prefix]
            covers = [p for p in routes if p.address <= prefix.address and p.last >= prefix.last]
            cover = max(covers, key=lambda p: p.length, default=None)
            first = table.delete(prefix, NO_ADJACENCY if cover is None else routes[cover])
        assert ranges_of(table) == list(disjoint_ranges(routes.items()))
        assert 0 <= first <= len(table)


def test_what_lies_before_the_first_range_that_differs_is_as_it_was() -> None:
    table = RangeTable()
    prefixes = [Prefix(6, number << 80, 48) for number in range(100)]
    table.load({prefix: row + 1 for row, prefix in enumerate(prefixes)})
    before = ranges_of(table)
    first = table.set(prefixes[60], 1000)
    assert ranges_of(table)[:first] == before[:first]
    assert (first, len(table)) == (60, 101)
    assert ranges_of(table)[60] == (60 << 80, 1000)
