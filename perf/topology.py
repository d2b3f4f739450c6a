"""Hosts as network namespaces: for tests, the demo and benchmarks alike.

Two hosts, joined by one veth pair:

    ┌─ PREFIX-host0 ──────────────────────┐        ┌─ PREFIX-host1 ──────────────────────┐
    │  eth0 192.168.77.10/24, fd77::10/64 ├────────┤ eth0 192.168.77.11/24, fd77::11/64  │
    │  (the overlay is made by whoever    │  veth  │                                     │
    │   is tested)                        │        │                                     │
    │  docker0 172.17.10.1/24             │        │  docker0 172.17.11.1/24             │
    │    │ veth0                          │        │    │ veth0                          │
    └────┼────────────────────────────────┘        └────┼────────────────────────────────┘
    ┌────┼─ PREFIX-host0-pod0 ────────────┐        ┌────┼─ PREFIX-host1-pod0 ────────────┐
    │  eth0 172.17.10.2/24                │        │  eth0 172.17.11.2/24                │
    │  default via 172.17.10.1            │        │  default via 172.17.11.1            │
    └─────────────────────────────────────┘        └─────────────────────────────────────┘

More hosts: a bridge between them, in a namespace of its own:

    PREFIX-host0 eth0 ──┐
    PREFIX-host1 eth0 ──┼── PREFIX-wire: bridge
    PREFIX-host2 eth0 ──┘

Pods come with `host.add_pod`, once the host's subnet is known. Nothing touches the network
namespace of the caller, and any number of topologies can be up at once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from types import TracebackType

from perf.namespace import Namespace, list_namespaces, remove_namespaces

UNDERLAY_DEVICE = "eth0"
UNDERLAY_NETWORK = IPv4Network("192.168.77.0/24")
UNDERLAY_NETWORK_IPV6 = IPv6Network("fd77::/64")
FIRST_HOST_NUMBER = 10
MAX_HOSTS = 200
BRIDGE_DEVICE = "docker0"

_NOT_ON_A_PLAIN_NIC = (
    "tx",
    "tso",
    "gso",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
)
_OWNED_NAME = re.compile(r"loden-(?P<pid>\d+)-(?P<start>\d+)-\d+-")
_counter = itertools.count()


class TopologyError(RuntimeError):
    """The topology cannot be built; says why."""


class Pod(Namespace):
    """A container's network: one interface, eth0, its default route through the host."""

    def __init__(self, name: str, addresses: list[IPv4Address | IPv6Address]) -> None:
        super().__init__(name)
        self.addresses = addresses
        """One per subnet of the host, in the order given to `add_pod`."""

    @property
    def address(self) -> IPv4Address | IPv6Address:
        return self.addresses[0]


class Host(Namespace):
    def __init__(self, topology: Topology, number: int) -> None:
        super().__init__(f"{topology.prefix}-host{number}")
        self.address = UNDERLAY_NETWORK[FIRST_HOST_NUMBER + number]
        # fd77::10 for .10: the same digits, read as hexadecimal.
        digits = int(str(FIRST_HOST_NUMBER + number), 16)
        self.address_ipv6 = UNDERLAY_NETWORK_IPV6[digits] if topology.ipv6 else None
        self.pods: list[Pod] = []

    def add_pod(self, *subnets: str | IPv4Network | IPv6Network, mtu_bytes: int) -> Pod:
        """Attach a pod to docker0, which is made with the first one.

        `subnets`: the node's, one per address family: their first address is the bridge's, the
        next ones are the pods'. `mtu_bytes`: the overlay's.
        """
        networks = [ip_network(subnet) for subnet in subnets]
        number = len(self.pods)
        if number == 0:
            self._make_bridge(networks, mtu_bytes)
        pod = Pod(f"{self.name}-pod{number}", [network[2 + number] for network in networks])
        self.pods.append(pod)
        pod.create()
        pod.set_ipv6(any(network.version == 6 for network in networks))
        self.ip(
            f"link add veth{number} mtu {mtu_bytes} type veth"
            f" peer name eth0 mtu {mtu_bytes} netns {pod.name}",
            f"link set veth{number} master {BRIDGE_DEVICE} up",
        )
        commands = ["link set eth0 up"]
        for network, address in zip(networks, pod.addresses, strict=True):
            commands.append(_address_add(address, network, "eth0"))
            commands.append(_default_route_via(network[1]))
        pod.ip(*commands)
        return pod

    def _make_bridge(self, networks: list[IPv4Network | IPv6Network], mtu_bytes: int) -> None:
        self.ip(
            f"link add {BRIDGE_DEVICE} mtu {mtu_bytes} type bridge",
            f"link set {BRIDGE_DEVICE} up",
            *(_address_add(network[1], network, BRIDGE_DEVICE) for network in networks),
        )


