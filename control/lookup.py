"""`loden lookup`: what would happen to a packet, and why.

kernel   which device would the packet leave by: does it reach the overlay at all?
routes   the longest prefix in the FIB that the workers use, and the etcd key it comes from
workers  the outcome of their own checks (forwarder/rehearsal.py)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from control import kernel_route
from control.exits import EXIT_FAILURE, EXIT_USAGE, fail
from control.flags import run_dir_option
from control.kernel_route import Decision
from control.lease import ROUTES
from control.status import STATUS_TIMEOUT_S, ask_control
from forwarder.api import ForwarderClient
from forwarder.counters import Drop
from forwarder.fib.routes import IPAddress, Local, NextHop, RemoteVtep, next_hop_to_wire
from forwarder.rpc import RpcError


@dataclass(frozen=True)
class Answer:
    """One verdict and the facts behind it, in the order they are shown; all plain values."""

    arrives: bool
    """Whether the packet gets where it shall."""
    verdict: str
    facts: dict[str, Any]


def parse_address(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> IPv4Address | IPv6Address | None:
    """Raises click.BadParameter."""
    try:
        return None if value is None else ip_address(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no IP address", ctx, param) from None


@click.command("lookup")
@click.argument("address", callback=parse_address)
@click.option(
    "--from",
    "source",
    metavar="ADDRESS",
    callback=parse_address,
    help="Ask of a packet that arrives here from this pod of another node.",
)
@click.option(
    "--vtep",
    metavar="ADDRESS",
    callback=parse_address,
    help="With --from: the node that sends it.  [default: the one the pod's address is routed to]",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@run_dir_option
def lookup_command(
    address: IPAddress,
    source: IPAddress | None,
    vtep: IPAddress | None,
    as_json: bool,
    run_dir: Path,
) -> None:
    """Tell what would happen to a packet to ADDRESS, and why.

    Asks the kernel for its route, and the forwarder for what its workers would do with the packet:
    which node it goes to, by which route, in which way; or for which reason it is dropped.  Nothing
    is sent.

    With --from it is a packet on its way in, from a pod of another node to ADDRESS.

    Ends with 0 when the packet would get where it shall, with 1 when not.
    """
    if vtep is not None and source is None:
        fail("lookup", "--vtep: says who sends a packet that arrives; give --from, too", EXIT_USAGE)
    if source is not None and source.version != address.version:
        fail("lookup", f"--from {source}: allowed: an IPv{address.version} address", EXIT_USAGE)
    try:
        with ForwarderClient(run_dir, STATUS_TIMEOUT_S) as forwarder:
            if source is None:
                answer = outbound(forwarder, run_dir, address)
            else:
                answer = inbound(forwarder, run_dir, address, source, vtep)
    except RpcError as error:
        fail("lookup", error)
    if as_json:
        told = {"arrives": answer.arrives, "verdict": answer.verdict, **answer.facts}
        click.echo(json.dumps(told, indent=2))
    else:
        show(answer, Console(emoji=False))
    if not answer.arrives:
        raise SystemExit(EXIT_FAILURE)


def outbound(forwarder: ForwarderClient, run_dir: Path, destination: IPAddress) -> Answer:
    """Of a packet from a pod of this node.  Raises RpcError."""
    found = forwarder.lookup(destination)
    device = (forwarder.hello()["config"] or {}).get("device")
    kernel = kernel_route.decide(destination)
    hop = found.route[1] if found.route else None
    reaches_us = kernel.device == device
    facts: dict[str, Any] = {
        "kernel": str(kernel),
        "reaches_overlay": reaches_us,
        "route": _route_facts(forwarder, run_dir, destination),
        "reason": found.reason.name.lower() if reaches_us and found.reason else None,
    }
    if isinstance(hop, RemoteVtep):
        whole = "leave whole, the NIC cuts them (tunnel GSO)"
        facts |= {
            "mtu_bytes": found.mtu_bytes,
            "tcp_superpackets": whole if found.whole else "are cut by loden, into UDP datagrams",
            "underlay": str(kernel_route.decide(hop.address)),
        }
    arrives, verdict = _outbound_verdict(kernel, reaches_us, hop, found.reason)
    return Answer(arrives, verdict, facts)


def _outbound_verdict(
    kernel: Decision, reaches_us: bool, hop: NextHop | None, reason: Drop
) -> tuple[bool, str]:
    if kernel.refusal is not None:
        return False, f"it does not reach loden: {kernel.refusal}"
    if kernel.is_local:
        return True, "it is for this host itself"
    if not reaches_us:
        if isinstance(hop, Local):
            return True, f"it stays on this node, {kernel}"
        if isinstance(hop, RemoteVtep) and kernel.gateway == str(hop.address):
            return True, f"it goes to its node without the overlay (DirectRouting), {kernel}"
        return hop is None, f"it does not reach loden: the kernel sends it {kernel}"
    if reason is not Drop.NONE:
        return False, f"it is dropped: {reason.sentence}"
    assert isinstance(hop, RemoteVtep)
    way = kernel_route.decide(hop.address)
    if way.refusal is not None:
        return False, f"the node {hop.address} cannot be reached: {way.refusal}"
    return True, f"it is sent to the node {hop.address}, {way}"


def inbound(
    forwarder: ForwarderClient,
    run_dir: Path,
    destination: IPAddress,
    source: IPAddress,
    vtep: IPAddress | None,
) -> Answer:
    """Of a packet from a pod of another node.  Raises RpcError."""
    route = forwarder.lookup(source).route
    if vtep is None:
        if route is None or not isinstance(route[1], RemoteVtep):
            where = f"{route[1]} by {route[0]}" if route else "not routed"
            fail("lookup", f"--from {source} is {where}: give --vtep, too, the node that sends it")
        vtep = route[1].address
    reason = forwarder.check_inbound(source, destination, vtep)
    device = (forwarder.hello()["config"] or {}).get("device")
    kernel = kernel_route.decide(destination, source, device)
    arrives, verdict = True, f"it is delivered, {kernel}"
    if reason is not Drop.NONE:
        arrives, verdict = False, f"it is dropped: {reason.sentence}"
    elif kernel.refusal is not None:
        arrives, verdict = False, f"loden delivers it, but the kernel does not: {kernel.refusal}"
    elif kernel.device == device:
        arrives, verdict = False, f"loden delivers it, but the kernel sends it back, {kernel}"
    facts = {
        "vtep": str(vtep),
        "reason": reason.name.lower() if reason else None,
        "source_route": _route_facts(forwarder, run_dir, source),
        "route": _route_facts(forwarder, run_dir, destination),
        "kernel": str(kernel),
    }
    return Answer(arrives, verdict, facts)


def _route_facts(forwarder: ForwarderClient, run_dir: Path, address: IPAddress) -> dict[str, Any]:
    """The route of an address, as the workers have it, and where control has it from."""
    route = forwarder.lookup(address).route
    facts = {"prefix": str(route[0]), **next_hop_to_wire(route[1])} if route else {"prefix": None}
    try:
        return facts | ask_control(run_dir, "explain", address=str(address))
    except RpcError as error:
        return facts | {"key": None, "ignored": [], "unexplained": str(error)}


def show(answer: Answer, console: Console) -> None:
    """Prints an answer for a person: the verdict, then what it rests on."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    colour = "green" if answer.arrives else "red"
    grid.add_row("verdict", f"[{colour}]{escape(answer.verdict)}[/{colour}]")
    for name, value in answer.facts.items():
        if isinstance(value, dict):
            grid.add_row(name.replace("_", " "), escape(_route_in_words(value)))
        elif value not in (None, True):
            grid.add_row(name.replace("_", " "), escape(str(value)))
    console.print(grid)


def _route_in_words(route: dict[str, Any]) -> str:
    if route["prefix"] is None:
        words = "none"
    elif route["kind"] == "remote":
        words = f"{route['prefix']} to {route['address']} (VNI {route['vni']}, {route['mac']})"
    else:
        words = f"{route['prefix']} is {route['kind']}"
    if route["key"] is not None:
        origin = "written by 'loden route'" if f"/{ROUTES}" in route["key"] else "a node's lease"
        words += f", {origin}: {route['key']}"
    for ignored in route["ignored"]:
        words += f"\nignored: {ignored}"
    if "unexplained" in route:
        words += f"\nits origin is not known: {route['unexplained']}"
    return words
