"""What a node is under one network config: pure functions from what is known to what is wanted."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from control.external_interface import ExternalInterface
from control.host_state import HostState, IPNetwork, lies_inside, overlay_state
from control.lease import LeaseAttrs, NodeSubnet, Vtep
from control.network_config import NetworkConfig, overlay_mtu_bytes
from control.options import ControlOptions
from forwarder.config import TunnelConfig
from forwarder.fib.routes import IPAddress
from forwarder.wire.vxlan import format_mac


def lease_attrs(config: NetworkConfig, interface: ExternalInterface, mac: bytes) -> LeaseAttrs:
    """What our lease says: where the others send packets for our pods."""
    vtep = Vtep(config.vni, format_mac(mac))
    return LeaseAttrs(
        public_ip=interface.public_ipv4 if config.ipv4 else None,
        public_ipv6=interface.public_ipv6 if config.ipv6 else None,
        vtep=vtep if config.ipv4 else None,
        vtep_v6=vtep if config.ipv6 else None,
    )


def underlay_addresses(config: NetworkConfig, interface: ExternalInterface) -> list[IPAddress]:
    """Our own underlay addresses in use: IPv4 pods go over IPv4, IPv6 pods over IPv6."""
    ipv4: IPv4Address | None = interface.ipv4 if config.ipv4 else None
    ipv6: IPv6Address | None = interface.ipv6 if config.ipv6 else None
    return [address for address in (ipv4, ipv6) if address is not None]


def overlay_mtu(config: NetworkConfig, interface: ExternalInterface) -> int:
    """The largest inner packet, in bytes: what every underlay in use leaves room for."""
    outer = config.mtu_bytes or interface.mtu_bytes
    addresses = underlay_addresses(config, interface)
    return min(overlay_mtu_bytes(outer, address) for address in addresses)


def tunnel_config(
    options: ControlOptions, config: NetworkConfig, interface: ExternalInterface, mac: bytes
) -> TunnelConfig:
    """The forwarder's parameters.  Raises ConfigError."""
    return TunnelConfig(
        device=options.device,
        vni=config.vni,
        port=config.port,
        mtu_bytes=overlay_mtu(config, interface),
        mac=mac,
        addresses=tuple(underlay_addresses(config, interface)),
        lanes=options.lanes,
    )


def networks_of(config: NetworkConfig) -> tuple[IPNetwork, ...]:
    """The overlay's networks, one per address family in use."""
    pools = (config.ipv4, config.ipv6)
    return tuple(pool.network for pool in pools if pool is not None)


def host_state(
    config: NetworkConfig,
    subnet: NodeSubnet,
    mtu_bytes: int,
    extra: set[IPNetwork],
    direct: dict[IPNetwork, IPAddress],
) -> HostState:
    """What the host's links and routes shall be.

    `extra`: prefixes that need a route into the device besides the overlay's networks; `direct`:
    subnets reached by a plain route through the given gateway.
    """
    pairs = [
        (network, own)
        for network in networks_of(config)
        for own in subnet.networks
        if own.version == network.version
    ]
    return overlay_state(pairs, mtu_bytes=mtu_bytes, extra_prefixes=extra, direct=direct.items())


def needs_kernel_route(prefix: IPNetwork, config: NetworkConfig, subnet: NodeSubnet) -> bool:
    """Whether the kernel needs a route of its own to bring packets for a peer's `prefix` to us.

    The route for the whole network does not lead outside of it, and inside of our own subnet the
    bridge's route is the longer one: a pod that has moved away would be looked for at home.
    """
    return not lies_inside(prefix, networks_of(config)) or lies_inside(prefix, subnet.networks)


def has_moved_in(prefix: IPNetwork, config: NetworkConfig, subnet: NodeSubnet) -> bool:
    """Whether `prefix`, which is routed to this node, is a piece of another node's subnet."""
    return lies_inside(prefix, networks_of(config)) and not lies_inside(prefix, subnet.networks)
