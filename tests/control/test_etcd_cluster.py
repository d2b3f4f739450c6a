"""A lease and a watch on a cluster of three real members, and what happens to such clusters.

The outage of a whole cluster lasts LODEN_TEST_OUTAGE_S seconds (3 unless set; 60 is a real one).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from control.acquire import acquire
from control.etcd import EtcdClient
from control.etcd_config import EtcdConfig
from control.etcd_types import EtcdError, EtcdRefusedError, EtcdUnavailableError
from control.lease_keeper import LeaseKeeper, LeaseState
from control.watch import Phase
from tests.control.conftest import wait_for
from tests.control.etcd_cluster import Certificates, EtcdCluster, Member
from tests.control.following import Follower
from tests.control.nodes import CONFIG, held_by, node, put_lease
from tests.control.silent_port import CountingPort

pytestmark = pytest.mark.etcd

PREFIX = "/test/network"
OUTAGE_S = float(os.environ.get("LODEN_TEST_OUTAGE_S", "3"))
ELECTION_S = 15.0
"""An election takes a second or two, on a machine that is busy with other things more."""

Connect = Callable[..., EtcdClient]


@pytest.fixture(scope="module")
def three_members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(tmp_path_factory.mktemp("cluster"))
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(three_members: EtcdCluster) -> Iterator[EtcdCluster]:
    """All members are up; those harmed are brought back afterwards."""
    yield three_members
    for member in three_members.members:
        if member.pid is not None:
            member.resume()
    three_members.start()


@pytest.fixture
def connect(prefix: str) -> Iterator[Connect]:
    """Makes clients of members in a fixed order, and closes them after the test."""
    clients: list[EtcdClient] = []

    def client_of(*members: Member, **fields: str) -> EtcdClient:
        urls = tuple(member.url for member in members)
        config = EtcdConfig(urls, prefix, request_timeout_s=2.0, **fields)
        clients.append(EtcdClient(config, shuffle=lambda endpoints: None))
        return clients[-1]

    yield client_of
    for client in clients:
        client.close()


@pytest.fixture
def follow() -> Iterator[Callable[[EtcdClient], Follower]]:
    followers: list[Follower] = []

    def start(client: EtcdClient) -> Follower:
        followers.append(Follower(client))
        followers[-1].wait_in_sync()
        return followers[-1]

    yield start
    for follower in followers:
        follower.watch.stop()


Follow = Callable[[EtcdClient], Follower]


def in_order(cluster: EtcdCluster, first: Member) -> list[Member]:
    return [first, *(member for member in cluster.members if member is not first)]


def write_until_it_works(client: EtcdClient, name: str, timeout_s: float = ELECTION_S) -> float:
    """Seconds until a lease could be put."""
    begun = time.monotonic()

    def put() -> bool:
        try:
            put_lease(client, name, node(1))
        except EtcdError:
            return False
        return True

    wait_for(put, timeout_s)
    return time.monotonic() - begun


def test_one_member_killed_costs_neither_writes_nor_changes(
    cluster: EtcdCluster, connect: Connect, follow: Follow
) -> None:
    leader = cluster.leader()
    killed = next(member for member in cluster.members if member is not leader)
    members = in_order(cluster, killed)
    client, writer = connect(*members), connect(*members)
    key = put_lease(writer, "10.7.1.0-24", node(1))
    follower = follow(client)
    killed.kill()
    put_lease(writer, "10.7.1.0-24", node(2))
    wait_for(lambda: follower.values[key] == node(2).to_json().encode(), ELECTION_S)
    assert follower.watch.status().listings == 1, "followed on, without a new list"


def test_leader_killed_and_writes_are_back_within_seconds(
    cluster: EtcdCluster, connect: Connect, follow: Follow
) -> None:
    leader = cluster.leader()
    members = in_order(cluster, leader)
    client, writer = connect(*members), connect(*members)
    keeper = LeaseKeeper(client, acquire(client, CONFIG, node(9)))
    follower = follow(client)
    leader.kill()
    took_s = write_until_it_works(writer, "10.7.1.0-24")
    print(f"writes are back after {took_s:.1f} s")
    wait_for(lambda: any(key.endswith("10.7.1.0-24") for key in follower.values), ELECTION_S)
    wait_for(lambda: keeper.run_once() > 10, ELECTION_S)
    assert keeper.status().state is LeaseState.HELD
    assert keeper.status().error is None


def test_watch_notices_that_its_member_hangs_and_goes_to_another(
    cluster: EtcdCluster, connect: Connect, follow: Follow
) -> None:
    leader = cluster.leader()
    hung = next(member for member in cluster.members if member is not leader)
    client = connect(*in_order(cluster, hung))
    follower = follow(client)
    hung.suspend()
    writer = connect(leader)
    key = put_lease(writer, "10.7.1.0-24", node(1))
    wait_for(lambda: key in follower.values, 25)
    assert follower.phase is Phase.IN_SYNC
    assert client.status().endpoint != hung.url


def test_cluster_killed_and_back(cluster: EtcdCluster, connect: Connect, follow: Follow) -> None:
    client, writer = connect(*cluster.members), connect(*cluster.members)
    key = put_lease(writer, "10.7.1.0-24", node(1))
    keeper = LeaseKeeper(client, acquire(client, CONFIG, node(9)))
    follower = follow(client)
    before = dict(follower.values)
    cluster.kill()
    wait_for(lambda: follower.phase is Phase.DISCONNECTED)
    down_since = time.monotonic()
    keeper.run_once()
    wait_for(lambda: time.monotonic() - down_since > OUTAGE_S, OUTAGE_S + 5)
    assert follower.values == before, "silence is no deletion"
    assert keeper.status().state is LeaseState.HELD
    cluster.start()
    write_until_it_works(writer, "10.7.1.0-24")
    put_lease(writer, "10.7.1.0-24", node(2))
    wait_for(lambda: follower.values[key] == node(2).to_json().encode(), ELECTION_S)
    wait_for(lambda: keeper.run_once() > 10, ELECTION_S)
    assert held_by(client, keeper.lease) == node(9)
    assert follower.watch.status().listings == 1, "followed on, without a new list"


def test_member_cut_off_from_its_cluster_is_left(
    cluster: EtcdCluster, connect: Connect, follow: Follow
) -> None:
    """It has no leader, but serves what it has: its watch must not be believed to be alive."""
    cut_off, *others = in_order(cluster, cluster.members[0])
    client = connect(cut_off)
    follower = follow(client)
    for member in others:
        member.suspend()
    wait_for(lambda: follower.phase is Phase.DISCONNECTED, 20)
    assert "leader" in (follower.watch.status().error or "")
    for member in others:
        member.resume()
    follower.wait_in_sync(30)


def test_requests_are_few_while_no_member_answers(
    connect: Connect, cluster: EtcdCluster, tmp_path: Path, prefix: str
) -> None:
    """Counted where they arrive: at a port that hangs up on whoever connects."""
    with CountingPort() as port:
        urls = tuple(port.url for _ in range(3))
        client = EtcdClient(EtcdConfig(urls, prefix, request_timeout_s=2.0))
        lease = acquire(connect(*cluster.members), CONFIG, node(1))
        keeper = LeaseKeeper(client, lease)
        follower = Follower(client)
        keeper.start(lambda lost: None)
        begun = time.monotonic()
        wait_for(lambda: time.monotonic() - begun > 8)
        per_second = port.connections / (time.monotonic() - begun)
        follower.watch.stop()
        client.close()
        keeper.stop()
    print(f"{per_second:.1f} connections a second")
    # Two threads, three endpoints each, at most twice a second at first and each 2.5 s later.
    assert 0.5 < per_second < 8


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("tls") / "pem")


@pytest.fixture
def secure(
    request: pytest.FixtureRequest, tmp_path: Path, certificates: Certificates
) -> Iterator[Member]:
    """One member that speaks TLS; parametrized: whether it wants clients' certificates."""
    server = EtcdCluster(tmp_path, 1, certificates, wants_client_certificate=request.param)
    server.start()
    yield server.members[0]
    server.stop()


