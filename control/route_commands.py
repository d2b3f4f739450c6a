"""`loden route`: routes for single pods or any prefix, besides the nodes' subnets.

They live in etcd at `<prefix>/routes/<ip>-<len>`, their values are written as a lease's, and every
node follows them: the longest prefix wins. What is written here names a VTEP as it is now; when
that node's address or MAC changes, its routes are to be written anew (`list` shows which).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from control.acquire import leases_in
from control.etcd import EtcdClient
from control.etcd_config import EtcdConfigError
from control.etcd_types import Entry, EtcdError
from control.exits import EXIT_USAGE, fail
from control.flags import CONFIG_OPTIONS, ETCD_OPTIONS, etcd_config, run_dir_option
from control.lease import (
    ROUTES,
    SUBNETS,
    VXLAN,
    IPNetwork,
    Lease,
    LeaseAttrs,
    LeaseFormatError,
    Vtep,
    config_key,
    parse_network_name,
    route_key,
)
from control.network_config import LARGEST_VNI, NetworkConfig
from control.status import STATUS_TIMEOUT_S
from forwarder.fib.routes import IPAddress
from forwarder.flags import with_options
from forwarder.rpc import RpcClient, RpcError

SHOWN_NODES = 10
"""A message names no more."""


class RouteError(ValueError):
    """The route asked for cannot be; the message says what and why."""

    retryable = False


@dataclass(frozen=True)
class ListedRoute:
    """One key below `routes/`."""

    key: str
    prefix: IPNetwork | None
    """None: the key names none."""
    address: IPAddress | None
    vtep: Vtep | None
    node: str
    """The subnet of the node it leads to, or why it leads to none."""


# ---- what a route is, apart from etcd and the screen ---------------------------------------------


def check_prefix(prefix: IPNetwork, leases: Iterable[Lease]) -> None:
    """Raises RouteError for a prefix that no overlay can carry, or that would do nothing."""
    if prefix.prefixlen == 0:
        raise RouteError(
            f"{prefix}: allowed are prefix lengths from 1; this is everything there is"
        )
    if prefix.is_multicast or prefix.is_loopback or prefix.is_link_local:
        raise RouteError(f"{prefix}: allowed are unicast addresses that leave a host")
    for lease in leases:
        if prefix in lease.subnet.networks:
            raise RouteError(f"{prefix} is a node's own subnet: its lease wins ({lease.key})")
        for address in (lease.attrs.public_ip, lease.attrs.public_ipv6):
            if address is not None and address in prefix:
                raise RouteError(f"{prefix} contains {address}, where a node of {lease.key} is")


def attrs_of_node(address: IPAddress, prefix: IPNetwork, leases: Iterable[Lease]) -> LeaseAttrs:
    """The value of the lease of the node at `address`. Raises RouteError."""
    known = []
    for lease in leases:
        attrs = lease.attrs
        if attrs.backend_type != VXLAN:
            continue
        if address in (attrs.public_ip, attrs.public_ipv6):
            if vtep_of(attrs, prefix)[1] is None:
                raise RouteError(f"--to {address}: that node carries no IPv{prefix.version}")
            return attrs
        known.append(str(attrs.public_ip or attrs.public_ipv6))
    allowed = ", ".join(known[:SHOWN_NODES]) or "none: no node has a lease"
    if len(known) > SHOWN_NODES:
        allowed += f" and {len(known) - SHOWN_NODES} others"
    raise RouteError(f"--to {address}: no node has this address; allowed: {allowed}")


def attrs_of_vtep(address: IPAddress, mac: str, vni: int, prefix: IPNetwork) -> LeaseAttrs:
    """The value that leads to a VTEP given in full. Raises RouteError, LeaseFormatError."""
    if address.version != prefix.version:
        raise RouteError(f"--public-ip {address}: allowed for {prefix}: an IPv{prefix.version} one")
    family = "" if prefix.version == 4 else "V6"
    value = {
        "PublicIP" if prefix.version == 4 else "PublicIPv6": str(address),
        "BackendType": VXLAN,
        f"Backend{family}Data": {"VNI": vni, "VtepMAC": mac},
    }
    return LeaseAttrs.parse(json.dumps(value))


def vtep_of(attrs: LeaseAttrs, prefix: IPNetwork) -> tuple[IPAddress | None, Vtep | None]:
    """Where packets for `prefix` go: each family has a VTEP of its own."""
    if prefix.version == 4:
        return attrs.public_ip, attrs.vtep
    return attrs.public_ipv6, attrs.vtep_v6


def read_route(entry: Entry, prefix: str, leases: Iterable[Lease]) -> ListedRoute:
    """One entry, and which node it leads to. `prefix` is etcd's."""
    try:
        routed = parse_network_name(entry.key[len(f"{prefix}/{ROUTES}") :])
    except LeaseFormatError as error:
        return ListedRoute(entry.key, None, None, None, f"ignored: {error}")
    try:
        address, vtep = vtep_of(LeaseAttrs.parse(entry.value), routed)
    except LeaseFormatError as error:
        return ListedRoute(entry.key, routed, None, None, f"ignored: {error}")
    if address is None or vtep is None:
        return ListedRoute(entry.key, routed, address, vtep, "ignored: no VTEP for its family")
    at_address = [lease for lease in leases if vtep_of(lease.attrs, routed)[0] == address]
    for lease in at_address:
        if vtep_of(lease.attrs, routed)[1] == vtep:
            return ListedRoute(entry.key, routed, address, vtep, str(lease.subnet))
    why = "its MAC or VNI is another now" if at_address else "no node has this address"
    return ListedRoute(entry.key, routed, address, vtep, f"stale: {why}")


