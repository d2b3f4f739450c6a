"""Longest-prefix match flattened into disjoint ranges: how IPv6 routes are searched."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from forwarder.arrays import ULongs, Words
from forwarder.fib.layout import NO_ADJACENCY
from forwarder.fib.routes import Prefix

LOW_BITS = (1 << 64) - 1
ADDRESSES = 1 << 128


def disjoint_ranges(routes: Iterable[tuple[Prefix, int]]) -> Iterator[tuple[int, int]]:
    """Longest-prefix match flattened: (first address, adjacency row) of each range, ascending.

    A range ends where the next begins.  Row NO_ADJACENCY stands for the gaps between routes.
    """
    open_routes: list[tuple[int, int]] = []  # (last address, row), outermost first
    current = NO_ADJACENCY

    def close_until(address: int | None) -> Iterator[tuple[int, int]]:
        """Ends the routes that lie before `address` (None: all)."""
        while open_routes and (address is None or open_routes[-1][0] < address):
            end, _ = open_routes.pop()
            outer = open_routes[-1][1] if open_routes else NO_ADJACENCY
            if end + 1 < ADDRESSES and not (open_routes and open_routes[-1][0] == end):
                yield end + 1, outer

    pending: list[tuple[int, int]] = []
    for prefix, row in sorted(routes, key=lambda route: (route[0].address, route[0].length)):
        pending.extend(close_until(prefix.address))
        pending.append((prefix.address, row))
        open_routes.append((prefix.last, row))
    pending.extend(close_until(None))
    for position, (first, row) in enumerate(pending):
        superseded = position + 1 < len(pending) and pending[position + 1][0] == first
        if not superseded and row != current:
            yield first, row
            current = row


class RangeTable:
    """The ranges of IPv6 routes that change one by one: each touches only what lies within it.

    Always those that `disjoint_ranges` makes of all routes.
    """

    def __init__(self) -> None:
        self.words: ULongs = np.zeros((0, 2), np.uint64)
        """First address of each range as (high, low) 64 bits, ascending."""
        self.rows: Words = np.zeros(0, np.uint32)
        """Its adjacency row."""
        self._firsts: list[int] = []
        self._rows_of_routes: dict[tuple[int, int], int] = {}  # by (address, length)
        self._routes: list[tuple[int, int]] = []  # the same, ascending

    def __len__(self) -> int:
        return len(self._firsts)

    def load(self, routes: Mapping[Prefix, int]) -> None:
        """Makes it those of `routes` (prefix -> adjacency row) and no others."""
        self._rows_of_routes = {(p.address, p.length): row for p, row in routes.items()}
        self._routes = sorted(self._rows_of_routes)
        ranges = list(disjoint_ranges(routes.items()))
        self._splice(0, len(self), ranges)

    def set(self, prefix: Prefix, row: int) -> int:
        """Sets a route; returns the place of the first range that differs."""
        key = (prefix.address, prefix.length)
        if key not in self._rows_of_routes:
            insort(self._routes, key)
        self._rows_of_routes[key] = row
        return self._flatten_within(prefix, row)

    def delete(self, prefix: Prefix, covering_row: int) -> int:
        """Removes a route; `covering_row`: of the longest route around it, or NO_ADJACENCY."""
        key = (prefix.address, prefix.length)
        del self._rows_of_routes[key]
        del self._routes[bisect_left(self._routes, key)]
        return self._flatten_within(prefix, covering_row)

    def _flatten_within(self, prefix: Prefix, row: int) -> int:
        """Makes anew the ranges of one prefix, which has `row` but for longer routes in it."""
        first, last = prefix.address, prefix.last
        begin = bisect_right(self._routes, (first, prefix.length))
        end = bisect_right(self._routes, (last, prefix.bits))
        inner = [(Prefix(6, *key), self._rows_of_routes[key]) for key in self._routes[begin:end]]
        pieces = [r for r in disjoint_ranges([(prefix, row), *inner]) if r[0] <= last]
        if not pieces or pieces[0][0] != first:
            pieces.insert(0, (first, row))
        start, stop = bisect_left(self._firsts, first), bisect_right(self._firsts, last)
        before = self._row_before(start)
        if before == pieces[0][1]:
            del pieces[0]
        if last + 1 < ADDRESSES:
            ends_here = stop < len(self) and self._firsts[stop] == last + 1
            following = int(self.rows[stop]) if ends_here else self._row_before(stop)
            stop += ends_here
            if following != (pieces[-1][1] if pieces else before):
                pieces.append((last + 1, following))
        self._splice(start, stop, pieces)
        return start

    def _row_before(self, place: int) -> int:
        return int(self.rows[place - 1]) if place else NO_ADJACENCY

    def _splice(self, start: int, stop: int, ranges: list[tuple[int, int]]) -> None:
        firsts = [first for first, _ in ranges]
        self._firsts[start:stop] = firsts
        words = np.array([(f >> 64, f & LOW_BITS) for f in firsts], np.uint64).reshape(-1, 2)
        rows = np.array([row for _, row in ranges], np.uint32)
        self.words = np.concatenate((self.words[:start], words, self.words[stop:]))
        self.rows = np.concatenate((self.rows[:start], rows, self.rows[stop:]))