@pytest.mark.parametrize("secure", [False], indirect=True)
def test_tls_with_an_authority_alone(
    secure: Member, connect: Connect, follow: Follow, certificates: Certificates
) -> None:
    client = connect(secure, cafile=certificates.cafile)
    follower = follow(client)
    key = put_lease(client, "10.7.1.0-24", node(1))
    wait_for(lambda: key in follower.values)
    stranger = connect(secure)  # trusts the system's authorities only
    with pytest.raises(EtcdUnavailableError, match="no etcd answers at https://"):
        stranger.get(key)


@pytest.mark.parametrize("secure", [True], indirect=True)
def test_tls_with_client_certificates(
    secure: Member, connect: Connect, follow: Follow, certificates: Certificates
) -> None:
    certfile, keyfile = certificates.client
    client = connect(secure, cafile=certificates.cafile, certfile=certfile, keyfile=keyfile)
    follower = follow(client)
    key = put_lease(client, "10.7.1.0-24", node(1))
    wait_for(lambda: key in follower.values)
    nobody = connect(secure, cafile=certificates.cafile)
    with pytest.raises(EtcdUnavailableError):
        nobody.get(key)


def test_tokens_that_expire_interrupt_nothing(
    tmp_path: Path, connect: Connect, follow: Follow
) -> None:
    server = EtcdCluster(tmp_path, 1, options=["--auth-token-ttl=1"])
    server.start()
    (member,) = server.members
    try:
        member.enable_auth("root", "right")
        client = connect(member, username="root", password="right")
        keeper = LeaseKeeper(client, acquire(client, CONFIG, node(9)))
        follower = follow(client)
        begun = time.monotonic()
        wait_for(lambda: time.monotonic() - begun > 2.5)  # the token's time is over
        assert keeper.run_once() > 10
        key = put_lease(client, "10.7.1.0-24", node(1))
        wait_for(lambda: key in follower.values)
        assert client.compare_and_delete(key, held_at(client, key))
        wait_for(lambda: key not in follower.values)
        wrong = connect(member, username="root", password="wrong")
        with pytest.raises(EtcdRefusedError, match="authentication failed"):
            wrong.get(key)
    finally:
        server.stop()


def held_at(client: EtcdClient, key: str) -> int:
    entry = client.get(key)
    assert entry is not None
    return entry.mod_revision
