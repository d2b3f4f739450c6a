"""Which of the host's interfaces carries the underlay, chosen by flanneld's flags.

    --iface (each in turn), then --iface-regex (each in turn): the first that matches
    neither given: --iface-can-reach, else the interface of the default route

`read_host_interfaces` asks the kernel, `choose_external_interface` decides; the latter is pure.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

IPAddress = IPv4Address | IPv6Address

_IFF_UP = 1
_IFA_F_DEPRECATED = 0x20
_SCOPE_LINK = 253
_SCOPE_HOST = 254
_MAIN_TABLE = 254
_RTN_UNICAST = 1  # not the "unreachable" default that IPv6 has where it has no route


class ExternalInterfaceError(Exception):
    """No usable interface. `retryable`: the host may get one without a change of the flags."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True)
class InterfaceChoice:
    """What the operator asked for."""

    ifaces: tuple[str, ...] = ()
    """--iface: names or addresses."""
    regexes: tuple[str, ...] = ()
    """--iface-regex: searched in addresses first, then in names."""
    can_reach: IPAddress | None = None
    """--iface-can-reach: the interface by which the kernel sends to this address."""
    public_ipv4: IPv4Address | None = None
    """--public-ip: published to the peers instead of the interface's own address."""
    public_ipv6: IPv6Address | None = None
    """--public-ipv6: likewise."""
    needs_ipv4: bool = True
    """The network config has EnableIPv4: there must be an IPv4 address."""
    needs_ipv6: bool = False
    """The network config has EnableIPv6: there must be an IPv6 address."""


@dataclass(frozen=True)
class ExternalInterface:
    name: str
    index: int
    mtu_bytes: int
    ipv4: IPv4Address | None
    """The address to bind and send from; None where IPv4 is not needed."""
    ipv6: IPv6Address | None
    public_ipv4: IPv4Address | None
    """The address peers send to: the one above unless --public-ip says otherwise."""
    public_ipv6: IPv6Address | None


@dataclass(frozen=True)
class HostInterface:
    name: str
    index: int
    mtu_bytes: int
    is_up: bool
    addresses: tuple[IPAddress, ...] = ()
    """Best first: global before link-local, as the kernel lists them otherwise."""

    def first_ipv4(self) -> IPv4Address | None:
        return next((a for a in self.addresses if isinstance(a, IPv4Address)), None)

    def first_ipv6(self) -> IPv6Address | None:
        """Never a link-local one: peers could not name the link it is valid on."""
        globals_ = (a for a in self.addresses if isinstance(a, IPv6Address) and not a.is_link_local)
        return next(globals_, None)

    def __str__(self) -> str:
        return " ".join([self.name, *map(str, self.addresses)])


@dataclass(frozen=True)
class HostInterfaces:
    """What the kernel said, in one piece."""

    interfaces: tuple[HostInterface, ...]
    default_ipv4_index: int | None = None
    """Interface of the default route with the lowest metric."""
    default_ipv6_index: int | None = None
    reaching_index: int | None = None
    """Interface towards `can_reach`; None: the kernel has no route to it."""
    reaching_source: IPAddress | None = None
    """Source address the kernel would choose on that way."""


def find_external_interface(choice: InterfaceChoice) -> ExternalInterface:
    """Ask the kernel and choose. Raises ExternalInterfaceError."""
    return choose_external_interface(choice, read_host_interfaces(choice.can_reach))


def choose_external_interface(choice: InterfaceChoice, host: HostInterfaces) -> ExternalInterface:
    """Raises ExternalInterfaceError with the flag, its value and what there is to choose from."""
    if choice.ifaces or choice.regexes:
        interface, wanted = _by_name_or_regex(choice, host)
    elif choice.can_reach is not None:
        interface, wanted = _by_reach(choice.can_reach, host)
    else:
        interface, wanted = _by_default_route(choice, host), None
    if not interface.is_up:
        raise ExternalInterfaceError(f"interface '{interface.name}' is down", retryable=True)
    ipv4 = wanted if isinstance(wanted, IPv4Address) else interface.first_ipv4()
    ipv6 = wanted if isinstance(wanted, IPv6Address) else interface.first_ipv6()
    for needed, address, family in (
        (choice.needs_ipv4, ipv4, "IPv4"),
        (choice.needs_ipv6, ipv6, "IPv6"),
    ):
        if needed and address is None:
            raise ExternalInterfaceError(
                f"interface '{interface.name}' has no {family} address", retryable=True
            )
    return ExternalInterface(
        name=interface.name,
        index=interface.index,
        mtu_bytes=interface.mtu_bytes,
        ipv4=ipv4 if choice.needs_ipv4 else None,
        ipv6=ipv6 if choice.needs_ipv6 else None,
        public_ipv4=(choice.public_ipv4 or ipv4) if choice.needs_ipv4 else None,
        public_ipv6=(choice.public_ipv6 or ipv6) if choice.needs_ipv6 else None,
    )


