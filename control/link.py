"""The one place that changes the host's links, addresses and routes, by netlink.

    control/host_state.py: desired ──┬──> changes
                                     │       │ apply
             read_actual ────────────┘       v
                  ^                        kernel
                  └──────────────────────────┘ host_changes.py: something changed, look again

The forwarder makes the overlay device; this module gives it MTU, addresses and routes. What
somebody else took away is put back by the next `reconcile`; what is not ours is left alone.

Ours is:
- everything on the device of our name;
- routes in the main table with protocol `ROUTE_PROTOCOL`, either by our device or through a
  gateway to a destination inside our networks (DirectRouting).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from types import TracebackType
from typing import Any

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from control.host_state import (
    IPV6_SETTINGS,
    AddAddress,
    AddRoute,
    Change,
    DeviceGoneError,
    DeviceState,
    HostState,
    IPAddress,
    IPInterface,
    IPNetwork,
    LinkError,
    RemoveAddress,
    RemoveRoute,
    Route,
    SetDevice,
    SetIPv6,
    lies_inside,
    plan_changes,
)

ROUTE_PROTOCOL = 76
"""rtm_protocol of every route we make, shown by `ip route` as `proto 76`.

The kernel passes values above 4 on without a meaning of its own (linux/rtnetlink.h). Neither
that header nor iproute2's rt_protos assigns 76, nor do bird (12), Calico (80) or FRR (186–198).
"""

_MAIN_TABLE = 254
_SCOPE_GLOBAL = 0
_IFF_UP = 1
_IFA_F_NODAD = 2
_READ_ATTEMPTS = 5
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

# The kernel's answers to a change that somebody else has made already.
_ALREADY_SO: dict[type, int] = {
    RemoveRoute: errno.ESRCH,
    RemoveAddress: errno.EADDRNOTAVAIL,
    AddAddress: errno.EEXIST,
}


class RouteConflictError(LinkError):
    """Somebody else's route has the destination we need."""


class KernelRefusedError(LinkError):
    """Any other refusal, with the kernel's reason."""


class NotPermittedError(LinkError):
    """CAP_NET_ADMIN is missing, or /proc/sys is read-only."""

    retryable = False