# ---- the commands --------------------------------------------------------------------------------


@click.group("route")
def route_command() -> None:
    """Route a pod or a range to a node, whatever its subnet: kept in etcd, followed by all nodes.

    'loden routes' lists what packets follow on this node.
    """


def network(ctx: click.Context, parameter: click.Parameter, text: str) -> IPNetwork:
    try:
        return ip_network(text)
    except ValueError as error:
        allowed = "an address or a network such as 10.5.7.9/32"
        raise click.BadParameter(f"{error}; allowed: {allowed}", ctx, parameter) from None


def address(ctx: click.Context, parameter: click.Parameter, text: str | None) -> IPAddress | None:
    try:
        return None if text is None else ip_address(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no IP address", ctx, parameter) from None


@route_command.command("add")
@click.argument("prefix", callback=network)
@click.option("--to", callback=address, metavar="IP", help="The node's address, as in its lease.")
@click.option(
    "--public-ip", callback=address, metavar="IP", help="A VTEP's address instead; with --mac."
)
@click.option("--mac", metavar="MAC", help="That VTEP's MAC.")
@click.option(
    "--vni",
    type=click.IntRange(0, LARGEST_VNI),
    help="Its network identifier.  [default: the network config's]",
)
@click.option("--replace", is_flag=True, help="Where the prefix leads elsewhere now: move it.")
@with_options(CONFIG_OPTIONS, ETCD_OPTIONS)
def add_command(
    prefix: IPNetwork,
    to: IPAddress | None,
    public_ip: IPAddress | None,
    mac: str | None,
    vni: int | None,
    replace: bool,
    **values: Any,
) -> None:
    """Route PREFIX to a node: a pod's address (10.5.7.9) or any range (10.9.0.0/22)."""
    if (to is None) == (public_ip is None) or (public_ip is None) != (mac is None):
        fail("route add", "give the node with --to, or --public-ip and --mac", EXIT_USAGE)

    def add(client: EtcdClient) -> str:
        leases = _leases(client)
        check_prefix(prefix, leases)
        if to is not None:
            attrs = attrs_of_node(to, prefix, leases)
        else:
            assert public_ip is not None
            assert mac is not None
            network_vni = _network_vni(client) if vni is None else vni
            attrs = attrs_of_vtep(public_ip, mac, network_vni, prefix)
        return _write(client, prefix, attrs, replace)

    _in_etcd("route add", values, add)


def _write(client: EtcdClient, prefix: IPNetwork, attrs: LeaseAttrs, replace: bool) -> str:
    """What was done. Raises RouteError."""
    key, value = route_key(client.config.prefix, prefix), attrs.to_json()
    present = client.get(key)
    if present is None:
        written = client.create_if_absent(key, value)
    elif present.value.decode(errors="replace") == value:
        return f"{key} says so already"
    elif replace:
        written = client.compare_and_put(key, value, present.mod_revision)
    else:
        said = present.value.decode(errors="replace")
        raise RouteError(f"{key} leads elsewhere (--replace moves it): {said}")
    if written is None:
        raise RouteError(f"{key} was changed by someone else just now; look, and try again")
    return f"{prefix} leads to {vtep_of(attrs, prefix)[0]} as of revision {written}"


@route_command.command("del")
@click.argument("prefix", callback=network)
@with_options(CONFIG_OPTIONS, ETCD_OPTIONS)
def del_command(prefix: IPNetwork, **values: Any) -> None:
    """Remove the route of PREFIX; its packets follow the next shorter prefix again."""

    def delete(client: EtcdClient) -> str:
        key = route_key(client.config.prefix, prefix)
        if not client.delete(key):
            raise RouteError(f"there is no {key}; 'loden route list' shows what there is")
        return f"{key} deleted"

    _in_etcd("route del", values, delete)


@route_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_options(CONFIG_OPTIONS, ETCD_OPTIONS)
def list_command(as_json: bool, **values: Any) -> None:
    """Show all such routes, and the subnet of the node each leads to."""

    def show(client: EtcdClient) -> str | None:
        prefix, leases = client.config.prefix, _leases(client)
        entries = client.list_prefix(f"{prefix}/{ROUTES}").entries
        rows = [_cells(read_route(entry, prefix, leases)) for entry in entries]
        if as_json:
            return json.dumps(rows, indent=2)
        table = Table("prefix", "VTEP", "MAC", "VNI", "node", box=None)
        for row in rows:
            table.add_row(*map(str, row.values()))
        Console(emoji=False).print(table)
        return None

    _in_etcd("route list", values, show)


def _cells(route: ListedRoute) -> dict[str, object]:
    return {
        "prefix": str(route.prefix or route.key),
        "address": str(route.address or ""),
        "mac": route.vtep.mac if route.vtep else "",
        "vni": route.vtep.vni if route.vtep else "",
        "node": route.node,
    }


@route_command.command("confirm-loss")
@run_dir_option
def confirm_loss_command(run_dir: Path) -> None:
    """Let go of routes that etcd has lost, on this node.

    When etcd comes back without leases and routes it had (restored from a backup, or empty), they
    are kept until their nodes publish them again. This says that those missing are gone indeed.
    """
    try:
        client = RpcClient(run_dir / "control.sock", "loden control", STATUS_TIMEOUT_S)
        try:
            reply, _ = client.call("status")
            retained = reply["etcd"].get("retained", 0)
            client.call("confirm_loss")
        finally:
            client.close()
    except RpcError as error:
        fail("route confirm-loss", error)
    click.echo(f"{retained} leases and routes that etcd has lost are let go of")


def _in_etcd(command: str, values: dict[str, Any], act: Callable[[EtcdClient], str | None]) -> None:
    """Carries out `act` with a client, prints what it says, and ends the command if it fails."""
    try:
        client = EtcdClient(etcd_config(values))
    except EtcdConfigError as error:
        fail(command, error, EXIT_USAGE)
    try:
        said = act(client)
    except (RouteError, LeaseFormatError, EtcdError) as error:
        fail(command, error)
    finally:
        client.close()
    if said is not None:
        click.echo(said)


def _leases(client: EtcdClient) -> list[Lease]:
    prefix = client.config.prefix
    return leases_in(prefix, client.list_prefix(f"{prefix}/{SUBNETS}").entries)


def _network_vni(client: EtcdClient) -> int:
    entry = client.get(config_key(client.config.prefix))
    if entry is None:
        raise RouteError(
            "there is no network config in etcd yet: give --vni, or 'loden init' first"
        )
    try:
        return NetworkConfig.parse(entry.value).vni
    except ValueError as error:
        raise RouteError(f"{error}; give --vni") from None
