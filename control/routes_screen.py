"""`loden routes`: the routes that packets follow on this node, as the workers see them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from control.exits import fail
from control.flags import run_dir_option
from control.rates import counted, in_time
from control.status import ask_control
from forwarder.api import ForwarderClient
from forwarder.fib.routes import IPAddress, NextHop, Prefix, RemoteVtep, next_hop_to_wire
from forwarder.rpc import RpcError

TIMEOUT_S = 5.0
COLUMNS = ("prefix", "kind", "address", "mac", "vni")


def prefix_argument(ctx: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    try:
        return None if text is None else Prefix.of(ip_network(text))
    except ValueError as error:
        allowed = "an address or a network such as 10.5.7.0/24"
        raise click.BadParameter(f"{error}; allowed: {allowed}", ctx, parameter) from None


def address_option(ctx: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    try:
        return None if text is None else ip_address(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no IP address", ctx, parameter) from None


@click.command("routes")
@click.argument("prefix", required=False, callback=prefix_argument)
@click.option("--to", callback=address_option, metavar="IP", help="Only those to this VTEP.")
@run_dir_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def routes_command(
    prefix: Prefix | None, to: IPAddress | None, run_dir: Path, as_json: bool
) -> None:
    """List the routes that packets follow on this node, and how old that knowledge is.

    With PREFIX, an address or a network, those that lie in it or contain it: of several that
    contain an address, packets follow the longest.
    """
    try:
        with ForwarderClient(run_dir, TIMEOUT_S) as forwarder:
            listed = sorted(forwarder.list_routes(), key=lambda route: route[0])
    except RpcError as error:
        fail("routes", error)
    rows = [
        {"prefix": str(routed), **next_hop_to_wire(hop)}
        for routed, hop, _ in listed
        if (prefix is None or overlaps(routed, prefix)) and (to is None or leads_to(hop, to))
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    console = Console(emoji=False, highlight=False)
    if rows:
        console.print(as_table(rows))
    total = counted(len(listed), "route")
    count = f"{len(rows):,} of {total}" if prefix or to else total
    console.print(f"{count}; {age_of_routes(run_dir)}")


def overlaps(one: Prefix, other: Prefix) -> bool:
    """Whether they have an address in common: then one contains the other."""
    if one.version != other.version:
        return False
    shorter, longer = sorted((one, other), key=lambda prefix: prefix.length)
    return longer.shortened(shorter.length) == shorter


def leads_to(hop: NextHop, vtep: IPAddress) -> bool:
    return isinstance(hop, RemoteVtep) and hop.address == vtep


def as_table(rows: Iterable[dict[str, object]]) -> Table:
    table = Table("prefix", "kind", "VTEP", "MAC", "VNI", box=None)
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in COLUMNS))
    return table


def age_of_routes(run_dir: Path) -> str:
    """How sure these routes are, in words."""
    try:
        age_s = ask_control(run_dir)["routes"]["age_s"]
    except RpcError as error:
        return f"nobody keeps them up to date: {error}"
    if age_s is None:
        return "those of an earlier control process: etcd has not answered this one yet"
    return f"as etcd had them {in_time(age_s)} ago" if age_s else "in sync with etcd"
