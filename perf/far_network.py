"""A network of 2^28 addresses behind the far host, all of them its pod's: for many routes to it."""

from __future__ import annotations

from ipaddress import IPv4Network

import numpy as np

from forwarder.fib.routes import Prefix
from perf.topology import Host

FAR_NETWORK = IPv4Network("16.0.0.0/4")


def take_far_network(host: Host) -> None:
    """The pod of this host has all of its addresses."""
    (pod,) = host.pods
    host.ip(f"route add {FAR_NETWORK} via {pod.address}")
    pod.ip(f"route add local {FAR_NETWORK} dev lo")


def split_network(network: IPv4Network, count: int, seed: int = 1) -> list[Prefix]:
    """`count` prefixes, none longer than /24, that divide the network; in random order."""
    most = 1 << (24 - network.prefixlen)
    if not 1 <= count <= most:
        raise ValueError(f"count: {count} is not allowed; allowed: 1 to {most}")
    bits = count.bit_length() - 1
    short, halved = network.prefixlen + bits, count - (1 << bits)
    lengths = [short] * ((1 << bits) - halved) + [short + 1] * (2 * halved)
    addresses = np.cumsum([int(network.network_address), *(1 << (32 - n) for n in lengths)])
    order = np.random.default_rng(seed).permutation(count)
    return [Prefix(4, int(addresses[index]), lengths[index]) for index in order]
