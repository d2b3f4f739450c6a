"""The contenders: what carries packets from a pod on one host to a pod on the other.

    pod ── docker0 ── host0 ──(contender)── host1 ── docker0 ── pod

The topology is the same for all, the pods' MTU too.  loden is driven over its api, without etcd:
what is measured here is the data path.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import numpy as np

from control.superpackets import set_up_tap
from forwarder import shm
from forwarder.api import ForwarderClient, ForwarderError
from forwarder.config import TunnelConfig
from forwarder.fib.routes import Local, NextHop, Prefix, RemoteVtep
from forwarder.fib.writer import FibWriter
from perf.agent import AgentClient, connect_agent, start_agent
from perf.measure import NotHere
from perf.nodes import PACKAGES_DIR, wait_for
from perf.peers import FLANNEL_PORT, FLANNEL_VNI, KernelVxlan
from perf.topology import UNDERLAY_DEVICE, Host, Pod, Topology
from perf.traffic import MeasurementError, ping

NETWORK = IPv4Network("10.7.0.0/16")
SUBNETS = (IPv4Network("10.7.1.0/24"), IPv4Network("10.7.2.0/24"))
MACS = (bytes.fromhex("020000000001"), bytes.fromhex("020000000002"))
MTU_BYTES = 1450
DEVICE = "loden0"
FAR_NETWORK = IPv4Network("16.0.0.0/4")
"""Where the many routes lead: every address of it is the far pod's."""
START_S = 240.0
"""The first start of all compiles the data path."""
RECORDED_OFFLOADS = (
    "tx-checksum-ip-generic",
    "tx-tcp-segmentation",
    "tx-udp-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "generic-segmentation-offload",
    "generic-receive-offload",
)


@dataclass
class Pair:
    """A site: two pods, and what is between them."""

    near: Pod
    far: Pod
    directory: Path
    facts: dict[str, Any] = field(default_factory=dict)
    _agents: list[AgentClient] = field(default_factory=list)

    def agents(self) -> tuple[AgentClient, AgentClient]:
        """The processes in the pods, near and far; they start when first asked for."""
        if not self._agents:
            pods = {self.directory / "near": self.near, self.directory / "far": self.far}
            started = {path: start_agent(pod, path) for path, pod in pods.items()}
            self._agents = [
                connect_agent(pods[path], process, path) for path, process in started.items()
            ]
        return self._agents[0], self._agents[1]

    def close(self) -> None:
        for agent in self._agents:
            agent.close()


Connect = Callable[[Topology, Path], dict[str, Any]]
"""Makes one pod reachable from the other; returns facts for the record."""


@contextlib.contextmanager
def pair_of(connect: Connect, *, plain_nic: bool = False) -> Iterator[Pair]:
    """Raises MeasurementError if nothing gets through, and what `connect` raises."""
    with contextlib.ExitStack() as leaving:
        directory = Path(leaving.enter_context(tempfile.TemporaryDirectory(prefix="loden-bench-")))
        topology = leaving.enter_context(Topology(2, plain_nic=plain_nic))
        pods = [
            host.add_pod(subnet, mtu_bytes=MTU_BYTES)
            for host, subnet in zip(topology.hosts, SUBNETS, strict=True)
        ]
        facts = connect(topology, directory)
        facts["offloads"] = offloads_of(topology.hosts[0])
        for source, target in (pods, reversed(pods)):
            if ping(source, target.address, count=3).received == 0:
                raise MeasurementError(f"no ping gets through to {target.address}")
        pair = Pair(pods[0], pods[1], directory, facts)
        leaving.callback(pair.close)
        yield pair


def offloads_of(host: Host) -> dict[str, bool]:
    """Of the underlay's interface."""
    shown = host.run(["ethtool", "--json", "-k", UNDERLAY_DEVICE]).stdout
    (features,) = json.loads(shown)
    return {name: features[name]["active"] for name in RECORDED_OFFLOADS if name in features}


def connect_bare(topology: Topology, directory: Path) -> dict[str, Any]:
    """No overlay: the hosts route to each other's pods."""
    for host, other, subnet in _with_other(topology):
        host.ip(f"route add {subnet} via {other.address}")
    return {}


def connect_kernel(topology: Topology, directory: Path) -> dict[str, Any]:
    """The kernel's vxlan, as flannel sets it up."""
    ends = [KernelVxlan(host, subnet) for host, subnet in zip(topology.hosts, SUBNETS, strict=True)]
    for end, other in (ends, reversed(ends)):
        end.add_peer(other.subnet, other.public_ip, other.mac)
    return {}