class HostNetwork:
    """Our part of the network of the namespace this object was made in.

    To be used from one thread: pyroute2 keeps its sockets in thread-local event loops.
    """

    def __init__(self, device: str, networks: Iterable[IPNetwork]) -> None:
        """`device`: name of the overlay device, which need not exist yet. `networks`: the
        overlay's; they tell which routes through a gateway are ours."""
        self.device = device
        self._networks = tuple(networks)
        # strict_check: the kernel filters what it lists, instead of sending every route there is.
        self._netlink: Any = IPRoute(strict_check=True)

    def reconcile(self, desired: HostState) -> tuple[Change, ...]:
        """Make it so. Returns what had to be changed: mostly nothing. Raises LinkError."""
        changes = plan_changes(desired, self.read_actual())
        self.apply(changes)
        return changes

    def remove(self) -> None:
        """Take back what is ours; the device itself goes when the forwarder closes it."""
        actual = self.read_actual()
        bare = actual.device and replace(actual.device, addresses=frozenset())
        try:
            self.apply(plan_changes(HostState(bare, routes=frozenset()), actual))
        except DeviceGoneError:
            self.apply(plan_changes(HostState(None, routes=frozenset()), self.read_actual()))

    def read_actual(self) -> HostState:
        """Raises KernelRefusedError if the tables change faster than they can be read."""
        for _ in range(_READ_ATTEMPTS):
            try:
                return self._read_once()
            except NetlinkDumpInterrupted:
                continue
        raise KernelRefusedError("links and routes kept changing while they were read")

    def _read_once(self) -> HostState:
        link = next(iter(self._netlink.get_links(ifname=self.device)), None)
        routes = frozenset(self._read_routes(device_index=link["index"] if link else None))
        if link is None:
            return HostState(None, routes)
        addresses = frozenset(
            ip_interface(f"{address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}")
            for address in self._netlink.get_addr(index=link["index"])
            if address["scope"] == _SCOPE_GLOBAL
        )
        device = DeviceState(
            mtu_bytes=link.get_attr("IFLA_MTU"),
            txqueuelen_packets=link.get_attr("IFLA_TXQLEN"),
            is_up=bool(link["flags"] & _IFF_UP),
            addresses=addresses,
            ipv6_settings=self._read_ipv6_settings(),
        )
        return HostState(device, routes)

    def _read_routes(self, device_index: int | None) -> Iterator[Route]:
        for family, default in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for route in self._netlink.get_routes(
                family=family, table=_MAIN_TABLE, proto=ROUTE_PROTOCOL
            ):
                destination = ip_network(f"{route.get_attr('RTA_DST', default)}/{route['dst_len']}")
                gateway = route.get_attr("RTA_GATEWAY")
                source = route.get_attr("RTA_PREFSRC")
                by_device = device_index is not None and route.get_attr("RTA_OIF") == device_index
                if by_device or (gateway and lies_inside(destination, self._networks)):
                    yield Route(
                        destination,
                        gateway=ip_address(gateway) if gateway else None,
                        source=ip_address(source) if source else None,
                    )

    def _read_ipv6_settings(self) -> frozenset[tuple[str, str]]:
        names = [*(name for name, _ in IPV6_SETTINGS), "disable_ipv6"]
        try:
            return frozenset((name, self._ipv6_file(name).read_text().strip()) for name in names)
        except OSError as error:
            # Gone with the device, or never there; EINVAL where it goes while it is read.
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
                return frozenset()
            raise

    def _ipv6_file(self, name: str) -> Path:
        return Path("/proc/sys/net/ipv6/conf") / self.device / name

    def apply(self, changes: Iterable[Change]) -> None:
        """Apply all changes, also those after one that is refused; then raise the first refusal.

        Without the device or the privilege there is no point in going on: raises at once.
        """
        refusals: list[LinkError] = []
        for change in changes:
            try:
                self._apply_one(change)
            except (DeviceGoneError, NotPermittedError):
                raise
            except LinkError as refusal:
                refusals.append(refusal)
        if refusals:
            raise refusals[0]

    def _apply_one(self, change: Change) -> None:
        try:
            match change:
                case SetIPv6(name, value):
                    self._ipv6_file(name).write_text(value)
                case SetDevice(mtu_bytes, txqueuelen, is_up):
                    up = "up" if is_up else "down"
                    self._netlink.link(
                        "set", index=self._index(), mtu=mtu_bytes, txqlen=txqueuelen, state=up
                    )
                case RemoveRoute(route):
                    self._netlink.route("del", **self._route_fields(route))
                case RemoveAddress(address):
                    self._netlink.addr("del", **self._address_fields(address))
                case AddAddress(address):
                    self._netlink.addr("add", **self._address_fields(address))
                case AddRoute(route):
                    self._netlink.route("add", **self._route_fields(route))
        except NetlinkError as error:
            if error.code != _ALREADY_SO.get(type(change)):
                raise self._explain(change, error.code) from error
        except OSError as error:
            raise self._explain(change, error.errno or 0) from error

    def _index(self) -> int:
        found = self._netlink.link_lookup(ifname=self.device)
        if not found:
            raise NetlinkError(errno.ENODEV)
        return int(found[0])

    def _address_fields(self, address: IPInterface) -> dict[str, Any]:
        return {
            "index": self._index(),
            "family": _FAMILY[address.version],
            "address": str(address.ip),
            "prefixlen": address.network.prefixlen,
            # Until duplicates have been looked for, a route could not name it as its source.
            "flags": _IFA_F_NODAD if address.version == 6 else 0,
        }

    def _route_fields(self, route: Route) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "family": _FAMILY[route.destination.version],
            "dst": str(route.destination),
            "table": _MAIN_TABLE,
            "proto": ROUTE_PROTOCOL,
        }
        if route.gateway is None:
            fields |= {"oif": self._index(), "scope": "link"}
        else:
            fields["gateway"] = str(route.gateway)
        if route.source is not None:
            fields["prefsrc"] = str(route.source)
        return fields

    def _explain(self, change: Change, code: int) -> LinkError:
        doing = f"cannot {change} ({self.device}): {os.strerror(code)}"
        match code:
            case errno.ENODEV | errno.ENOENT:
                return DeviceGoneError(f"{doing}; is the forwarder running?")
            case errno.EPERM | errno.EACCES | errno.EROFS:
                return NotPermittedError(f"{doing}; this needs CAP_NET_ADMIN (run as root)")
            case errno.EEXIST:
                return RouteConflictError(
                    f"{doing}; another program has a route there: remove it"
                    " or choose another Network (see `ip route`)"
                )
        return KernelRefusedError(doing)

    def reaches_directly(self, address: IPAddress) -> bool:
        """Whether packets to `address` leave without passing a gateway (DirectRouting's test)."""
        try:
            found = self._netlink.route("get", family=_FAMILY[address.version], dst=str(address))
        except NetlinkError:
            return False
        return bool(found) and found[0].get_attr("RTA_GATEWAY") is None

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self) -> HostNetwork:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def device_has_feature(device: str, feature: str) -> bool:
    """Whether an offload (as `ethtool -k` names it: `tx-udp_tnl-segmentation`) is on.

    Raises DeviceGoneError if there is no such device. An unknown feature is not on.
    """
    try:
        features = IoctlEthtool(device).get_features()
    except OSError as error:
        raise DeviceGoneError(f"no interface named '{device}'") from error
    return feature in features and bool(features[feature])
