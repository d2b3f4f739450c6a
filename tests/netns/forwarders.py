"""Forwarders without a control process: two hosts, configured over the api.

    PREFIX-host0 eth0 ──┐
    PREFIX-host1 eth0 ──┼── wire          host2 knows nothing of the overlay: the stranger
    PREFIX-host2 eth0 ──┘

Host n has the pods 10.7.n.0/24 and fd07:n::/64.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from forwarder.api import ForwarderClient, ForwarderError
from forwarder.config import TunnelConfig
from forwarder.fib.routes import IPAddress, Local, NextHop, Prefix, RemoteVtep
from perf.nodes import PACKAGES_DIR
from perf.topology import Host, Pod, Topology
from perf.traffic import ping

DEVICE = "loden0"
MTU_BYTES = 1450
VNI = 1
PORT = 8472
START_S = 240.0
"""The very first start of all compiles the data path."""


def subnets_of(number: int) -> tuple[IPv4Network, IPv6Network]:
    return IPv4Network(f"10.7.{number}.0/24"), IPv6Network(f"fd07:{number:x}::/64")


class Forwarder:
    """`loden forwarder` on a host, its device and the routes into it."""

    def __init__(self, host: Host, number: int, directory: Path, ipv6_underlay: bool) -> None:
        self.host = host
        self.number = number
        self.mac = b"\x02\0\0\0\0" + bytes([number])
        self.subnets = subnets_of(number)
        underlay = host.address_ipv6 if ipv6_underlay else host.address
        assert underlay is not None
        self.underlay: IPAddress = underlay
        self.run_dir = directory / f"host{number}"
        self.run_dir.mkdir()
        self.log_path = self.run_dir / "log"
        self.pod: Pod = host.add_pod(*self.subnets, mtu_bytes=MTU_BYTES)

    def start(self, *options: str, module: str = "forwarder") -> None:
        """Returns when its socket answers; the first start of all compiles.

        `module`: another one that runs the forwarder, with something changed.
        """
        argv = [sys.executable, "-m", module, "--run-dir", str(self.run_dir), *options]
        with self.log_path.open("ab") as output:
            self.process = self.host.popen(
                argv, stdout=output, stderr=subprocess.STDOUT, cwd=PACKAGES_DIR
            )
        deadline = time.monotonic() + START_S
        while not (client := self._connect()):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)
        self.client = client

    def _connect(self) -> ForwarderClient | None:
        try:
            client = ForwarderClient(self.run_dir, timeout_s=START_S)
            client.hello()
        except ForwarderError:
            return None
        return client

    def configure(self, routes: dict[Prefix, NextHop]) -> None:
        """Device, addresses, routes: what control does on a whole node."""
        self.client.configure(
            TunnelConfig(
                device=DEVICE,
                vni=VNI,
                port=PORT,
                mtu_bytes=MTU_BYTES,
                mac=self.mac,
                addresses=(self.underlay,),
            )
        )
        own: dict[Prefix, NextHop] = {Prefix.of(subnet): Local() for subnet in self.subnets}
        self.client.set_routes({**own, **routes}.items())
        ipv4, ipv6 = (subnet.network_address for subnet in self.subnets)
        self.host.ip(
            f"address add {ipv4}/32 dev {DEVICE}",
            f"link set {DEVICE} mtu {MTU_BYTES} txqueuelen 1000 up",
            f"address add {ipv6}/128 dev {DEVICE} nodad",
            f"route add 10.7.0.0/16 dev {DEVICE}",
            f"route add fd07::/16 dev {DEVICE}",
        )

    def as_next_hop(self) -> RemoteVtep:
        return RemoteVtep(self.underlay, self.mac, VNI, PORT)

    def drops(self) -> dict[str, int]:
        """Those that happened."""
        return {name: count for name, count in self.client.stats()["drops"].items() if count}

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def stop(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)


class Pair:
    """Two forwarders that know each other, and perhaps a stranger on the same wire."""

    def __init__(self, topology: Topology, directory: Path, ipv6_underlay: bool) -> None:
        self.hosts = topology.hosts
        self.ends = [
            Forwarder(host, number, directory, ipv6_underlay)
            for number, host in enumerate(topology.hosts[:2])
        ]

    def start(self, *options: str, module: str = "forwarder") -> None:
        for end in self.ends:
            end.start(*options, module=module)
        for end, other in (self.ends, self.ends[::-1]):
            hop = other.as_next_hop()
            end.configure({Prefix.of(subnet): hop for subnet in other.subnets})
        pods = [end.pod for end in self.ends]
        assert ping(pods[0], pods[1].address, count=1, timeout_s=5).received == 1, self.logs()

    def logs(self) -> str:
        return "\n".join(f"-- {end.host.name}\n{end.log()}" for end in self.ends)

    def address_of(self, number: int, version: int) -> IPAddress:
        """Of the pod at one end."""
        addresses = self.ends[number].pod.addresses
        return next(address for address in addresses if address.version == version)


@contextlib.contextmanager
def pair_of_forwarders(
    directory: Path,
    options: Sequence[str] = (),
    *,
    hosts: int = 2,
    plain_nic: bool = False,
    ipv6_underlay: bool = False,
    module: str = "forwarder",
) -> Iterator[Pair]:
    with Topology(hosts, ipv6=True, plain_nic=plain_nic) as topology:
        pair = Pair(topology, directory, ipv6_underlay)
        pair.start(*options, module=module)
        yield pair
        for end in pair.ends:
            end.client.close()