def _with_other(topology: Topology) -> Iterator[tuple[Host, Host, IPv4Network]]:
    near, far = topology.hosts
    yield near, far, SUBNETS[1]
    yield far, near, SUBNETS[0]


@dataclass(frozen=True)
class Loden:
    """loden's forwarder on both hosts, with these words on its command line."""

    options: tuple[str, ...] = ("--no-tunnel-gso",)
    tunnel_gso: bool = False
    """Superpackets must leave whole."""
    far_routes: int = 0
    """So many routes on the near host, all of FAR_NETWORK, lead to the far one."""

    def __call__(self, topology: Topology, directory: Path) -> dict[str, Any]:
        # Short names: the address of a Unix socket has at most 108 bytes.
        directories = [directory / f"host{number}" for number in range(len(topology.hosts))]
        started = list(map(self._start, topology.hosts, directories))
        offloads = {}
        for number, process in enumerate(started):
            with connect_forwarder(topology.hosts[number], process, directories[number]) as client:
                offloads = self._set_up(topology, number, client)
        return {"loden": {"command line": " ".join(self.options), **offloads}}

    def _start(self, host: Host, run_dir: Path) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "forwarder", "--run-dir", str(run_dir), *self.options]
        with run_dir.with_suffix(".log").open("wb") as log:
            return host.popen(argv, stdout=log, stderr=subprocess.STDOUT, cwd=PACKAGES_DIR)

    def _set_up(self, topology: Topology, number: int, client: ForwarderClient) -> dict[str, str]:
        host, other = topology.hosts[number], topology.hosts[1 - number]
        configured = client.configure(
            TunnelConfig(device=DEVICE, mac=MACS[number], addresses=(host.address,))
        )
        own, far = SUBNETS[number], SUBNETS[1 - number]
        vtep = RemoteVtep(other.address, MACS[1 - number], FLANNEL_VNI, FLANNEL_PORT)
        routes: dict[Prefix, NextHop] = {Prefix.of(own): Local(), Prefix.of(far): vtep}
        host.ip(
            f"address add {own.network_address}/32 dev {DEVICE}",
            f"link set {DEVICE} mtu {MTU_BYTES} up txqueuelen 5000",
            f"route add {NETWORK} dev {DEVICE}",
        )
        if self.far_routes and number == 0:
            host.ip(f"route add {FAR_NETWORK} dev {DEVICE}")
            routes |= dict.fromkeys(split_network(FAR_NETWORK, self.far_routes), vtep)
        elif self.far_routes:
            (pod,) = host.pods
            host.ip(f"route add {FAR_NETWORK} via {pod.address}")
            pod.ip(f"route add local {FAR_NETWORK} dev lo")
            routes[Prefix.of(FAR_NETWORK)] = Local()
        write_routes(client, MACS[number], routes)
        if self.tunnel_gso:
            self._open_tunnel_gso(host, other, configured["tap"], own.network_address, client)
        return {str(name): str(state) for name, state in client.stats()["offloads"].items()}

    def _open_tunnel_gso(
        self,
        host: Host,
        other: Host,
        tap: str | None,
        address: IPv4Address,
        client: ForwarderClient,
    ) -> None:
        if tap is None:
            raise NotHere("this kernel takes no tunnel superpackets (Linux 6.17 does)")
        with host.entered():
            set_up_tap(tap, address)
        state = client.try_tunnel_gso(UNDERLAY_DEVICE, other.address)
        if state != "on":
            raise NotHere(f"tunnel GSO stays off: {state}")


def connect_forwarder(
    host: Host, process: subprocess.Popen[bytes], run_dir: Path
) -> ForwarderClient:
    """The first request is answered when it has compiled.  Raises NodeFailed."""

    def connect() -> ForwarderClient | None:
        try:
            return ForwarderClient(run_dir, START_S)
        except ForwarderError as error:
            if error.retryable:
                return None
            raise

    name = f"the forwarder on {host.name}"
    return wait_for(connect, process, name, run_dir.with_suffix(".log"), START_S)


def write_routes(client: ForwarderClient, mac: bytes, routes: dict[Prefix, NextHop]) -> None:
    """Fills a fresh FIB, as control does, and has the workers use it."""
    shared = client.new_fib()
    FibWriter(shared.memory, mac, shared.counters.all_past, shm.order_writes).apply(routes)
    client.activate()


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
