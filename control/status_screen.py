"""`loden status`: one screen for a person, or JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from control.exits import EXIT_FAILURE, fail
from control.flags import run_dir_option
from control.rates import counted, in_time, scaled
from control.status import gather
from control.traffic_table import traffic_cells, traffic_table
from forwarder.rpc import RpcError

Status = Mapping[str, Any]

WORKERS_SHOWN = 8
DROPS_SHOWN = 8
PATHS_SHOWN = 4
"""Of each, the rest is a number: one screen has some 40 lines."""


@click.command("status")
@run_dir_option
@click.option(
    "--interval",
    type=click.FloatRange(0, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to watch the counters, for the rates; 0: none.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status_command(run_dir: Path, interval: float, as_json: bool) -> None:
    """Show this node: subnet, etcd, routes, workers with their rates, offloads, drops.

    What is not running is said, and since when; the rest is shown.  Ends with 0 when packets can
    flow, with 1 when not.
    """
    try:
        found = gather(run_dir, interval_s=interval)
    except RpcError as error:
        fail("status", error)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show(found, Console(emoji=False, highlight=False))
    sys.exit(0 if found["ready"] else EXIT_FAILURE)


def show(status: Status, console: Console) -> None:
    """Prints what `status.gather` found."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    ready = "[green]yes[/green]" if status["ready"] else "[red]no[/red]"
    grid.add_row("ready", "; ".join([ready, *map(escape, status["not_ready_because"])]))
    for name in ("control", "forwarder"):
        if "gone_s" in status[name]:
            grid.add_row(name, f"[red]missing for {in_time(status[name]['gone_s'])}[/red]")
    if "node" in status:
        _add_node(grid, status)
        _add_etcd(grid, status)
    if "totals" in status:
        _add_forwarder(grid, status)
    console.print(grid)
    if "totals" in status:
        console.print(_workers(status), _drops(status))


def _add_node(grid: Table, status: Status) -> None:
    node, network = status["node"], status["network"]
    addresses = [text for text in (node["public_ip"], node["public_ipv6"]) if text]
    grid.add_row("node", f"{' '.join(addresses) or '-'} on {node['interface'] or '-'}")
    networks = [text for text in (network["ipv4"], network["ipv6"]) if text]
    grid.add_row("subnet", f"{status['subnet'] or '-'} of {' and '.join(networks) or '-'}")
    grid.add_row(
        "device",
        f"{node['device']}, MTU {node['mtu_bytes'] or '-'}, VNI {network['vni']}, "
        f"UDP port {network['port']}, MAC {node['vtep_mac']}",
    )


def _add_etcd(grid: Table, status: Status) -> None:
    etcd, routes = status["etcd"], status["routes"]
    state = etcd["state"].replace("_", " ")
    if etcd["state"] != "in_sync":
        since_s = status["control"]["up_s"] if etcd["age_s"] is None else etcd["age_s"]
        state = f"[red]{state} for {in_time(since_s)}[/red]"
    error = f" ({escape(etcd['error'])})" if etcd["error"] else ""
    grid.add_row("etcd", f"{state}; {', '.join(etcd['endpoints'])}{error}")
    if kept := etcd.get("retained"):
        lost = f"[red]{kept} leases and routes that etcd has lost are still followed[/red]"
        grid.add_row("LOST", f"{lost}; are they gone indeed: loden route confirm-loss")
    if (lease := etcd.get("lease")) and not etcd["lease_not_held_because"]:
        expires_s = lease["expires_in_s"]
        left = "no end" if expires_s is None else f"renewed, {in_time(expires_s)} left"
        grid.add_row("lease", f"held, {left}")
    else:
        grid.add_row("lease", f"[red]{escape(etcd['lease_not_held_because'] or '-')}[/red]")
    text = f"{routes['count']:,}"
    if routes["age_s"]:
        text += f", as etcd had them {in_time(routes['age_s'])} ago"
    if routes["from_saved_state"]:
        text += ", from the state on disk"
    for reason, count in routes["ignored"].items():
        text += f"; {count} ignored: {reason}"
    grid.add_row("routes", text)


def _add_forwarder(grid: Table, status: Status) -> None:
    in_use = [name for name, state in status["offloads"].items() if state == "on"]
    grid.add_row("offloads", f"in use: {', '.join(in_use) or 'none'}")
    for name, state in status["offloads"].items():
        if state != "on":
            grid.add_row("", f"{name}: {escape(state)}")
    grid.add_row("seccomp", escape(status["seccomp"]))
    if limits := status["path_mtus"]:
        shown = list(limits.items())[:PATHS_SHOWN]
        said = ", ".join(f"{limit} bytes to {peer}" for peer, limit in shown)
        more = f" and {len(limits) - PATHS_SHOWN} more" if len(limits) > PATHS_SHOWN else ""
        grid.add_row("narrow ways", f"pods' packets of at most {said}{more}")
    for way, name in (("out", "sent"), ("in", "received")):
        packets, size = (status["totals"][f"{way}_{what}"] for what in ("packets", "bytes"))
        grid.add_row(name, f"{counted(packets, 'packet')}, {scaled(size)}B")


def _workers(status: Status) -> Table:
    """Each worker's rates, and how it is; of many, the busiest."""
    table = traffic_table("worker", "CPU", "")
    workers = status["workers"]
    shown = sorted(workers, key=_busyness, reverse=True)[:WORKERS_SHOWN]
    for worker in sorted(shown, key=lambda worker: int(worker["cpu"])):
        share = f"{worker['cpu_share']:.0%}" if "cpu_share" in worker else ""
        table.add_row(f"CPU {worker['cpu']}", *_cells(worker), share, _condition(worker))
    if len(workers) > 1:
        others = len(workers) - len(shown)
        table.add_row("all", *_cells(status), "", f"{others} more" if others else "")
    return table


def _busyness(worker: Status) -> float:
    rates: Mapping[str, float] = worker.get("rates") or worker["totals"]
    return rates["out_packets"] + rates["in_packets"]


def _cells(counted: Status) -> Iterable[str]:
    return traffic_cells(counted["rates"]) if "rates" in counted else [""] * 4


def _condition(worker: Status) -> str:
    deaths = f"died {worker['deaths']}×" if worker["deaths"] else ""
    return deaths if worker["alive"] else f"[red]dead[/red] {deaths}"


def _drops(status: Status) -> Table | str:
    """What was lost, most first, and why; nothing when nothing was."""
    lost = [(count, name, status["drop_help"][name]) for name, count in status["drops"].items()]
    receive_drops = sum(worker["receive_drops"] for worker in status["workers"])
    lost.append((receive_drops, "(socket)", "a receive queue was full: workers were too slow"))
    lost.append((status["device_drops"], "(device)", "its queues were full: likewise"))
    lost = sorted((one for one in lost if one[0]), reverse=True)
    if not lost:
        return "nothing was dropped"
    table = Table("dropped", box=None, padding=(0, 2, 0, 0))
    table.add_column("packets", justify="right")
    table.add_column("a second", justify="right")
    table.add_column("because", overflow="fold")
    rates = status.get("drop_rates", {})
    for count, name, sentence in lost[:DROPS_SHOWN]:
        rate = scaled(rates[name]).strip() if rates.get(name) else ""
        table.add_row(name, f"{count:,}", rate, sentence)
    if len(lost) > DROPS_SHOWN:
        rest = sum(count for count, _, _ in lost[DROPS_SHOWN:])
        table.add_row("others", f"{rest:,}", "", "--json has them all")
    return table
