"""What a node tells about itself: gathered by control and the forwarder, shown on one screen."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forwarder.api import ForwarderClient
from forwarder.rpc import RpcClient, RpcError
from forwarder.wire.vxlan import format_mac

if TYPE_CHECKING:
    from control.daemon import Daemon

STATUS_TIMEOUT_S = 5.0


def describe(daemon: Daemon) -> dict[str, Any]:
    """Control's part of the status, as plain values."""
    interface, config, lease = daemon.interface, daemon.config, daemon.lease
    reasons = daemon.not_ready_because()
    return {
        "ready": not reasons,
        "not_ready_because": reasons,
        "node": {
            "device": daemon.options.device,
            "interface": interface.name if interface else None,
            "public_ip": str(lease.attrs.public_ip) if lease and lease.attrs.public_ip else None,
            "public_ipv6": (
                str(lease.attrs.public_ipv6) if lease and lease.attrs.public_ipv6 else None
            ),
            "vtep_mac": format_mac(daemon.saved.vtep_mac),
            "mtu_bytes": daemon.tunnel.mtu_bytes if daemon.tunnel else None,
            "subnet_file": str(daemon.options.subnet_file),
        },
        "subnet": str(lease.subnet) if lease else None,
        "network": {
            "ipv4": str(config.ipv4.network) if config and config.ipv4 else None,
            "ipv6": str(config.ipv6.network) if config and config.ipv6 else None,
            "vni": config.vni if config else None,
            "port": config.port if config else None,
            "direct_routing": config.direct_routing if config else None,
        },
        "etcd": _describe_etcd(daemon),
        "routes": {
            "count": len(daemon.rib.routes) if daemon.rib else 0,
            "ignored": _count_ignored(daemon),
            "from_saved_state": daemon.uses_saved_state,
        },
    }


def _describe_etcd(daemon: Daemon) -> dict[str, Any]:
    etcd: dict[str, Any] = {
        "endpoints": list(daemon.options.etcd.urls),
        "prefix": daemon.options.etcd.prefix,
        "waiting": daemon.waiting,
    }
    session = daemon.session
    if session is not None and session.watch is not None:
        watch = session.watch.status()
        etcd |= {
            "state": watch.phase.name.lower(),
            "age_s": watch.age_s,
            "revision": watch.revision,
            "retained": watch.retained,
            "error": watch.error,
        }
    else:
        etcd |= {"state": "disconnected", "age_s": None, "error": daemon.waiting}
    if session is not None and session.keeper is not None:
        kept = session.keeper.status()
        etcd["lease"] = {
            "key": kept.lease.key,
            "state": kept.state.name.lower(),
            "expires_in_s": kept.expires_in_s,
            "error": kept.error,
        }
    return etcd


def _count_ignored(daemon: Daemon) -> dict[str, int]:
    if daemon.rib is None:
        return {}
    return dict(Counter(item.reason.value for item in daemon.rib.ignored))


def gather(run_dir: Path) -> dict[str, Any]:
    """The whole status of the node of a run dir.  Raises RpcError when nothing runs there."""
    status: dict[str, Any] = {"run_dir": str(run_dir), "time": time.time()}
    missing: list[RpcError] = []
    try:
        client = RpcClient(run_dir / "control.sock", "loden control", STATUS_TIMEOUT_S)
        try:
            reply, _ = client.call("status")
        finally:
            client.close()
        status |= {name: value for name, value in reply.items() if name != "ok"}
    except RpcError as error:
        missing.append(error)
        status |= {"ready": False, "not_ready_because": [str(error)]}
    try:
        with ForwarderClient(run_dir, STATUS_TIMEOUT_S) as forwarder:
            stats = forwarder.stats()
        from_forwarder = ("offloads", "path_mtus", "totals", "drops", "drop_help")
        status |= {name: stats[name] for name in from_forwarder}
        status["workers"] = stats["per_worker"]
    except RpcError as error:
        missing.append(error)
        status.setdefault("not_ready_because", []).append(str(error))
        status["ready"] = False
    if len(missing) == 2:
        raise RpcError(f"nothing runs in {run_dir}: start 'loden run', or see --run-dir")
    return status


