"""Whole nodes on an etcd of three members, which are killed or hang, or ask who is there.

host0 ─ node 0 ─┐
host1 ─ node 1 ─┤ wire
host2 ──────────┘
  ├─ member 0    each serves the nodes at the host's underlay address, on a port of its own,
  ├─ member 1    and finds its peers on loopback
  └─ member 2
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.embedded_etcd import LOOPBACK
from perf.nodes import init_network
from perf.topology import Host, Topology
from tests.control.etcd_cluster import Certificates, Member
from tests.netns.nodes import NETWORK, PREFIX, Cluster, LodenNode, SteadyPing, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

GONE = "10.5.99.0/24"
"""The subnet of a node that is not there: followed when it comes into etcd and when it goes."""
GONE_KEY = f"{PREFIX}/subnets/{GONE.replace('/', '-')}"
GONE_LEASE = {
    "PublicIP": "192.168.77.99",
    "BackendType": "vxlan",
    "BackendData": {"VNI": 1, "VtepMAC": "0e:00:00:00:00:99"},
}
FOLLOWED_S = 15.0
"""Bound for an election and what comes after it, on a machine that does other things too."""
HANG_NOTICED_S = 30.0
"""A connection on which nobody answers is given up after 15 s."""
LEASE_TTL_S = 30
RENEWAL_S = LEASE_TTL_S / 10
"""How often a lease so short is renewed and its key is read."""
TOKEN_TTL_S = 1
"""It ends so long after its last use, or a second later: between two renewals."""


class HostMember(Member):
    """One etcd of the cluster, in a host's namespace."""

    def __init__(self, host: Host, directory: Path, number: int, *more: str) -> None:
        super().__init__(directory, f"member{number}", *more)
        self._host = host
        # Nobody else is in the namespace: the ports can be chosen.
        self._wanted_ports = (10_000 + number, 10_010 + number)
        self._metrics_port = 10_020 + number
        self.client_flags: tuple[str, ...] = ()
        """What etcdctl must be given to be let in."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self._host.address}:{self._wanted_ports[0]}"

    def start(self, timeout_s: float = FOLLOWED_S) -> str:
        with self._host.entered():
            return super().start(timeout_s)

    def answers(self) -> bool:
        with self._host.entered():
            return super().answers()

    def leads(self) -> bool:
        with (
            self._host.entered(),
            contextlib.closing(
                http.client.HTTPConnection(LOOPBACK, self._metrics_port, timeout=5)
            ) as connection,
        ):
            connection.request("GET", "/metrics")
            return b"\netcd_server_is_leader 1\n" in connection.getresponse().read()

    def etcdctl(self, *arguments: str) -> None:
        self.ask(*arguments)

    def ask(self, *arguments: str) -> str:
        """What etcdctl says. Raises CommandError."""
        argv = ["etcdctl", f"--endpoints={self.url}", *self.client_flags, *arguments]
        return self._host.run(["env", "ETCDCTL_API=3", *argv]).stdout

    def refused_tokens(self) -> int:
        return self.log_path.read_text().count("invalid auth token")

    def is_used_by(self, node: LodenNode) -> bool:
        """Whether the node is connected to it."""
        to_it = f"dst {self._host.address} and dport = :{self._wanted_ports[0]}"
        return bool(node.host.run(["ss", "-Htn", "state", "established", to_it]).stdout)


class ThreeMembers:
    """The members and two nodes that know all three."""

    def __init__(self, topology: Topology, directory: Path, *more: str, secure: bool) -> None:
        self.host = topology.hosts[-1]
        self.members = [
            HostMember(self.host, directory / f"member{number}", number, *more)
            for number in range(3)
        ]
        for member in self.members:
            member.scheme = "https" if secure else "http"
            member.initial_cluster = ",".join(f"{m.name}={m.peer_url}" for m in self.members)
        self.urls = ",".join(member.url for member in self.members)
        self.cluster = Cluster(topology, directory, self.urls)
        self.nodes = self.cluster.nodes

    def start_members(self) -> None:
        """All that do not run or hang; returns when all answer."""
        for member in self.members:
            if member.pid is None:
                member.start()
            member.resume()
        for member in self.members:
            wait_for(member.answers, f"{member.name} answers", FOLLOWED_S)

    def stop_members(self) -> None:
        for member in self.members:
            member.stop()

    def start_nodes(self, *flags: str) -> None:
        for node in self.nodes:
            node.start(*flags)
        self.cluster.start(0, 1)

    def leader(self, without: HostMember | None = None) -> HostMember:
        """`without`: the one that is dead or hangs."""
        asked = [member for member in self.members if member is not without]
        return wait_for(
            lambda: next((member for member in asked if member.leads()), None),
            "a member leads",
            FOLLOWED_S,
        )

    @contextlib.contextmanager
    def steady_ping(self) -> Iterator[None]:
        """Between the nodes' pods, all the time; fails if a packet was lost."""
        first, second = self.nodes
        with SteadyPing(first.pod(), second.pod().address) as steady:
            yield
        assert steady.received
        assert steady.lost == 0

    def check_changes_are_followed(self, writer: HostMember, timeout_s: float = FOLLOWED_S) -> None:
        """Told to one member, they are seen by both nodes."""
        writer.ask("put", GONE_KEY, json.dumps(GONE_LEASE))
        for node in self.nodes:
            wait_for(lambda n=node: GONE in n.routes(), "a route comes", timeout_s)  # type: ignore[misc]
        writer.ask("del", GONE_KEY)
        for node in self.nodes:
            wait_for(lambda n=node: GONE not in n.routes(), "a route goes", timeout_s)  # type: ignore[misc]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreeMembers]:
    with Topology(3) as topology:
        three = ThreeMembers(topology, tmp_path_factory.mktemp("members"), secure=False)
        try:
            three.start_members()
            init_network(three.host, three.urls, NETWORK)
            three.start_nodes()
            yield three
        finally:
            three.stop_members()


