"""Longest-prefix match flattened into disjoint ranges: how IPv6 routes are searched."""

from collections.abc import Iterable, Iterator

from forwarder.fib.layout import NO_ADJACENCY
from forwarder.fib.routes import Prefix


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
            if end + 1 < 1 << 128 and not (open_routes and open_routes[-1][0] == end):
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
