"""Why an address is routed as it is: the etcd key its route comes from, and what is ignored."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from control.lease import ROUTES, IPNetwork, LeaseFormatError, NodeSubnet, parse_network_name
from control.rib import Rib
from forwarder.fib.routes import IPAddress


def explain(rib: Rib | None, address: IPAddress) -> dict[str, Any]:
    """The etcd key that an address is routed by, and what is ignored that would route it."""
    if rib is None:
        return {"key": None, "ignored": []}
    bits = address.max_prefixlen
    networks = (ip_network((address, length), strict=False) for length in range(bits, -1, -1))
    route = next((rib.routes[network] for network in networks if network in rib.routes), None)
    return {
        "key": route.key if route else None,
        "ignored": [str(item) for item in rib.ignored if _is_of(item.key, address)],
    }


def _is_of(key: str, address: IPAddress) -> bool:
    """Whether a key below `subnets/` or `routes/` names a network that holds the address."""
    name = key.rpartition("/")[2]
    try:
        networks: tuple[IPNetwork, ...] = (
            (parse_network_name(name),)
            if f"/{ROUTES}{name}" in key
            else NodeSubnet.parse(name).networks
        )
    except LeaseFormatError:
        return False
    return any(address in network for network in networks)
