"""Two pods on two hosts, and the overlay between them: where most measures are taken.

    pod ── docker0 ── host0 ──(contender)── host1 ── docker0 ── pod

The topology is the same for all contenders, the pods' MTU too.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from perf.agent_client import AgentClient
from perf.place import End
from perf.topology import UNDERLAY_DEVICE, Host, Topology
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

    near: End
    far: End
    directory: Path
    hosts: list[Host] = field(default_factory=list)
    """Those of the pods; none if they are machines that were there before."""
    facts: dict[str, Any] = field(default_factory=dict)
    started_agents: list[AgentClient] = field(default_factory=list)
    """Near and far, once somebody has asked for them."""

    def agents(self) -> tuple[AgentClient, AgentClient]:
        """The processes in the pods, near and far; they start when first asked for."""
        if not self.started_agents:
            self.started_agents += [
                AgentClient(self.near, self.directory / "near.log"),
                AgentClient(self.far, self.directory / "far.log"),
            ]
            for agent in self.started_agents:
                agent.wait_until_ready()
        return self.started_agents[0], self.started_agents[1]

    def close(self) -> None:
        for agent in self.started_agents:
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
        facts |= {"pod MTU": MTU_BYTES, "offloads": offloads_of(topology.hosts[0])}
        for source, target in (pods, reversed(pods)):
            if ping(source, target.address, count=3).received == 0:
                raise MeasurementError(f"no ping gets through to {target.address}")
        pair = Pair(pods[0], pods[1], directory, topology.hosts, facts)
        leaving.callback(pair.close)
        yield pair


def offloads_of(host: Host) -> dict[str, bool]:
    """Of the underlay's interface."""
    shown = host.run(["ethtool", "--json", "-k", UNDERLAY_DEVICE]).stdout
    (features,) = json.loads(shown)
    return {name: features[name]["active"] for name in RECORDED_OFFLOADS if name in features}


class Ladder:
    """A site with a pair for each x of a curve.  A pair is built when it is first asked for."""

    def __init__(self, build: Callable[[int], AbstractContextManager[Pair]]) -> None:
        self.facts: dict[str, Any] = {}
        self._build = build
        self._pairs: dict[int, Pair] = {}
        self._leaving = contextlib.ExitStack()

    def __getitem__(self, x: int) -> Pair:
        if x not in self._pairs:
            self._pairs[x] = self._leaving.enter_context(self._build(x))
            self.facts[str(x)] = self._pairs[x].facts
        return self._pairs[x]

    def __enter__(self) -> Ladder:
        return self

    def __exit__(self, *error: object) -> None:
        self._leaving.close()
