"""The watch, through everything that happens to a real etcd."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from control.etcd import EtcdClient
from control.etcd_types import Deletion, Entry, Listing, WatchBatch
from control.watch import Knowledge, Phase, Snapshot
from tests.control.conftest import EtcdServer, wait_for
from tests.control.following import Follower
from tests.control.nodes import node, put_lease

Connect = Callable[..., EtcdClient]
PREFIX = "/test/network"
CONFIG = f"{PREFIX}/config"


Follow = Callable[..., Follower]


@pytest.fixture
def follow() -> Iterator[Follow]:
    followers: list[Follower] = []

    def start(
        client: EtcdClient, relist_interval_s: float = 1800, known: Listing | None = None
    ) -> Follower:
        followers.append(Follower(client, relist_interval_s, known))
        return followers[-1]

    yield start
    for follower in followers:
        follower.watch.stop()


@pytest.mark.etcd
def test_a_snapshot_then_every_change(client: EtcdClient, follow: Follow) -> None:
    key = put_lease(client, "10.7.1.0-24", node(1))
    client.put(f"{client.config.prefix}/config", "{}")
    follower = follow(client)
    follower.wait_in_sync()
    assert [entry.key for entry in follower.snapshots[0].entries] == [
        f"{client.config.prefix}/config",
        key,
    ]
    client.put(f"{client.config.prefix}/config", '{"changed":1}')
    client.put(f"{client.config.prefix}/routes/10.7.1.9-32", node(2).to_json())
    client.put(client.config.prefix + "-other/config", "not ours")
    client.delete(key)
    expected = {
        f"{client.config.prefix}/config": b'{"changed":1}',
        f"{client.config.prefix}/routes/10.7.1.9-32": node(2).to_json().encode(),
    }
    wait_for(lambda: follower.values == expected)
    status = follower.watch.status()
    assert (status.age_s, status.error, status.listings, status.retained) == (0, None, 1, 0)


@pytest.mark.etcd
def test_what_was_missed_while_etcd_was_down_arrives(
    own_etcd: EtcdServer, connect: Connect, follow: Follow
) -> None:
    client, writer = connect(own_etcd), connect(own_etcd)
    writer.put(CONFIG, "1")
    follower = follow(client)
    follower.wait_in_sync()
    own_etcd.kill()
    wait_for(lambda: follower.phase is Phase.DISCONNECTED)
    assert follower.values == {CONFIG: b"1"}
    own_etcd.restart()
    writer.put(CONFIG, "2")
    wait_for(lambda: follower.values == {CONFIG: b"2"}, 15)
    follower.wait_in_sync()
    assert follower.watch.status().listings == 1, "followed on, without a new list"


@pytest.mark.etcd
def test_compaction_while_disconnected_resyncs_from_a_snapshot(
    own_etcd: EtcdServer, connect: Connect, follow: Follow
) -> None:
    client, writer = connect(own_etcd), connect(own_etcd)
    key = put_lease(writer, "10.7.1.0-24", node(1))
    follower = follow(client)
    follower.wait_in_sync()
    own_etcd.kill()
    wait_for(lambda: follower.phase is Phase.DISCONNECTED)
    # The follower cannot reach it on these ports while this is done.
    while_away = EtcdServer(own_etcd.data_dir)
    while_away.start()
    editor = connect(while_away)
    editor.delete(key)
    for n in range(5):
        editor.put(CONFIG, str(n))
    revision = editor.list_prefix(PREFIX).revision
    editor._call(lambda c: c.client.compact(revision, physical=True))
    while_away.stop()

    own_etcd.restart()
    wait_for(lambda: follower.values == {CONFIG: b"4"}, 15)
    follower.wait_in_sync()
    assert follower.watch.status().listings == 2


@pytest.mark.etcd
def test_no_hot_loop_while_etcd_is_down(
    own_etcd: EtcdServer, connect: Connect, follow: Follow
) -> None:
    follower = follow(connect(own_etcd))
    follower.wait_in_sync()
    own_etcd.kill()
    wait_for(lambda: follower.phase is Phase.DISCONNECTED)
    before, threads = follower.watch.status().attempts, threading.active_count()
    begun, cpu_s = time.monotonic(), time.process_time()
    wait_for(lambda: time.monotonic() - begun > 4)
    assert follower.watch.status().attempts - before <= 30
    assert time.process_time() - cpu_s < 2
    assert threading.active_count() <= threads + 2
    status = follower.watch.status()
    assert "no etcd answers" in (status.error or "")
    assert status.age_s is not None
    assert status.age_s >= 4


@pytest.mark.etcd
def test_a_cluster_restored_empty_keeps_routes_until_they_reappear(
    own_etcd: EtcdServer, connect: Connect, follow: Follow
) -> None:
    client, writer = connect(own_etcd), connect(own_etcd)
    keys = [put_lease(writer, f"10.7.{n}.0-24", node(n)) for n in (1, 2)]
    writer.put(CONFIG, "1")
    follower = follow(client)
    follower.wait_in_sync()
    own_etcd.restart_empty()
    wait_for(lambda: len(follower.snapshots) == 2, 15)
    assert sorted(follower.values) == keys
    assert follower.snapshots[1].retained == set(keys)
    assert {entry.mod_revision for entry in follower.snapshots[1].entries} == {0}
    assert follower.watch.status().retained == 2

    follower.wait_in_sync()
    put_lease(writer, "10.7.1.0-24", node(1))
    wait_for(lambda: follower.watch.status().retained == 1)
    put_lease(writer, "10.7.2.0-24", node(3))
    wait_for(lambda: follower.watch.status().retained == 0)
    assert follower.values[keys[1]] == node(3).to_json().encode()


@pytest.mark.etcd
def test_a_cluster_restored_empty_is_believed_when_an_operator_confirms(
    own_etcd: EtcdServer, connect: Connect, follow: Follow
) -> None:
    client, writer = connect(own_etcd), connect(own_etcd)
    put_lease(writer, "10.7.1.0-24", node(1))
    follower = follow(client)
    follower.wait_in_sync()
    own_etcd.restart_empty()
    wait_for(lambda: follower.watch.status().retained == 1, 15)
    follower.watch.confirm_loss()
    wait_for(lambda: follower.values == {})
    assert follower.watch.status().retained == 0


@pytest.mark.etcd
def test_it_lists_again_now_and_then(client: EtcdClient, follow: Follow) -> None:
    follower = follow(client, relist_interval_s=0.2)
    wait_for(lambda: follower.watch.status().listings >= 3)
    assert Phase.DISCONNECTED not in follower.updates


@pytest.mark.etcd
def test_stopping_is_prompt_and_leaves_no_thread(client: EtcdClient) -> None:
    before = threading.active_count()
    follower = Follower(client)
    follower.wait_in_sync()
    begun = time.monotonic()
    follower.watch.stop()
    assert time.monotonic() - begun < 1
    wait_for(lambda: threading.active_count() <= before)


@pytest.mark.etcd
def test_closing_the_client_ends_the_thread(
    shared_etcd: EtcdServer, connect: Connect, prefix: str
) -> None:
    client = connect(shared_etcd, prefix)
    follower = Follower(client)
    follower.wait_in_sync()
    client.close()
    follower.watch.stop()
    assert not follower.watch._thread.is_alive()


def entry(name: str, revision: int) -> Entry:
    return Entry(f"{PREFIX}/{name}", b"x", revision, revision)


def test_following_resumes_after_the_last_event_never_after_the_header() -> None:
    knowledge = Knowledge(PREFIX)
    knowledge.learn_listing(Listing((), 10, 1), loss_confirmed=False)
    assert not knowledge.contradicts(WatchBatch((), 5001, 1))
    knowledge.learn_events((entry("config", 11), Deletion(f"{PREFIX}/config", 12)))
    assert knowledge.revision == 12
    knowledge.learn_events((entry("config", 11),))  # a repetition
    assert knowledge.revision == 12


def test_another_cluster_or_our_past_contradicts() -> None:
    knowledge = Knowledge(PREFIX)
    knowledge.learn_listing(Listing((), 10, 1), loss_confirmed=False)
    assert knowledge.contradicts(WatchBatch((), 10, 2))
    assert knowledge.contradicts(WatchBatch((), 9, 1))


def test_what_vanishes_from_the_same_cluster_is_gone() -> None:
    knowledge = Knowledge(PREFIX)
    knowledge.learn_listing(Listing((entry("subnets/a", 3),), 10, 1), loss_confirmed=False)
    snapshot = knowledge.learn_listing(Listing((), 11, 1), loss_confirmed=False)
    assert snapshot == Snapshot((), 11)


def test_only_leases_and_routes_are_kept_from_a_lost_cluster() -> None:
    knowledge = Knowledge(PREFIX)
    before = (entry("config", 1), entry("routes/b", 2), entry("subnets/a", 3))
    knowledge.learn_listing(Listing(before, 10, 1), loss_confirmed=False)
    snapshot = knowledge.learn_listing(Listing((entry("config", 1),), 4, 1), loss_confirmed=False)
    assert snapshot.retained == {f"{PREFIX}/routes/b", f"{PREFIX}/subnets/a"}
    again = knowledge.learn_listing(Listing((), 5, 1), loss_confirmed=False)
    assert again.retained == snapshot.retained
    assert knowledge.learn_listing(Listing((), 6, 1), loss_confirmed=True) == Snapshot((), 6)


def test_a_cluster_lost_while_nobody_watched_is_recognised() -> None:
    knowledge = Knowledge(PREFIX)
    kept = Entry(f"{PREFIX}/subnets/b", b"x", 2, 0)
    knowledge.recall(Listing((entry("subnets/a", 3), kept), 10, 1))
    snapshot = knowledge.learn_listing(Listing((), 4, 2), loss_confirmed=False)
    assert snapshot.retained == {f"{PREFIX}/subnets/a", f"{PREFIX}/subnets/b"}


def test_what_the_same_cluster_has_deleted_meanwhile_is_gone() -> None:
    knowledge = Knowledge(PREFIX)
    knowledge.recall(Listing((entry("subnets/a", 3),), 10, 1))
    assert knowledge.learn_listing(Listing((), 11, 1), loss_confirmed=False) == Snapshot((), 11)


@pytest.mark.etcd
def test_a_restarted_process_keeps_what_a_restored_cluster_has_lost(
    own_etcd: EtcdServer, connect: Connect, follow: Follow
) -> None:
    writer = connect(own_etcd)
    key = put_lease(writer, "10.7.1.0-24", node(1))
    known = writer.list_prefix(f"{PREFIX}/")
    own_etcd.restart_empty()
    follower = follow(connect(own_etcd), known=known)
    follower.wait_in_sync()
    assert follower.values == {key: node(1).to_json().encode()}
    assert follower.watch.status().retained == 1


def test_all_nodes_together_do_not_list_more_often_however_many_they_are() -> None:
    knowledge = Knowledge(PREFIX)
    assert knowledge.relist_after_s(1800) == 1800
    for nodes in (10_000, 100_000):
        entries = tuple(entry(f"subnets/{number}", 1) for number in range(nodes))
        knowledge.learn_listing(Listing(entries, 10, 1), loss_confirmed=False)
        assert nodes / knowledge.relist_after_s(1800) <= 1
