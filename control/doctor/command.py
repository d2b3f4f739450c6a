"""The command `loden doctor`: gathers what is known of this node, runs the checks, shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from ipaddress import ip_network
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from control.doctor.clock import check_clock
from control.doctor.etcd import EtcdPicture, check_etcd, check_lease
from control.doctor.finding import Finding, Level, failure, ok
from control.doctor.firewall import check_firewall
from control.doctor.host import check_host
from control.doctor.network import Peer, Place, check_conflicts, check_ways
from control.doctor.peers import check_peers
from control.exits import EXIT_FAILURE
from control.external_interface import ExternalInterface, ExternalInterfaceError
from control.flags import RUN_OPTIONS, NodeCommand, control_options
from control.kernel_route import decide
from control.network_config import OVERHEAD_IPV4_BYTES, NetworkConfig
from control.node import networks_of, overlay_mtu
from control.options import ControlOptions
from control.state import StateFile
from control.status import STATUS_TIMEOUT_S, gather
from control.underlay import find_underlay
from forwarder.api import ForwarderClient
from forwarder.fib.routes import IPAddress, IPNetwork, RemoteVtep
from forwarder.flags import HELP, with_options
from forwarder.rpc import RpcError
from forwarder.wire.vxlan import DEFAULT_PORT

MARKS = {
    Level.OK: "[green]ok[/green]",
    Level.UNKNOWN: "[cyan]?[/cyan]",
    Level.WARNING: "[yellow]warning[/yellow]",
    Level.FAILURE: "[red]failure[/red]",
}
EXAMPLES = """\b
Examples:
  loden doctor --etcd-endpoints http://10.0.0.5:2379     before the first 'loden run'
  loden doctor                                           beside a running node
"""


@click.command("doctor", cls=NodeCommand, context_settings=HELP, epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_options(*RUN_OPTIONS)
@click.pass_context
def doctor_command(ctx: click.Context, /, as_json: bool, **values: Any) -> None:
    """Look for what is wrong with this host, its etcd and the ways to the other nodes.

    Before loden ever ran, or beside a running node; takes the flags, environment and configuration
    file of 'loden run'.  Each line says what was found, what it means, and how to mend it.  Nothing
    is changed; pings and requests to etcd are all that is sent.

    Ends with 1 if there is a failure, with 0 if there is none; warnings are no failures.
    """
    said_endpoints = ctx.get_parameter_source("etcd_endpoints") is not ParameterSource.DEFAULT
    findings = list(examine(control_options(values), said_endpoints))
    if as_json:
        told = [{**asdict(finding), "level": finding.level.value} for finding in findings]
        click.echo(json.dumps(told, indent=2))
    else:
        show(findings, Console(emoji=False))
    if any(finding.level is Level.FAILURE for finding in findings):
        raise SystemExit(EXIT_FAILURE)


def examine(options: ControlOptions, said_endpoints: bool) -> Iterator[Finding]:
    """All checks.  `said_endpoints`: the operator has named etcd's members."""
    status = running_status(options)
    running = "etcd" in status  # the control process has answered
    if running and not said_endpoints:
        told = status["etcd"]
        etcd = replace(options.etcd, urls=tuple(told["endpoints"]), prefix=told["prefix"])
        options = replace(options, etcd=etcd)
    yield check_node(status)
    picture = check_etcd(options.etcd, running)
    interface, problem = underlay_of(options, picture.config)
    yield from check_host(interface.name if interface else None, status.get("offloads"))
    yield from problem
    yield from picture.findings
    if running:
        yield check_lease(status["etcd"])
    yield from check_clock(picture.skews, saved_at(options))
    place = place_of(options, status, picture, interface)
    peers = list(leased(picture, place) if picture.leases else routed(options, status))
    yield from check_conflicts(place)
    yield from check_ways(place, peers)
    yield from check_firewall(place, bridge_of(place))
    if interface is not None:
        own_ends = [s.network_address for s in place.subnets] if place.forwarder_pid else []
        mtu_bytes = full_packet(status, picture.config, interface)
        yield from check_peers(peers, mtu_bytes, own_ends, place.port)


# ---- what the checks need to know ----------------------------------------------------------------


def running_status(options: ControlOptions) -> dict[str, Any]:
    """Of the node in this run dir; {}: there is none."""
    try:
        return gather(options.run_dir)
    except RpcError:
        return {}


