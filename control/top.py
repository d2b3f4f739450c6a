"""`loden top`: rates of peers and workers, live.

It reads the forwarder's counters from shared memory; nothing that moves packets waits for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from control.exits import fail
from control.flags import run_dir_option
from control.rates import counted, in_time, per_second, scaled
from control.traffic_table import traffic_cells, traffic_table
from forwarder.api import ForwarderClient
from forwarder.counters import PEER_COLUMNS
from forwarder.rpc import RpcError
from forwarder.wire.vxlan import format_mac

TIMEOUT_S = 5.0
LINES_BESIDE_PEERS = 7
"""Of the screen: heading, the workers' and the peers' headings, sums, blank lines."""
WORKERS_SHOWN = 8
FIRST_LOOK_S = 0.5
"""Something to see soon, however long the interval."""

Rates = dict[str, float]
"""Packets and bytes a second, by PEER_COLUMNS' names, and what else is counted."""

ORDERS: dict[str, Callable[[Rates], float]] = {
    "bytes": lambda rates: rates["out_bytes"] + rates["in_bytes"],
    "packets": lambda rates: rates["out_packets"] + rates["in_packets"],
    "sent": lambda rates: rates["out_bytes"],
    "received": lambda rates: rates["in_bytes"],
}
"""By what peers and workers are sorted, most first."""


@dataclass(frozen=True)
class Sample:
    """What was counted up to one moment."""

    at: float
    """time.monotonic()."""
    stats: dict[str, Any]
    peers: dict[str, dict[str, int]]
    """By a name that is the peer's alone."""


@dataclass(frozen=True)
class View:
    """What happened between two samples."""

    sample: Sample
    """The later one."""
    interval_s: float
    workers: list[tuple[str, Rates]]
    """Name and rates; `cpu` is the share of one CPU in use, if that is known."""
    peers: list[tuple[str, Rates]]
    total: Rates


def take_sample(client: ForwarderClient) -> Sample:
    """Raises ForwarderError."""
    stats, listed = client.stats(), client.peers()
    times_seen = Counter(hop.address for hop, _ in listed)
    peers = {}
    for hop, counts in listed:
        is_unique = times_seen[hop.address] == 1
        name = str(hop.address) if is_unique else f"{hop.address} {format_mac(hop.mac)}"
        peers[name] = dict(zip(PEER_COLUMNS, counts, strict=True))
    return Sample(time.monotonic(), stats, peers)


def compare(before: Sample, after: Sample) -> View:
    """The rates between two samples of one forwarder."""
    interval_s = max(after.at - before.at, 1e-3)
    workers = [
        (f"CPU {new['cpu']}", _rates_of_worker(old, new, interval_s))
        for old, new in zip(before.stats["per_worker"], after.stats["per_worker"], strict=True)
    ]
    peers = [
        (name, per_second(before.peers.get(name, {}), counts, interval_s))
        for name, counts in after.peers.items()
    ]
    total = per_second(before.stats["totals"], after.stats["totals"], interval_s)
    total["drops"] = sum(rates["drops"] for _, rates in workers)
    return View(after, interval_s, workers, peers, total)


def _rates_of_worker(old: dict[str, Any], new: dict[str, Any], interval_s: float) -> Rates:
    rates = per_second(old["totals"], new["totals"], interval_s)
    rates["drops"] = sum(per_second(old["drops"], new["drops"], interval_s).values())
    if old["pid"] == new["pid"] and "cpu_user_s" in old and "cpu_user_s" in new:
        used_s = sum(new[mode] - old[mode] for mode in ("cpu_user_s", "cpu_system_s"))
        rates["cpu"] = used_s / interval_s
    return rates


# ---- on the screen ------------------------------------------------------------------------------


def render(view: View, order: str, peers_shown: int | None) -> RenderableType:
    """`order`: one of ORDERS. `peers_shown`: at most so many; None: all."""
    stats = view.sample.stats
    device = stats["config"]["device"] if stats["config"] else "not configured"
    heading = (
        f"loden top   {device}, up {in_time(stats['up_s'])}, {counted(len(view.peers), 'peer')}   "
        f"{view.interval_s:.1f} s, by {order}"
    )
    if stats["control_gone_s"] is not None:
        heading += f"   no control for {in_time(stats['control_gone_s'])}"
    workers = traffic_table("worker", "CPU", "dropped/s")
    for name, rates in _sorted(view.workers, order)[:WORKERS_SHOWN]:
        cpu = f"{rates['cpu']:.0%}" if "cpu" in rates else "-"
        workers.add_row(name, *traffic_cells(rates), cpu, scaled(rates["drops"]))
    if len(view.workers) > 1:
        workers.add_row("all", *traffic_cells(view.total), "", scaled(view.total["drops"]))
    peers = traffic_table("peer")
    shown = _sorted(view.peers, order)[:peers_shown]
    for name, rates in shown:
        peers.add_row(name, *traffic_cells(rates))
    parts: list[RenderableType] = [Text(heading, style="bold"), "", workers, "", peers]
    if len(view.peers) > len(shown):
        parts.append(Text(f"{len(view.peers) - len(shown)} more", style="dim"))
    return Group(*parts)


