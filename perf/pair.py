"""Two pods on two hosts, and the overlay between them: where most measures are taken.

    pod ── docker0 ── host0 ──(contender)── host1 ── docker0 ── pod

The topology is the same for all contenders, the pods' MTU too.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from perf.agent import AgentClient, connect_agent, start_agent
from perf.topology import UNDERLAY_DEVICE, Host, Pod, Topology
from perf.traffic import MeasurementError, ping

SUBNETS = (IPv4Network("10.7.1.0/24"), IPv4Network("10.7.2.0/24"))
"""Of the pods, near and far."""
MTU_BYTES = 1440
"""Of all pods: what the widest headers among the contenders leave of 1500 bytes.  IPv4 and UDP
take 28, WireGuard and nebula 32 each; VXLAN would leave 1450."""
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
    hosts: list[Host]
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
        pair = Pair(pods[0], pods[1], topology.hosts, directory, facts)
        leaving.callback(pair.close)
        yield pair


def offloads_of(host: Host) -> dict[str, bool]:
    """Of the underlay's interface."""
    shown = host.run(["ethtool", "--json", "-k", UNDERLAY_DEVICE]).stdout
    (features,) = json.loads(shown)
    return {name: features[name]["active"] for name in RECORDED_OFFLOADS if name in features}
