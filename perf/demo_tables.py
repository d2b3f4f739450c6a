"""The demo's tables, from what `loden status --json` and `loden routes --json` say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from forwarder.counters import Drop


def figure_table(figures: Iterable[tuple[str, str, str]]) -> Table:
    """Rows of what was measured, in which direction, and the result."""
    table = Table(title="Between the pods", title_justify="left")
    for heading in ("what", "direction", "measured"):
        table.add_column(heading)
    for figure in figures:
        table.add_row(*figure)
    return table


def route_table(node: str, routes: list[dict[str, Any]]) -> Table:
    """`routes`: as `loden routes --json` has them."""
    table = Table(title=f"Routes of {node}", title_justify="left")
    for heading in ("pods", "kind", "node", "VTEP's MAC", "VNI"):
        table.add_column(heading)
    for route in routes:
        fields = (route.get(name) for name in ("prefix", "kind", "address", "mac", "vni"))
        table.add_row(*("" if field is None else str(field) for field in fields))
    return table


def worker_table(node: str, status: dict[str, Any]) -> Table:
    """`status`: as `loden status --json` has it."""
    table = Table(title=f"Workers of {node}", title_justify="left")
    for heading in ("CPU", "packets out", "bytes out", "packets in", "bytes in"):
        table.add_column(heading, justify="right")
    for worker in status["workers"]:
        totals = worker["totals"]
        names = ("out_packets", "out_bytes", "in_packets", "in_bytes")
        table.add_row(str(worker["cpu"]), *(f"{totals[name]:,}" for name in names))
    return table


def drop_table(node: str, status: dict[str, Any]) -> Table:
    """Only the reasons that occurred."""
    table = Table(title=f"Packets dropped by {node}", title_justify="left")
    table.add_column("packets", justify="right")
    table.add_column("why")
    counts = {name: count for name, count in status["drops"].items() if count}
    for name, count in counts.items():
        table.add_row(f"{count:,}", Drop[name.upper()].sentence)
    if not counts:
        table.add_row("0", "none was dropped")
    return table
