"""loden as a contender: a forwarder on both hosts, driven over its api, without etcd.

What is measured is the data path.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from control.superpackets import set_up_tap
from forwarder import shm
from forwarder.api import ForwarderClient, ForwarderError
from forwarder.config import TunnelConfig
from forwarder.fib.routes import Local, NextHop, Prefix, RemoteVtep
from forwarder.fib.writer import FibWriter
from perf.far_network import FAR_NETWORK, split_network, take_far_network
from perf.measure import NotHere
from perf.nodes import PACKAGES_DIR, wait_for
from perf.pair import MTU_BYTES, SUBNETS
from perf.peers import FLANNEL_PORT, FLANNEL_VNI
from perf.topology import UNDERLAY_DEVICE, Host, Topology

NETWORK = IPv4Network("10.7.0.0/16")
MACS = (bytes.fromhex("020000000001"), bytes.fromhex("020000000002"))
DEVICE = "loden0"
START_S = 240.0
"""The first start of all compiles the data path."""


@dataclass(frozen=True)
class Loden:
    """The forwarder with these words on its command line."""

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
            TunnelConfig(
                device=DEVICE, mac=MACS[number], addresses=(host.address,), mtu_bytes=MTU_BYTES
            )
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
            take_far_network(host)
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