@pytest.fixture
def three(shared: ThreeMembers) -> Iterator[ThreeMembers]:
    """All members are up; those harmed are brought back."""
    shared.start_members()
    yield shared
    print(shared.cluster.logs())


def test_killed_member_loses_no_packet_and_no_change(three: ThreeMembers) -> None:
    leader = three.leader()
    followers = [member for member in three.members if member is not leader]
    used = [m for m in followers if any(map(m.is_used_by, three.nodes))]
    killed = (used or followers)[0]
    with three.steady_ping():
        killed.kill()
        three.check_changes_are_followed(leader)
        killed.restart()
        wait_for(killed.answers, "the member is back", FOLLOWED_S)
        three.check_changes_are_followed(killed)


def test_killed_leader_loses_no_packet_and_no_change(three: ThreeMembers) -> None:
    killed = three.leader()
    with three.steady_ping():
        killed.kill()
        three.check_changes_are_followed(three.leader(without=killed))
        killed.restart()
        wait_for(killed.answers, "the member is back", FOLLOWED_S)
        three.check_changes_are_followed(killed)


def test_nodes_leave_a_member_that_hangs(three: ThreeMembers) -> None:
    first = three.nodes[0]
    hung = next(member for member in three.members if member.is_used_by(first))
    with three.steady_ping():
        hung.suspend()
        try:
            three.check_changes_are_followed(three.leader(without=hung), HANG_NOTICED_S)
            wait_for(lambda: not hung.is_used_by(first), "the node left it", HANG_NOTICED_S)
        finally:
            hung.resume()
        wait_for(hung.answers, "the member goes on", FOLLOWED_S)
        three.check_changes_are_followed(hung)


def certificates_for(host: Host, directory: Path) -> Certificates:
    """The server's is for the host's underlay address."""
    made = Certificates.make(directory)
    certificate, key = f"{directory}/underlay.pem", f"{directory}/underlay-key.pem"
    sign = ["-x509", "-CA", made.cafile, "-CAkey", f"{directory}/ca-key.pem", "-days", "1"]
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", "/CN=underlay", "-addext", f"subjectAltName=IP:{host.address}"]
    subprocess.run(
        ["openssl", "req", *sign, *new, *name, "-out", certificate, "-keyout", key],
        check=True,
        capture_output=True,
    )
    return Certificates(made.cafile, (certificate, key), made.client)


def test_certificates_passwords_and_tokens_that_expire_interrupt_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLANNELD_ETCD_USERNAME", "root")
    monkeypatch.setenv("FLANNELD_ETCD_PASSWORD", "right")
    with Topology(3) as topology:
        pem = certificates_for(topology.hosts[-1], tmp_path / "pem")
        asked = ("--client-cert-auth", f"--trusted-ca-file={pem.cafile}")
        served = (f"--cert-file={pem.server[0]}", f"--key-file={pem.server[1]}")
        tokens = (f"--auth-token-ttl={TOKEN_TTL_S}",)
        three = ThreeMembers(topology, tmp_path, *asked, *served, *tokens, secure=True)
        try:
            three.start_members()
            demand_certificate_and_password(three, pem)
            certfile, keyfile = pem.client
            flags = ["--etcd-cafile", pem.cafile]
            flags += ["--etcd-certfile", certfile, "--etcd-keyfile", keyfile]
            init_network(three.host, three.urls, NETWORK, *flags)
            three.start_nodes(*flags, "--lease-ttl", str(LEASE_TTL_S))
            check_leases_outlive_tokens(three)
        finally:
            three.stop_members()
            print(three.cluster.logs())


def demand_certificate_and_password(three: ThreeMembers, pem: Certificates) -> None:
    certfile, keyfile = pem.client
    for member in three.members:
        member.client_flags = (f"--cacert={pem.cafile}", f"--cert={certfile}", f"--key={keyfile}")
    three.members[0].enable_auth("root", "right")
    for member in three.members:
        member.client_flags += ("--user=root:right",)


def check_leases_outlive_tokens(three: ThreeMembers) -> None:
    """etcd says in its log which tokens came too late: each renewal's is one."""

    def refused() -> int:
        return sum(member.refused_tokens() for member in three.members)

    with three.steady_ping():
        wait_for(lambda: refused() >= 3 * len(three.nodes), "tokens expire", 10 * RENEWAL_S)
        three.check_changes_are_followed(three.members[0])
        for node in three.nodes:
            lease = node.status()["etcd"]["lease"]
            assert (lease["state"], lease["error"]) == ("held", None)
            assert lease["expires_in_s"] > LEASE_TTL_S - 2 * RENEWAL_S
