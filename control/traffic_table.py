"""The table of rates that `loden status` and `loden top` have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from control.rates import in_bits, scaled


def traffic_table(first: str, *last: str) -> Table:
    """Without rows; each begins with a name and `traffic_cells`, and ends with the `last`."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True, min_width=10)
    for heading in ("sent/s", "bit/s", "received/s", "bit/s"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=9)
    for heading in last:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def traffic_cells(rates: Mapping[str, float]) -> Iterator[str]:
    """`rates`: packets and bytes a second, by the names of forwarder.counters.PEER_COLUMNS."""
    for way in ("out", "in"):
        yield scaled(rates[f"{way}_packets"])
        yield in_bits(rates[f"{way}_bytes"]).removesuffix("bit/s")