def _sorted(rows: list[tuple[str, Rates]], order: str) -> list[tuple[str, Rates]]:
    return sorted(rows, key=lambda row: (-ORDERS[order](row[1]), row[0]))


@contextlib.contextmanager
def _keys() -> Iterator[int]:
    """A descriptor to read keys from, without Enter; the terminal is as it was afterwards."""
    terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)  # stdin may be another thing
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)  # Ctrl-C still interrupts
        yield terminal
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        os.close(terminal)


class Top:
    """One forwarder watched, through its restarts."""

    def __init__(self, run_dir: Path, order: str) -> None:
        """`order`: one of ORDERS, to begin with."""
        self._run_dir = run_dir
        self._orders = [order, *(other for other in ORDERS if other != order)]
        self._client: ForwarderClient | None = None
        self._before: Sample | None = None
        self._view: View | None = None
        self._lost_at: float | None = None
        self._error: RpcError | None = None

    def next_order(self) -> None:
        self._orders.append(self._orders.pop(0))

    def look(self) -> None:
        """Takes note of what happened since the last look; the first sees nothing move.

        Raises RpcError while there is no forwarder.
        """
        try:
            self._client = self._client or ForwarderClient(self._run_dir, TIMEOUT_S)
            after = take_sample(self._client)
        except RpcError as error:
            self.close()
            self._error, self._lost_at = error, self._lost_at or time.monotonic()
            raise
        before = self._before
        if before is None or before.stats["pid"] != after.stats["pid"]:
            before = after
        self._before, self._view = after, compare(before, after)
        self._error = self._lost_at = None

    def picture(self, peers_shown: int | None) -> RenderableType:
        """What the last look saw, or why it saw nothing; `peers_shown` as in render."""
        if self._error is not None or self._view is None:
            lost_s = time.monotonic() - (self._lost_at or time.monotonic())
            return Text(f"{self._error}; for {in_time(lost_s)}", style="red")
        return render(self._view, self._orders[0], peers_shown)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = self._before = None


@click.command("top")
@run_dir_option
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@click.option("--count", type=click.IntRange(min=1), help="Look so many times, then end.")
@click.option("--once", is_flag=True, help="The same as --count 1, for scripts.")
@click.option(
    "--sort",
    type=click.Choice(list(ORDERS)),
    default="bytes",
    show_default=True,
    help="What comes first.",
)
def top_command(run_dir: Path, interval: float, count: int | None, once: bool, sort: str) -> None:
    """Show what each peer and worker sends and receives, live.

    q or Ctrl-C ends it, s sorts by something else.  With --count or --once, or where the output is
    no terminal, it prints one table after the other, of all peers.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(emoji=False, highlight=False)
    top = Top(run_dir, sort)
    try:
        top.look()
        with contextlib.suppress(KeyboardInterrupt):
            if once or count or not console.is_terminal:
                _print(top, console, interval, 1 if once else count)
            else:
                _live(top, console, interval)
    except RpcError as error:
        fail("top", error)
    finally:
        top.close()


def _print(top: Top, console: Console, interval_s: float, count: int | None) -> None:
    """`count` None: until interrupted."""
    while count is None or count > 0:
        time.sleep(interval_s)
        with contextlib.suppress(RpcError):  # the picture says so
            top.look()
        console.print(top.picture(None))
        count = None if count is None else count - 1


def _live(top: Top, console: Console, interval_s: float) -> None:
    due_at = time.monotonic() + min(interval_s, FIRST_LOOK_S)
    with _keys() as terminal, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            timeout_s = max(0.0, due_at - time.monotonic())
            pressed = b""
            if select.select([terminal], [], [], timeout_s)[0]:
                pressed = os.read(terminal, 64)
            if b"q" in pressed or b"Q" in pressed:
                return
            if b"s" in pressed:
                top.next_order()
            if time.monotonic() >= due_at:
                due_at = time.monotonic() + interval_s
                with contextlib.suppress(RpcError):
                    top.look()
            room = console.height - LINES_BESIDE_PEERS - WORKERS_SHOWN
            live.update(top.picture(max(room, 1)), refresh=True)
