"""What a node tells about itself: control's part, the forwarder's, and both put together.

The source of `loden status`, of /readyz and of /metrics.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.lease_keeper import LeaseState
from control.rates import per_second
from forwarder.api import ForwarderClient
from forwarder.counters import PEER_COLUMNS
from forwarder.fib.listing import list_peers, usage
from forwarder.rpc import RpcClient, RpcError
from forwarder.wire.vxlan import format_mac

if TYPE_CHECKING:
    from control.daemon import Daemon

VERSION = metadata.version("loden")
STATUS_TIMEOUT_S = 5.0
FORWARDER_NAMES = (
    "offloads",
    "seccomp",
    "path_mtus",
    "device_drops",
    "totals",
    "drops",
    "drop_help",
)
RATES_NAMES = ("rates", "drop_rates")
USAGE_NAMES = ("cpu_user_s", "cpu_system_s", "resident_bytes")


def describe(daemon: Daemon) -> dict[str, Any]:
    """Control's part of the status, as plain values."""
    interface, config, lease = daemon.interface, daemon.config, daemon.lease
    reasons = daemon.not_ready_because()
    return {
        "ready": not reasons,
        "not_ready_because": reasons,
        "control": {
            "pid": os.getpid(),
            "up_s": time.monotonic() - daemon.started_at,
            "forwarder_gone_s": daemon.forwarder.gone_s,
        },
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
            "age_s": _routes_age_s(daemon),
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
            "listings": watch.listings,
            "attempts": watch.attempts,
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
    etcd["lease_not_held_because"] = _lease_not_held_because(daemon)
    return etcd


def _lease_not_held_because(daemon: Daemon) -> str | None:
    """None: etcd has said that the subnet is ours, and that holds."""
    if daemon.lease is None:
        return f"no lease: {daemon.waiting or 'etcd has not answered yet'}"
    if daemon.session is None or daemon.session.keeper is None:
        return f"the lease of {daemon.lease.subnet} is a saved one: {daemon.waiting or 'no answer'}"
    kept = daemon.session.keeper.status()
    if kept.state is LeaseState.HELD:
        return None
    return f"the lease {kept.lease.key} is not held: {kept.state.value}"


def _routes_age_s(daemon: Daemon) -> float | None:
    """Seconds since the routes were last known to be what etcd holds; None: there are none."""
    if not daemon.has_routes:
        return None
    watch = daemon.session.watch if daemon.session else None
    age_s = watch.status().age_s if watch else None
    return daemon.saved.age_s if age_s is None else age_s


def not_ready_reasons(daemon: Daemon) -> list[str]:
    """What /readyz wants mended: packets that cannot flow, and a lease that is not held.

    Without the lease packets flow on: that is why `ready` does not ask for it.
    """
    lease = _lease_not_held_because(daemon)
    reasons = [*daemon.not_ready_because(), *([lease] if lease else [])]
    return list(dict.fromkeys(reasons))


def _count_ignored(daemon: Daemon) -> dict[str, int]:
    if daemon.rib is None:
        return {}
    return dict(Counter(item.reason.value for item in daemon.rib.ignored))


def gather(run_dir: Path, interval_s: float = 0.0, with_peers: bool = False) -> dict[str, Any]:
    """The whole status of the node of a run dir.  Raises RpcError when nothing runs there.

    `interval_s`: how long to watch the counters, for the rates; 0: no rates.  What is not running
    is missing, and `control` or `forwarder` says why and since when.
    """
    status: dict[str, Any] = {"version": VERSION, "run_dir": str(run_dir), "time": time.time()}
    no_control = no_forwarder = None
    try:
        status |= ask_control(run_dir)
    except RpcError as error:
        no_control = str(error)
    try:
        status |= _ask_forwarder(run_dir, interval_s, with_peers)
    except RpcError as error:
        no_forwarder = str(error)
    if no_control and no_forwarder:
        raise RpcError(f"nothing runs in {run_dir}: start 'loden run', or see --run-dir")
    if no_control:
        gone_s = status["forwarder"]["control_gone_s"]
        status["control"] = {"pid": None, "error": no_control, "gone_s": gone_s}
        status["not_ready_because"] = [no_control]
    if no_forwarder:
        gone_s = status["control"]["forwarder_gone_s"]
        status["forwarder"] = {"pid": None, "error": no_forwarder, "gone_s": gone_s}
        status["not_ready_because"].append(no_forwarder)
    status["not_ready_because"] = list(dict.fromkeys(status["not_ready_because"]))
    status["ready"] = not status["not_ready_because"]
    return status


def ask_control(run_dir: Path, op: str = "status", **arguments: str) -> dict[str, Any]:
    """One request to the control process of a run dir; "status": see `describe`.

    Raises RpcError.
    """
    client = RpcClient(run_dir / "control.sock", "loden control", STATUS_TIMEOUT_S)
    try:
        reply, _ = client.call(op, **arguments)
    finally:
        client.close()
    del reply["ok"]
    return reply


def _ask_forwarder(run_dir: Path, interval_s: float, with_peers: bool) -> dict[str, Any]:
    with ForwarderClient(run_dir, STATUS_TIMEOUT_S) as client:
        stats = client.stats()
        shared = client.view_fib()
        if interval_s:
            before, begun = stats, time.monotonic()
            time.sleep(interval_s)
            stats = client.stats()
            _add_rates(before, stats, time.monotonic() - begun)
    status = {name: stats[name] for name in (*FORWARDER_NAMES, *RATES_NAMES) if name in stats}
    status["workers"] = stats["per_worker"]
    process = ("pid", "up_s", "control_gone_s", *USAGE_NAMES)
    status["forwarder"] = {name: stats.get(name) for name in process}
    status["fib"] = usage(shared.memory) if shared else None
    if with_peers:
        listed = list_peers(shared.memory, shared.counters.per_peer) if shared else []
        status["peers"] = [
            {
                "address": str(hop.address),
                "mac": format_mac(hop.mac),
                **dict(zip(PEER_COLUMNS, counts, strict=True)),
            }
            for hop, counts in listed
        ]
    return status


def _add_rates(before: dict[str, Any], after: dict[str, Any], interval_s: float) -> None:
    after["rates"] = per_second(before["totals"], after["totals"], interval_s)
    after["drop_rates"] = per_second(before["drops"], after["drops"], interval_s)
    for old, new in zip(before["per_worker"], after["per_worker"], strict=True):
        new["rates"] = per_second(old["totals"], new["totals"], interval_s)
        if old["pid"] == new["pid"] and "cpu_user_s" in old and "cpu_user_s" in new:
            used_s = sum(new[mode] - old[mode] for mode in ("cpu_user_s", "cpu_system_s"))
            new["cpu_share"] = used_s / interval_s