def _by_name_or_regex(
    choice: InterfaceChoice, host: HostInterfaces
) -> tuple[HostInterface, IPAddress | None]:
    """The interface, and the address of it that was matched, if it was by address."""
    misses = []
    for value in choice.ifaces:
        address = _as_address(value)
        for interface in host.interfaces:
            if interface.name == value or address in interface.addresses:
                return interface, address
        what = "with the address" if address else "named"
        misses.append(f"--iface: no interface {what} '{value}'")
    for pattern in choice.regexes:
        regex = _compile(pattern)
        for interface in host.interfaces:
            for found in interface.addresses:
                if regex.search(str(found)):
                    return interface, found
        for interface in host.interfaces:
            if regex.search(interface.name):
                return interface, None
        misses.append(f"--iface-regex: no interface matches '{pattern}'")
    raise ExternalInterfaceError(f"{'; '.join(misses)} ({_there_are(host)})", retryable=False)


def _by_reach(can_reach: IPAddress, host: HostInterfaces) -> tuple[HostInterface, IPAddress | None]:
    for interface in host.interfaces:
        if interface.index == host.reaching_index:
            return interface, host.reaching_source
    raise ExternalInterfaceError(
        f"--iface-can-reach: the kernel has no route to '{can_reach}' ({_there_are(host)})",
        retryable=True,
    )


def _by_default_route(choice: InterfaceChoice, host: HostInterfaces) -> HostInterface:
    index, family = host.default_ipv4_index, "IPv4"
    if not choice.needs_ipv4:
        index, family = host.default_ipv6_index, "IPv6"
    for interface in host.interfaces:
        if interface.index == index:
            return interface
    raise ExternalInterfaceError(
        f"no {family} default route to tell the underlay's interface by: "
        f"name it with --iface ({_there_are(host)})",
        retryable=True,
    )


def _as_address(text: str) -> IPAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ExternalInterfaceError(
            f"--iface-regex: '{pattern}' is not a regular expression: {error}", retryable=False
        ) from error


def _there_are(host: HostInterfaces) -> str:
    return f"there are: {', '.join(map(str, host.interfaces)) or 'none'}"


def read_host_interfaces(can_reach: IPAddress | None = None) -> HostInterfaces:
    """Interfaces, addresses and default routes of this network namespace."""
    with IPRoute() as netlink:
        addresses = _read_addresses(netlink)
        interfaces = tuple(
            HostInterface(
                name=link.get_attr("IFLA_IFNAME"),
                index=link["index"],
                mtu_bytes=link.get_attr("IFLA_MTU"),
                is_up=bool(link["flags"] & _IFF_UP),
                addresses=tuple(addresses.get(link["index"], ())),
            )
            for link in netlink.get_links()
        )
        index, source = _route_to(netlink, can_reach) if can_reach is not None else (None, None)
        return HostInterfaces(
            interfaces,
            default_ipv4_index=_default_route_index(netlink, socket.AF_INET),
            default_ipv6_index=_default_route_index(netlink, socket.AF_INET6),
            reaching_index=index,
            reaching_source=source,
        )


def _read_addresses(netlink: Any) -> dict[int, list[IPAddress]]:
    """Addresses by interface index, global ones first; deprecated ones only if nothing else."""
    found = []
    for message in netlink.get_addr():
        deprecated = bool((message.get_attr("IFA_FLAGS") or 0) & _IFA_F_DEPRECATED)
        local = message["scope"] in (_SCOPE_LINK, _SCOPE_HOST)
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        found.append((deprecated, local, message["index"], ip_address(text)))
    by_index: dict[int, list[IPAddress]] = {}
    for _, _, index, address in sorted(found, key=lambda entry: entry[:2]):
        by_index.setdefault(index, []).append(address)
    return by_index


def _default_route_index(netlink: Any, family: int) -> int | None:
    routes = [
        (route.get_attr("RTA_PRIORITY") or 0, route.get_attr("RTA_OIF"))
        for route in netlink.get_routes(
            family=family, table=_MAIN_TABLE, dst_len=0, type=_RTN_UNICAST
        )
        if route.get_attr("RTA_OIF") is not None
    ]
    return min(routes)[1] if routes else None


def _route_to(netlink: Any, address: IPAddress) -> tuple[int | None, IPAddress | None]:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        route = netlink.route("get", family=family, dst=str(address))[0]
    except NetlinkError:
        return None, None
    source = route.get_attr("RTA_PREFSRC")
    return route.get_attr("RTA_OIF"), ip_address(source) if source else None
