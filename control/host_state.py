"""Our part of the host's network as values: what it should be, what it is, the difference.

    desired ──┐
              ├── plan_changes ──> changes, for control/link.py to apply
    actual  ──┘

No system calls here. A device's addresses are `<subnet>.0/32` and `<subnet>::/128`, as on
flannel's device, and one route carries each whole overlay Network into it: which node has which
subnet is the forwarder's business, not the kernel's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
)

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

TXQUEUELEN_PACKETS = 5_000
"""A TUN's default of 500 overflows within one burst of small packets."""

IPV6_SETTINGS = frozenset({("accept_ra", "0"), ("addr_gen_mode", "1"), ("autoconf", "0")})
"""net.ipv6.conf.<device>.*: the device has only those IPv6 addresses that we give it.

addr_gen_mode 1 is "none": no link-local address either, which no neighbour could answer.
"""


class LinkError(Exception):
    """Base of what can go wrong with links and routes; `retryable`: may trying again help?"""

    retryable = True


class DeviceGoneError(LinkError):
    """The overlay device does not exist (any more); the forwarder will make it again."""


@dataclass(frozen=True)
class Route:
    """A route of ours. Without a gateway it leaves by the overlay device."""

    destination: IPNetwork
    gateway: IPAddress | None = None
    source: IPAddress | None = None
    """Preferred source of the host's own packets; has to be an address of the host."""

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway else ""
        src = f" src {self.source}" if self.source else ""
        return f"{self.destination}{via}{src}"


@dataclass(frozen=True)
class DeviceState:
    mtu_bytes: int
    txqueuelen_packets: int
    is_up: bool
    addresses: frozenset[IPInterface]
    """Link-local ones left out."""
    ipv6_settings: frozenset[tuple[str, str]]
    """Pairs of name and value; empty where the kernel runs without IPv6."""


@dataclass(frozen=True)
class HostState:
    device: DeviceState | None
    """None: there is no such device (actual), or it is of no concern (desired)."""
    routes: frozenset[Route]


@dataclass(frozen=True)
class SetIPv6:
    name: str
    value: str

    def __str__(self) -> str:
        return f"set IPv6 {self.name} to {self.value}"


@dataclass(frozen=True)
class SetDevice:
    mtu_bytes: int
    txqueuelen_packets: int
    is_up: bool

    def __str__(self) -> str:
        up = "up" if self.is_up else "down"
        return f"set {up} with MTU {self.mtu_bytes}, queue length {self.txqueuelen_packets}"


@dataclass(frozen=True)
class RemoveRoute:
    route: Route

    def __str__(self) -> str:
        return f"remove route {self.route}"


@dataclass(frozen=True)
class RemoveAddress:
    address: IPInterface

    def __str__(self) -> str:
        return f"remove address {self.address}"


@dataclass(frozen=True)
class AddAddress:
    address: IPInterface

    def __str__(self) -> str:
        return f"add address {self.address}"


@dataclass(frozen=True)
class AddRoute:
    route: Route

    def __str__(self) -> str:
        return f"add route {self.route}"


Change = SetIPv6 | SetDevice | RemoveRoute | RemoveAddress | AddAddress | AddRoute


def overlay_state(
    subnets: Iterable[tuple[IPNetwork, IPNetwork]],
    *,
    mtu_bytes: int,
    extra_prefixes: Iterable[IPNetwork] = (),
    direct: Iterable[tuple[IPNetwork, IPAddress]] = (),
) -> HostState:
    """What a node needs on its host.

    `subnets`: pairs of an overlay Network and the node's own subnet in it, at most one per
    address family. `extra_prefixes`: destinations outside the Networks that the overlay carries
    too. `direct`: pairs of a peer's subnet and its on-link public address (DirectRouting).

    Raises ValueError if a direct subnet lies outside the Networks: such a route could not be
    told from somebody else's, and would be left behind.
    """
    pairs = list(subnets)
    source = {network.version: subnet.network_address for network, subnet in pairs}
    routes = {Route(network, source=source[network.version]) for network, _ in pairs}
    routes |= {Route(prefix, source=source.get(prefix.version)) for prefix in extra_prefixes}
    for subnet, gateway in direct:
        if not lies_inside(subnet, [network for network, _ in pairs]):
            raise ValueError(f"direct route to {subnet}: it is in none of the overlay's networks")
        routes.add(Route(subnet, gateway=gateway))
    needs_ipv6 = {("disable_ipv6", "0")} if 6 in source else set()
    device = DeviceState(
        mtu_bytes=mtu_bytes,
        txqueuelen_packets=TXQUEUELEN_PACKETS,
        is_up=True,
        addresses=frozenset(ip_interface(address) for address in source.values()),
        ipv6_settings=IPV6_SETTINGS | needs_ipv6,
    )
    return HostState(device, frozenset(routes))


def lies_inside(network: IPNetwork, outer_networks: Iterable[IPNetwork]) -> bool:
    return any(
        network.network_address in outer and network.prefixlen >= outer.prefixlen
        for outer in outer_networks
    )


def plan_changes(desired: HostState, actual: HostState) -> tuple[Change, ...]:
    """The changes that make `desired` of `actual`, in an order the kernel accepts.

    A route needs the device up and its source address there: so routes are removed before
    addresses, and added after. Settings come first, because "up" generates addresses.
    Raises DeviceGoneError if a device is desired and there is none.
    """
    before, after = _plan_device(desired.device, actual.device)
    removed = [RemoveRoute(route) for route in _in_order(actual.routes - desired.routes)]
    added = [AddRoute(route) for route in _in_order(desired.routes - actual.routes)]
    return (*before, *removed, *after, *added)


def _plan_device(
    desired: DeviceState | None, actual: DeviceState | None
) -> tuple[list[Change], list[Change]]:
    """What to do to the device before routes are removed, and before they are added."""
    if desired is None:
        return [], []
    if actual is None:
        raise DeviceGoneError("the overlay device is not there: is the forwarder running?")
    link: list[Change] = []
    if actual.ipv6_settings:
        different = desired.ipv6_settings - actual.ipv6_settings
        link += [SetIPv6(name, value) for name, value in sorted(different)]
    wanted = SetDevice(desired.mtu_bytes, desired.txqueuelen_packets, desired.is_up)
    if wanted != SetDevice(actual.mtu_bytes, actual.txqueuelen_packets, actual.is_up):
        link.append(wanted)
    removed = sorted(actual.addresses - desired.addresses, key=str)
    added = sorted(desired.addresses - actual.addresses, key=str)
    return link, [*map(RemoveAddress, removed), *map(AddAddress, added)]


def _in_order(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda route: (route.destination.version, str(route)))