class Topology:
    """Builds on entering, ends and removes everything on leaving, whatever the reason.

        with Topology(hosts=2) as topology:
            pod = topology.hosts[0].add_pod("172.17.10.0/24", mtu_bytes=1450)

    A process that is killed cannot clean up: whoever builds the next topology does it then.
    """

    def __init__(
        self,
        hosts: int = 2,
        *,
        prefix: str | None = None,
        ipv6: bool = False,
        default_route: bool = True,
        mtu_bytes: int = 1500,
        plain_nic: bool = False,
    ) -> None:
        """
        `prefix`: begins every namespace's name. None: one that is unique and tells its owner,
        and is swept when that owner is dead. A given one must be free and is never swept.
        `ipv6`: the underlay has IPv6 too; without, IPv6 is off, and the wire quiet.
        `default_route`: hosts have one, by eth0 (to a gateway that does not answer).
        `mtu_bytes`: of the underlay.
        `plain_nic`: eth0 can do what a simple NIC can: no checksums, no segmentation; GRO is on.
        A veth left as it is segments nothing and hands superpackets over whole.
        """
        if not 1 <= hosts <= MAX_HOSTS:
            raise ValueError(f"hosts: {hosts} is not between 1 and {MAX_HOSTS}")
        self.is_kept = False
        """Set it to leave all up on exit; asks for a `prefix`, for `remove_topology` later."""
        self.prefix = prefix or f"loden-{os.getpid()}-{_start_time(os.getpid())}-{next(_counter)}"
        self.ipv6 = ipv6
        self._default_route = default_route
        self._mtu_bytes = mtu_bytes
        self._plain_nic = plain_nic
        self._wire = Namespace(f"{self.prefix}-wire") if hosts > 2 else None
        self.hosts = [Host(self, number) for number in range(hosts)]

    def __enter__(self) -> Topology:
        if os.geteuid() != 0:
            raise TopologyError("building network namespaces needs root")
        sweep_leftovers()
        if existing := list_namespaces(f"{self.prefix}-"):
            raise TopologyError(
                f"prefix: '{self.prefix}' is taken: there is a namespace {existing[0].name}"
            )
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def _build(self) -> None:
        for host in self.hosts:
            host.create()
            host.set_ipv6(self.ipv6)
            host.set_sysctl("net/ipv4/ip_forward", 1)
            host.set_sysctl("net/ipv6/conf/all/forwarding", int(self.ipv6))
        if self._wire:
            self._wire.create()
            self._wire.set_ipv6(False)
            self._wire.ip(
                f"link add wire mtu {self._mtu_bytes} type bridge mcast_snooping 0",
                "link set wire up",
            )
        self._connect()
        for host in self.hosts:
            self._configure(host)

    def _connect(self) -> None:
        if self._wire:
            for number, host in enumerate(self.hosts):
                host.ip(
                    f"link add {UNDERLAY_DEVICE} mtu {self._mtu_bytes} type veth"
                    f" peer name port{number} mtu {self._mtu_bytes} netns {self._wire.name}"
                )
            ports = range(len(self.hosts))
            self._wire.ip(*(f"link set port{number} master wire up" for number in ports))
        elif len(self.hosts) == 2:
            self.hosts[0].ip(
                f"link add {UNDERLAY_DEVICE} mtu {self._mtu_bytes} type veth"
                f" peer name {UNDERLAY_DEVICE} mtu {self._mtu_bytes} netns {self.hosts[1].name}"
            )
        else:
            # A wire with no other end: what is sent out is lost.
            self.hosts[0].ip(
                f"link add {UNDERLAY_DEVICE} mtu {self._mtu_bytes} type veth peer name unplugged",
                "link set unplugged up",
            )

    def _configure(self, host: Host) -> None:
        if self._plain_nic:
            off = [word for feature in _NOT_ON_A_PLAIN_NIC for word in (feature, "off")]
            host.run(["ethtool", "-K", UNDERLAY_DEVICE, *off, "gro", "on"])
        commands = [
            f"link set {UNDERLAY_DEVICE} up",
            _address_add(host.address, UNDERLAY_NETWORK, UNDERLAY_DEVICE),
        ]
        if self._default_route:
            commands.append(_default_route_via(UNDERLAY_NETWORK[1]))
        if host.address_ipv6 is not None:
            commands.append(_address_add(host.address_ipv6, UNDERLAY_NETWORK_IPV6, UNDERLAY_DEVICE))
            if self._default_route:
                commands.append(_default_route_via(UNDERLAY_NETWORK_IPV6[1]))
        host.ip(*commands)

    def _namespaces(self) -> list[Namespace]:
        wire = [self._wire] if self._wire else []
        return [*(pod for host in self.hosts for pod in host.pods), *self.hosts, *wire]

    def close(self, *, grace_s: float = 5.0) -> None:
        """End every process in the namespaces, however it got there, and delete them.

        `grace_s`: how long each may take to end in order, before it is killed.
        """
        with _uninterrupted():
            remove_namespaces(self._namespaces(), grace_s=grace_s)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.is_kept:
            self.close()


def remove_topology(prefix: str) -> None:
    """Take down one that was kept; nothing if there is none."""
    remove_namespaces(list_namespaces(f"{prefix}-"))


def sweep_leftovers() -> list[str]:
    """Remove what processes left behind that were killed; returns the namespaces' names."""
    stale = [
        namespace
        for namespace in list_namespaces("loden-")
        if (owner := _OWNED_NAME.match(namespace.name))
        and _start_time(int(owner["pid"])) != int(owner["start"])
    ]
    remove_namespaces(stale)
    return [namespace.name for namespace in stale]


def _start_time(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None: there is no such process.

    With the pid it names a process for good, since pids are used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): field 22; the second, the command in parentheses, may contain anything.
    return int(stat.rpartition(")")[2].split()[19])


def _address_add(
    address: IPv4Address | IPv6Address, network: IPv4Network | IPv6Network, device: str
) -> str:
    nodad = " nodad" if address.version == 6 else ""  # usable at once
    return f"address add {address}/{network.prefixlen} dev {device}{nodad}"


def _default_route_via(gateway: IPv4Address | IPv6Address) -> str:
    everywhere = "0.0.0.0/0" if gateway.version == 4 else "::/0"
    return f"route add {everywhere} via {gateway}"


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not stop the clearing up that the first one began."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
