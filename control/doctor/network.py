"""Devices, ports and routes of the host: what is in loden's way, and what the kernel would do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from control.doctor.finding import Finding, failure, ok, warning
from control.host_state import IPNetwork
from control.kernel_route import decide
from forwarder.fib.routes import IPAddress

PEERS_MAX = 64
"""So many of the other nodes are looked at."""
SHOWN = 3
"""A finding names no more of them."""


@dataclass(frozen=True)
class Peer:
    """Another node."""

    address: IPAddress
    """On the underlay."""
    subnet: IPNetwork
    """Of its pods, of the same family."""


@dataclass(frozen=True)
class Place:
    """Where this node stands."""

    device: str
    """The overlay device."""
    port: int
    networks: tuple[IPNetwork, ...]
    """The overlay's."""
    subnets: tuple[IPNetwork, ...]
    """This node's own; none if it has none yet."""
    interface: str | None
    """Of the underlay."""
    addresses: tuple[IPAddress, ...]
    """Our own on the underlay."""
    forwarder_pid: int | None
    """None: no loden is running."""


# ---- devices, addresses, the port ----------------------------------------------------------------


def check_conflicts(place: Place) -> list[Finding]:
    """What takes the device's name, the port, or the overlay's addresses."""
    with IPRoute() as netlink:
        links = {link["index"]: link for link in netlink.get_links()}
        addresses = list(netlink.get_addr())
    names = {index: str(link.get_attr("IFLA_IFNAME")) for index, link in links.items()}
    found = [*_check_devices(place, links.values()), *_check_port(place)]
    for message in addresses:
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        name = names.get(message["index"], "?")
        found += _check_address(place, ip_interface(text).ip, name)
    return found or [ok("conflicts", f"nobody else has UDP port {place.port} or {place.device}")]


def _check_devices(place: Place, links: Iterable[Any]) -> Iterator[Finding]:
    for link in links:
        name, info = link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_LINKINFO")
        data = info.get_attr("IFLA_INFO_DATA") if info else None
        if info and info.get_attr("IFLA_INFO_KIND") == "vxlan" and data:
            if data.get_attr("IFLA_VXLAN_PORT") == place.port:
                says = f"the kernel's vxlan device {name} is on UDP port {place.port}"
                mend = f"stop what made it (flanneld?), then: ip link delete {name}"
                yield failure("conflicts", f"{says}: it takes the packets meant for loden", mend)
        elif name == place.device and place.forwarder_pid is None:
            says = f"there is a device {name} already, and no loden is running"
            mend = f"ip link delete {name}, or choose another name with --device"
            yield failure("conflicts", says, mend)


def _check_address(place: Place, address: IPAddress, name: str) -> Iterator[Finding]:
    inside = next((network for network in place.networks if address in network), None)
    if inside is None:
        return
    if address in place.addresses:
        says = f"{address} of {name}, where tunnel packets go, is inside the pods' network {inside}"
        mend = "choose another network for the pods, see loden init"
        yield failure("conflicts", f"{says}: they would go round in circles", mend)
    elif place.subnets and not any(address in subnet for subnet in place.subnets):
        says = (
            f"{name} has {address}, which is inside the pods' network {inside} and not this node's"
        )
        mend = "give it an address elsewhere; an old bridge: restart Docker with loden's options"
        yield failure("conflicts", f"{says}: pods' packets may go there", mend)


def _check_port(place: Place) -> Iterator[Finding]:
    own = _family_of(place.forwarder_pid)
    for pid in sorted(_holders(_sockets_on(place.port)) - own):
        command = "?"
        with suppress(OSError):
            command = Path(f"/proc/{pid}/comm").read_text().strip()
        says = f"UDP port {place.port} is held by {command} (pid {pid})"
        means = "loden cannot use it" if place.forwarder_pid is None else "it takes packets away"
        yield failure(
            "conflicts", f"{says}: {means}", "stop it, or choose a port: loden init --port"
        )


def _sockets_on(port: int) -> set[str]:
    """Inodes of the UDP sockets bound to it, see proc_net(5)."""
    inodes = set()
    for table in ("udp", "udp6"):
        with suppress(OSError):
            for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(fields[9])
    return inodes - {"0"}  # the kernel's own