def show(status: dict[str, Any], console: Console) -> None:
    """Prints the status for a person."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    ready = "[green]yes[/green]" if status["ready"] else "[red]no[/red]"
    grid.add_row("ready", "; ".join([ready, *map(escape, status["not_ready_because"])]))
    if "node" in status:
        _add_node(grid, status)
    if "totals" in status:
        _add_forwarder(grid, status)
    console.print(grid)
    drops = {name: count for name, count in status.get("drops", {}).items() if count}
    if drops:
        table = Table("dropped", "packets", "because", title=None, box=None)
        for name, count in sorted(drops.items(), key=lambda item: -item[1]):
            table.add_row(name, f"{count:,}", status["drop_help"][name])
        console.print(table)


def _add_node(grid: Table, status: dict[str, Any]) -> None:
    node, network, etcd = status["node"], status["network"], status["etcd"]
    addresses = [text for text in (node["public_ip"], node["public_ipv6"]) if text]
    grid.add_row("node", f"{' '.join(addresses) or '-'} on {node['interface'] or '-'}")
    networks = [text for text in (network["ipv4"], network["ipv6"]) if text]
    grid.add_row("subnet", f"{status['subnet'] or '-'} of {' and '.join(networks) or '-'}")
    grid.add_row(
        "device",
        f"{node['device']}, MTU {node['mtu_bytes'] or '-'}, VNI {network['vni']}, "
        f"UDP port {network['port']}, MAC {node['vtep_mac']}",
    )
    state = etcd["state"].replace("_", " ")
    if etcd.get("age_s"):
        state += f", last in sync {etcd['age_s']:.0f} s ago"
    if etcd.get("error"):
        state += f" ({escape(etcd['error'])})"
    grid.add_row("etcd", f"{state}; {', '.join(etcd['endpoints'])}")
    if kept := etcd.get("retained"):
        lost = f"[red]{kept} leases and routes that etcd has lost are still followed[/red]"
        grid.add_row("LOST", f"{lost}; are they gone indeed: loden route confirm-loss")
    if lease := etcd.get("lease"):
        expires = lease["expires_in_s"]
        until = "no end" if expires is None else f"renewed, {expires / 3600:.1f} h left"
        grid.add_row("lease", f"{lease['state']}, {until}")
    routes = status["routes"]
    text = f"{routes['count']}"
    if routes["from_saved_state"]:
        text += ", from the state on disk"
    for reason, count in routes["ignored"].items():
        text += f"; {count} ignored: {reason}"
    grid.add_row("routes", text)


def _add_forwarder(grid: Table, status: dict[str, Any]) -> None:
    totals = status["totals"]
    for way, name in (("out", "sent"), ("in", "received")):
        packets, size = totals[f"{way}_packets"], totals[f"{way}_bytes"]
        grid.add_row(name, f"{packets:,} packets, {size:,} bytes")
    for worker in status["workers"]:
        condition = "idle" if worker["idle"] else "working"
        if not worker["alive"]:
            condition = "dead, being replaced"
        restarts = f", replaced {worker['deaths']} times" if worker["deaths"] else ""
        grid.add_row(f"worker {worker['cpu']}", f"CPU {worker['cpu']}, {condition}{restarts}")
    offloads = ", ".join(f"{name} {state}" for name, state in status["offloads"].items())
    grid.add_row("offloads", offloads)
    if limits := status["path_mtus"]:
        said = ", ".join(f"{limit} bytes to {peer}" for peer, limit in list(limits.items())[:8])
        more = f" and {len(limits) - 8} more nodes" if len(limits) > 8 else ""
        grid.add_row("narrow ways", f"pods' packets of at most {said}{more}")
