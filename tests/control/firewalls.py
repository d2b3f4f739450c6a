"""Three hosts to try firewall rules on, and whom a server sees.

                   ┌── node: pod 172.17.10.2, the rules under test
    192.168.77.0 ──┼── peer: pod 172.17.11.2, no rules
                   └── outside

Instead of an overlay plain routes lead from node to peer: to the rules it is all the same.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from control.host_state import IPNetwork
from perf.namespace import Namespace
from perf.topology import Host, Pod, Topology

DEVICE = "loden0"
NETWORKS: list[IPNetwork] = [IPv4Network("172.17.0.0/16"), IPv6Network("fd17::/48")]
OWN: list[IPNetwork] = [IPv4Network("172.17.10.0/24"), IPv6Network("fd17:0:0:10::/64")]
PEERS: list[IPNetwork] = [IPv4Network("172.17.11.0/24"), IPv6Network("fd17:0:0:11::/64")]


@dataclass
class Site:
    node: Host
    peer: Host
    outside: Host
    pod: Pod
    peer_pod: Pod


@contextlib.contextmanager
def built_site() -> Iterator[Site]:
    with Topology(hosts=3, ipv6=True) as topology:
        node, peer, outside = topology.hosts
        pod = node.add_pod(*OWN, mtu_bytes=1450)
        peer_pod = peer.add_pod(*PEERS, mtu_bytes=1450)
        for device in ("all", "eth0"):  # the node is on the way on purpose
            node.set_sysctl(f"net/ipv4/conf/{device}/send_redirects", 0)
        add_routes(node, PEERS, via=peer)
        add_routes(peer, OWN, via=node)
        add_routes(outside, NETWORKS, via=node)
        yield Site(node, peer, outside, pod, peer_pod)


def add_routes(host: Host, networks: list[IPNetwork], via: Host) -> None:
    gateways = {4: via.address, 6: via.address_ipv6}
    host.ip(*(f"route add {network} via {gateways[network.version]}" for network in networks))


def source_seen(
    client: Namespace, server: Namespace, address: object, kind: socket.SocketKind
) -> str:
    """Whom the server sees when the client sends to it."""
    family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
    with server.entered():
        receiver = socket.socket(family, kind)
    with client.entered():
        sender = socket.socket(family, kind)
    with receiver, sender:
        for end in (receiver, sender):
            end.settimeout(5.0)
        receiver.bind((str(address), 0))
        if kind == socket.SOCK_DGRAM:
            sender.sendto(b"who am I", receiver.getsockname()[:2])
            return str(receiver.recvfrom(100)[1][0])
        receiver.listen()
        sender.connect(receiver.getsockname()[:2])
        accepted, (source, *_) = receiver.accept()
        accepted.close()
        return str(source)