def _holders(inodes: set[str]) -> set[int]:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    pids = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*") if wanted else ():
        with suppress(OSError):
            if os.readlink(descriptor) in wanted:
                pids.add(int(descriptor.parts[2]))
    return pids


def _family_of(forwarder_pid: int | None) -> set[int]:
    """The forwarder and its workers."""
    if forwarder_pid is None:
        return set()
    children: list[int] = []
    with suppress(OSError):
        path = Path(f"/proc/{forwarder_pid}/task/{forwarder_pid}/children")
        children = [int(pid) for pid in path.read_text().split()]
    return {forwarder_pid, *children}


# ---- the kernel's decisions ----------------------------------------------------------------------


def check_ways(place: Place, peers: Iterable[Peer]) -> list[Finding]:
    """Whether the kernel brings pods' packets to the overlay, and the peers' to pods.

    Before loden runs there is only the way from the peers to this host to be asked about.
    """
    looked_at = list(peers)[:PEERS_MAX]
    back = _refusals(_from_underlay(place, looked_at))
    found = [_judged("underlay", back, "the kernel takes what the other nodes send")]
    if place.forwarder_pid is not None and place.subnets:
        out = _refusals(_out(place, looked_at))
        found.append(_judged("pods' way out", out, f"it leads to {place.device}"))
        into = _refusals(_in(place, looked_at))
        found.append(_judged("pods' way in", into, "the kernel takes what loden delivers"))
    return [*found, *_check_forwarding(place)]


def _judged(check: str, refusals: list[str], fine: str) -> Finding:
    if not refusals:
        return ok(check, fine)
    more = f"; and {len(refusals) - SHOWN} more" if len(refusals) > SHOWN else ""
    mend = "see `ip route get`, `ip rule` and rp_filter (2 is loose): sysctl net.ipv4.conf"
    return failure(check, "; ".join(refusals[:SHOWN]) + more, mend)


def _refusals(said: Iterable[str | None]) -> list[str]:
    return [text for text in said if text is not None]


def _from_underlay(place: Place, peers: Iterable[Peer]) -> Iterator[str | None]:
    for peer in peers:
        own = _of_version(place.addresses, peer.address.version)
        if own is None or place.interface is None:
            continue
        decision = decide(own, peer.address, place.interface)
        yield decision.refusal and f"from the node {peer.address}: {decision.refusal}"


def _out(place: Place, peers: Iterable[Peer]) -> Iterator[str | None]:
    for peer in peers:
        pod, destination = _a_pod(place, peer), peer.subnet.network_address + 1
        if pod is None:
            continue
        bridge = decide(pod).device
        behind_bridge = bridge not in (None, place.device, place.interface)
        decision = decide(destination, pod, bridge) if behind_bridge else decide(destination)
        direct = decision.gateway == str(peer.address)
        if decision.device != place.device and not direct:
            yield f"to {peer.subnet}: {decision}"


def _in(place: Place, peers: Iterable[Peer]) -> Iterator[str | None]:
    for peer in peers:
        if (pod := _a_pod(place, peer)) is not None:
            decision = decide(pod, peer.subnet.network_address + 1, place.device)
            yield decision.refusal and f"from {peer.subnet}: {decision.refusal}"


def _a_pod(place: Place, peer: Peer) -> IPAddress | None:
    """An address that a pod of ours may have; the first one is the bridge's."""
    subnet = next((s for s in place.subnets if s.version == peer.subnet.version), None)
    return None if subnet is None else subnet.network_address + 2


def _of_version(addresses: Iterable[IPAddress], version: int) -> IPAddress | None:
    return next((address for address in addresses if address.version == version), None)


def _check_forwarding(place: Place) -> Iterator[Finding]:
    settings = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
    for version in sorted({network.version for network in place.networks}):
        name = settings[version].replace("/", ".")
        if Path("/proc/sys", settings[version]).read_text().strip() == "0":
            says = f"{name} is 0: nothing gets from a pod to the overlay, or back"
            mend = f"sysctl -w {name}=1 (Docker does so for IPv4 when it starts)"
            running = place.forwarder_pid is not None
            yield (failure if running else warning)("forwarding", says, mend)
        else:
            yield ok("forwarding", f"{name} is on")
