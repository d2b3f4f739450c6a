"""The demo's tables, from what `loden status --json` and `loden routes --json` say.

`statuses` and `routes` are one answer per host, in the hosts' order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table


def figure_table(figures: Iterable[tuple[str, str, str]]) -> Table:
    """Rows of what was measured, in which direction, and the result."""
    table = _table("Between the pods", "what", "direction", "measured")
    for figure in figures:
        table.add_row(*figure)
    return table


def route_table(routes: Sequence[list[dict[str, Any]]]) -> Table:
    table = _table("Routes", "host", "pods", "kind", "VTEP", "MAC", "VNI")
    for number, listed in enumerate(routes):
        for route in listed:
            names = ("prefix", "kind", "address", "mac", "vni")
            table.add_row(f"host{number}", *(str(route.get(name, "")) for name in names))
    return table


def worker_table(statuses: Sequence[dict[str, Any]]) -> Table:
    columns = ("out_packets", "out_bytes", "in_packets", "in_bytes")
    headings = ("packets out", "bytes out", "packets in", "bytes in")
    table = _table("Workers", "host", "CPU", *headings)
    for column in table.columns[2:]:
        column.justify = "right"
    for number, status in enumerate(statuses):
        for worker in status["workers"]:
            counts = (f"{worker['totals'][name]:,}" for name in columns)
            table.add_row(f"host{number}", str(worker["cpu"]), *counts)
    return table


def drop_table(statuses: Sequence[dict[str, Any]]) -> Table:
    """Only the reasons that occurred."""
    table = _table("Packets dropped by loden", "host", "packets", "because")
    for number, status in enumerate(statuses):
        counts = {name: count for name, count in status["drops"].items() if count}
        for name, count in counts.items():
            table.add_row(f"host{number}", f"{count:,}", status["drop_help"][name])
        if not counts:
            table.add_row(f"host{number}", "0", "")
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(*headings, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.title_style = "bold"
    return table