def check_node(status: dict[str, Any]) -> Finding:
    """What the node says of itself, if it runs."""
    if not status:
        return ok("node", "loden is not running here: this is what it will meet")
    if status["ready"]:
        return ok("node", f"loden is running, and packets can flow; its subnet: {status['subnet']}")
    why = "; ".join(status["not_ready_because"])
    return failure("node", f"loden is running, but packets cannot flow: {why}", "see below")


def underlay_of(
    options: ControlOptions, config: NetworkConfig | None
) -> tuple[ExternalInterface | None, list[Finding]]:
    """The underlay's interface, or what is wrong with it."""
    wanted = config or NetworkConfig.build("10.5.0.0/16", None, 1, DEFAULT_PORT)
    try:
        return find_underlay(options, wanted), []
    except ExternalInterfaceError as error:
        mend = "name it with --iface, and see `ip address`"
        return None, [failure("underlay", str(error), mend)]


def saved_at(options: ControlOptions) -> float:
    """Unix time of the last good state on disk; 0: there is none.

    Reads only: a damaged file stays where it is, for `loden run` to set aside.
    """
    try:
        return StateFile(options.state_dir).path.stat().st_mtime
    except OSError:
        return 0.0


def place_of(
    options: ControlOptions,
    status: dict[str, Any],
    picture: EtcdPicture,
    interface: ExternalInterface | None,
) -> Place:
    """Where this node stands, by its own word or by etcd's."""
    config = picture.config
    addresses: tuple[IPAddress, ...] = ()
    if interface is not None:
        found = (interface.ipv4, interface.ipv6)
        addresses = tuple(address for address in found if address is not None)
    own = [lease for lease in picture.leases if lease.attrs.public_ip in addresses]
    subnets = tuple(network for lease in own for network in lease.subnet.networks)
    if status.get("subnet"):
        subnets = tuple(ip_network(text) for text in status["subnet"].split(" and "))
    return Place(
        device=status.get("node", {}).get("device") or options.device,
        port=config.port if config else status.get("network", {}).get("port") or DEFAULT_PORT,
        networks=networks_of(config) if config else _networks_told(status),
        subnets=subnets,
        interface=interface.name if interface else None,
        addresses=addresses,
        forwarder_pid=status.get("forwarder", {}).get("pid"),
    )


def _networks_told(status: dict[str, Any]) -> tuple[IPNetwork, ...]:
    told = status.get("network", {})
    return tuple(ip_network(told[family]) for family in ("ipv4", "ipv6") if told.get(family))


def leased(picture: EtcdPicture, place: Place) -> Iterator[Peer]:
    """The other nodes, by their leases."""
    for lease in picture.leases:
        for network in lease.subnet.networks:
            attrs = lease.attrs
            address = attrs.public_ip if network.version == 4 else attrs.public_ipv6
            if address is not None and address not in place.addresses:
                yield Peer(address, network)


def routed(options: ControlOptions, status: dict[str, Any]) -> Iterator[Peer]:
    """The other nodes that packets are sent to, etcd or no etcd; routes of single pods left out."""
    if status.get("forwarder", {}).get("pid") is None:
        return
    try:
        with ForwarderClient(options.run_dir, STATUS_TIMEOUT_S) as forwarder:
            routes = forwarder.list_routes()
    except RpcError:
        return
    for prefix, hop, _ in routes:
        if isinstance(hop, RemoteVtep) and prefix.length < prefix.bits:
            yield Peer(hop.address, ip_network(str(prefix)))


def bridge_of(place: Place) -> str | None:
    """The device behind which this node's pods are; None: there is none yet."""
    for subnet in place.subnets:
        device = decide(subnet.network_address + 2).device
        if device not in (None, place.device, place.interface):
            return device
    return None


def full_packet(
    status: dict[str, Any], config: NetworkConfig | None, interface: ExternalInterface
) -> int:
    """The overlay's MTU, in bytes."""
    if told := status.get("node", {}).get("mtu_bytes"):
        return int(told)
    return overlay_mtu(config, interface) if config else interface.mtu_bytes - OVERHEAD_IPV4_BYTES


def show(findings: list[Finding], console: Console) -> None:
    """Prints a line for each finding, and below it how to mend what is wrong."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        said = escape(finding.says)
        if finding.mend:
            said += f"\n[bold]{escape(finding.mend)}[/bold]"
        table.add_row(MARKS[finding.level], escape(finding.check), said)
    console.print(table)
    failures, warnings = (
        sum(finding.level is level for finding in findings)
        for level in (Level.FAILURE, Level.WARNING)
    )
    console.print(f"{failures} failures, {warnings} warnings")
