"""Keeping a lease, against real etcd."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from control.acquire import acquire
from control.etcd import EtcdClient
from control.etcd_types import EtcdError
from control.lease import LeaseAttrs, NodeSubnet
from control.lease_keeper import LeaseKeeper, LeaseLostError, LeaseState
from tests.control.conftest import EtcdServer, wait_for
from tests.control.nodes import CONFIG, held_by, node, put_lease

pytestmark = pytest.mark.etcd

SUBNET = NodeSubnet(IPv4Network("10.7.29.0/24"))
ELSEWHERE = IPv4Address("198.51.100.1")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def keeper(client: EtcdClient) -> LeaseKeeper:
    return LeaseKeeper(client, acquire(client, CONFIG, node(1), SUBNET), clock=Clock())


def revision(client: EtcdClient) -> int:
    return client.list_prefix(client.config.prefix).revision


def test_a_round_renews_without_a_put(client: EtcdClient) -> None:
    lease = acquire(client, CONFIG, node(1), ttl_s=60)
    keeper = LeaseKeeper(client, lease, ttl_s=60, renew_margin_s=10)
    before = revision(client)
    wait_for(lambda: client.time_to_live(lease.lease_id).remaining_s < 59)
    due_s = keeper.run_once()
    assert 18 <= due_s <= 20
    assert client.time_to_live(lease.lease_id).remaining_s >= 59
    assert revision(client) == before


@pytest.mark.parametrize(
    ("ttl_s", "margin_s", "longest_s"),
    [(24 * 3600, 3600, 8 * 3600), (3 * 3600, 2.5 * 3600, 1800), (3600, 3600, 360)],
)
def test_renewal_is_due_before_the_margin_but_never_at_once(
    client: EtcdClient, ttl_s: int, margin_s: float, longest_s: float
) -> None:
    keeper = LeaseKeeper(client, acquire(client, CONFIG, node(1), ttl_s=ttl_s), ttl_s, margin_s)
    assert 0.9 * longest_s <= keeper.run_once() <= longest_s


def test_a_key_deleted_by_an_operator_is_taken_again(
    client: EtcdClient, keeper: LeaseKeeper
) -> None:
    client.delete(keeper.lease.key)
    keeper.run_once()
    assert keeper.status().state is LeaseState.HELD
    entry = client.get(keeper.lease.key)
    assert entry is not None
    assert entry.lease_id == keeper.lease.lease_id
    assert keeper.lease.subnet == SUBNET


def test_an_ended_etcd_lease_is_replaced(client: EtcdClient, keeper: LeaseKeeper) -> None:
    ended = keeper.lease.lease_id
    client.revoke_lease(ended)
    keeper.run_once()
    assert held_by(client, keeper.lease) == node(1)
    assert keeper.lease.lease_id != ended
    assert keeper.status().expires_in_s == 24 * 3600


def test_a_subnet_taken_by_another_node_is_lost(client: EtcdClient, keeper: LeaseKeeper) -> None:
    client.revoke_lease(keeper.lease.lease_id)
    put_lease(client, SUBNET.name, node(2), client.grant_lease(60))
    with pytest.raises(LeaseLostError, match=r"10\.7\.29\.0/24 is held.* 192\.0\.2\.2") as caught:
        keeper.run_once()
    assert not caught.value.retryable
    assert keeper.status().state is LeaseState.LOST
    assert held_by(client, keeper.lease) == node(2)


def test_a_key_overwritten_by_another_node_is_lost(client: EtcdClient, keeper: LeaseKeeper) -> None:
    put_lease(client, SUBNET.name, node(2), keeper.lease.lease_id)
    with pytest.raises(LeaseLostError):
        keeper.run_once()


def test_another_daemon_with_our_address_is_not_fought(
    client: EtcdClient, keeper: LeaseKeeper
) -> None:
    clone = dataclasses.replace(node(1), vtep=node(2).vtep)
    put_lease(client, SUBNET.name, clone, client.grant_lease(60))
    with pytest.raises(LeaseLostError, match=str(clone.vtep and clone.vtep.mac)):
        keeper.run_once()
    assert held_by(client, keeper.lease) == clone


def test_an_overlapping_subnet_of_another_length_is_lost(
    client: EtcdClient, keeper: LeaseKeeper
) -> None:
    client.delete(keeper.lease.key)
    put_lease(client, "10.7.28.0-23", node(2))
    with pytest.raises(LeaseLostError, match=r"10\.7\.28\.0-23"):
        keeper.run_once()


def test_a_new_address_is_published(client: EtcdClient, keeper: LeaseKeeper) -> None:
    moved = dataclasses.replace(node(1), public_ip=ELSEWHERE)
    keeper.publish(moved)
    keeper.run_once()
    entry = client.get(keeper.lease.key)
    assert entry is not None
    assert entry.value.decode() == moved.to_json()
    assert entry.lease_id == keeper.lease.lease_id
    assert keeper.lease.attrs == moved


def test_what_an_operator_damaged_is_mended(client: EtcdClient, keeper: LeaseKeeper) -> None:
    put_lease(
        client,
        SUBNET.name,
        LeaseAttrs(node(1).public_ip, backend_type=""),
        client.grant_lease(60),
    )
    keeper.run_once()
    entry = client.get(keeper.lease.key)
    assert entry is not None
    assert entry.value.decode() == node(1).to_json()
    assert entry.lease_id == keeper.lease.lease_id


def test_a_key_made_a_reservation_stays_without_a_lease(
    client: EtcdClient, keeper: LeaseKeeper
) -> None:
    put_lease(client, SUBNET.name, node(1))
    keeper.run_once()
    assert keeper.lease.is_reservation
    keeper.publish(dataclasses.replace(node(1), public_ip=ELSEWHERE))
    keeper.run_once()
    entry = client.get(keeper.lease.key)
    assert entry is not None
    assert entry.lease_id == 0
    assert keeper.status().expires_in_s is None
    assert keeper.status().state is LeaseState.HELD


def test_without_etcd_the_lease_is_believed_and_then_unconfirmed(
    own_etcd: EtcdServer, connect: Callable[..., EtcdClient]
) -> None:
    client, clock = connect(own_etcd), Clock()
    keeper = LeaseKeeper(client, acquire(client, CONFIG, node(1)), clock=clock)
    own_etcd.kill()
    clock.now_s += 3600
    assert keeper.run_once() <= 5.0
    status = keeper.status()
    assert (status.state, status.expires_in_s) == (LeaseState.HELD, 23 * 3600)
    assert "no etcd answers" in (status.error or "")
    clock.now_s += 23 * 3600
    assert keeper.status().state is LeaseState.UNCONFIRMED
    own_etcd.restart()
    keeper.run_once()
    assert keeper.status().state is LeaseState.HELD
    assert keeper.status().error is None


def test_a_cluster_that_came_back_empty_gets_the_lease_again(
    own_etcd: EtcdServer, connect: Callable[..., EtcdClient]
) -> None:
    client = connect(own_etcd)
    keeper = LeaseKeeper(client, acquire(client, CONFIG, node(1), SUBNET))
    own_etcd.restart_empty()
    keeper.run_once()
    assert held_by(client, keeper.lease) == node(1)
    assert keeper.lease.subnet == SUBNET


def test_what_cannot_be_mended_is_said_once(
    client: EtcdClient,
    keeper: LeaseKeeper,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_space(ttl_s: int) -> int:
        raise EtcdError("etcdserver: mvcc: database space exceeded")

    monkeypatch.setattr(client, "grant_lease", no_space)
    client.delete(keeper.lease.key)
    for _ in range(5):
        keeper.run_once()
    assert [record.getMessage() for record in caplog.records] == [
        f"{keeper.lease.key} was deleted",
        f"the lease {keeper.lease.key} is not renewed: etcdserver: mvcc: database space exceeded",
    ]


@pytest.fixture
def running(client: EtcdClient) -> Iterator[tuple[LeaseKeeper, list[LeaseLostError]]]:
    keeper = LeaseKeeper(client, acquire(client, CONFIG, node(1), SUBNET))
    lost: list[LeaseLostError] = []
    keeper.start(lost.append)
    yield keeper, lost
    keeper.stop()


Running = tuple[LeaseKeeper, list[LeaseLostError]]


def test_the_thread_checks_at_once_when_asked(client: EtcdClient, running: Running) -> None:
    keeper, lost = running
    client.delete(keeper.lease.key)
    keeper.check()
    wait_for(lambda: held_by(client, keeper.lease) == node(1))
    assert lost == []


def test_the_thread_publishes_at_once(client: EtcdClient, running: Running) -> None:
    keeper, _ = running
    moved = dataclasses.replace(node(1), public_ip=ELSEWHERE)
    keeper.publish(moved)
    wait_for(lambda: held_by(client, keeper.lease) == moved)


def test_the_thread_reports_the_loss_and_ends(client: EtcdClient, running: Running) -> None:
    keeper, lost = running
    put_lease(client, SUBNET.name, node(2))
    keeper.check()
    wait_for(lambda: lost)
    assert keeper.status().state is LeaseState.LOST


def test_stopping_is_prompt_and_keeps_the_lease(client: EtcdClient, running: Running) -> None:
    keeper, _ = running
    begun = time.monotonic()
    keeper.stop()
    assert time.monotonic() - begun < 1
    assert held_by(client, keeper.lease) == node(1)


def test_closing_the_client_ends_the_thread(
    shared_etcd: EtcdServer, connect: Callable[..., EtcdClient], prefix: str
) -> None:
    client = connect(shared_etcd, prefix)
    keeper = LeaseKeeper(client, acquire(client, CONFIG, node(1)))
    lost: list[LeaseLostError] = []
    keeper.start(lost.append)
    client.close()
    keeper.stop()
    assert lost == []
