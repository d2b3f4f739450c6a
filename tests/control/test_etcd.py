"""The etcd client against real etcd."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from control.etcd import EtcdClient
from control.etcd_config import EtcdConfig
from control.etcd_types import (
    Deletion,
    Entry,
    EtcdClosedError,
    EtcdCompactedError,
    EtcdLeaseGoneError,
    EtcdRefusedError,
    EtcdUnavailableError,
    Event,
)
from tests.control.conftest import EtcdServer, wait_for

pytestmark = pytest.mark.etcd

Connect = Callable[..., EtcdClient]


def compact(client: EtcdClient, revision: int) -> None:
    client._call(lambda c: c.client.compact(revision, physical=True))


def test_put_get_delete(client: EtcdClient, prefix: str) -> None:
    assert client.get(prefix) is None
    client.put(prefix, "value")
    entry = client.get(prefix)
    assert entry is not None
    assert (entry.key, entry.value, entry.lease_id) == (prefix, b"value", 0)
    assert client.delete(prefix)
    assert not client.delete(prefix)


def test_listing_has_all_pages_at_one_revision(client: EtcdClient, prefix: str) -> None:
    names = [f"{prefix}/k{n:03}" for n in range(25)]
    for name in names:
        client.put(name, "x")
    client.put(prefix + "0", "not below the prefix")
    listing = client.list_prefix(prefix + "/", page_entries=10)
    assert [entry.key for entry in listing.entries] == names
    assert listing.revision == max(e.mod_revision for e in listing.entries) + 1
    assert listing.cluster_id == client.status().cluster_id


def test_pages_do_not_mix_revisions(
    client: EtcdClient, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(4):
        client.put(f"{prefix}/{n}", "old")
    call = client._call

    def call_then_write(request):  # type: ignore[no-untyped-def]  # wraps a generic method
        response = call(request)
        monkeypatch.undo()
        client.put(f"{prefix}/3", "new")
        client.put(f"{prefix}/4", "new")
        return response

    monkeypatch.setattr(client, "_call", call_then_write)
    listing = client.list_prefix(prefix + "/", page_entries=2)
    assert [entry.value for entry in listing.entries] == [b"old"] * 4


def test_listing_overtaken_by_compaction_begins_afresh(
    client: EtcdClient, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(4):
        client.put(f"{prefix}/{n}", "old")
    call = client._call

    def call_then_compact(request):  # type: ignore[no-untyped-def]  # wraps a generic method
        response = call(request)
        monkeypatch.undo()
        client.put(f"{prefix}/3", "new")
        compact(client, response.header.revision + 1)
        return response

    monkeypatch.setattr(client, "_call", call_then_compact)
    listing = client.list_prefix(prefix + "/", page_entries=2)
    assert [entry.value for entry in listing.entries] == [b"old"] * 3 + [b"new"]


def test_listing_can_leave_out_what_is_older(client: EtcdClient, prefix: str) -> None:
    client.put(f"{prefix}/a", "x")
    since = client.list_prefix(prefix).revision + 1
    client.put(f"{prefix}/b", "x")
    assert [e.key for e in client.list_prefix(prefix, created_since=since).entries] == [
        f"{prefix}/b"
    ]


def test_keys_that_are_not_utf8_are_shown_escaped(client: EtcdClient, prefix: str) -> None:
    client._call(lambda c: c.client.put(prefix.encode() + b"/\xff", "x"))
    assert [entry.key for entry in client.list_prefix(prefix).entries] == [prefix + r"/\xff"]


def test_only_one_of_many_creates_a_key(client: EtcdClient, prefix: str) -> None:
    revisions: list[int | None] = []
    barrier = threading.Barrier(8)

    def create(name: str) -> None:
        barrier.wait()
        revisions.append(client.create_if_absent(prefix, name))

    threads = [threading.Thread(target=create, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (won,) = [revision for revision in revisions if revision is not None]
    entry = client.get(prefix)
    assert entry is not None
    assert entry.create_revision == won


def test_compare_and_put_wants_the_revision_seen(client: EtcdClient, prefix: str) -> None:
    seen = client.create_if_absent(prefix, "1")
    assert seen is not None
    changed = client.compare_and_put(prefix, "2", seen)
    assert changed is not None
    assert changed > seen
    assert client.compare_and_put(prefix, "3", seen) is None
    assert not client.compare_and_delete(prefix, seen)
    assert client.compare_and_delete(prefix, changed)
    assert client.get(prefix) is None


def test_lease_carries_its_keys(client: EtcdClient, prefix: str) -> None:
    lease_id = client.grant_lease(60)
    client.put(prefix, "x", lease_id)
    entry = client.get(prefix)
    assert entry is not None
    assert entry.lease_id == lease_id
    life = client.time_to_live(lease_id)
    assert life.granted_s == 60
    assert life.remaining_s > 0
    assert life.keys == (prefix,)
    assert client.keep_alive(lease_id) == 60
    client.revoke_lease(lease_id)
    assert client.get(prefix) is None
    assert client.keep_alive(lease_id) <= 0
    assert client.time_to_live(lease_id).remaining_s < 0
    client.revoke_lease(lease_id)
    with pytest.raises(EtcdLeaseGoneError):
        client.put(prefix, "x", lease_id)


def test_watch_brings_puts_and_deletions(client: EtcdClient, prefix: str) -> None:
    start = client.list_prefix(prefix).revision + 1
    client.put(f"{prefix}/a", "1")
    client.delete(f"{prefix}/a")
    client.put(prefix + "0", "not below the prefix")
    stream = client.watch(prefix + "/", start, lifetime_s=10)
    events: list[Event] = []
    for batch in stream:
        events += batch.events
        if len(events) == 2:
            break
    put, deletion = events
    assert isinstance(put, Entry)
    assert (put.key, put.value) == (f"{prefix}/a", b"1")
    assert deletion == Deletion(f"{prefix}/a", put.mod_revision + 1)


def test_a_large_batch_arrives_whole(client: EtcdClient, prefix: str) -> None:
    start = client.list_prefix(prefix).revision + 1
    for n in range(8):
        client.put(f"{prefix}/{n}", "x" * 900_000)
    events = 0
    for batch in client.watch(prefix, start, lifetime_s=10):
        events += len(batch.events)
        if events == 8:
            break
    assert events == 8


def test_watch_ends_with_its_lifetime(client: EtcdClient, prefix: str) -> None:
    batches = list(client.watch(prefix, 0, lifetime_s=0.3))
    assert [batch.events for batch in batches] == [()]  # the sign of life at its creation


def test_watch_can_be_cancelled_from_another_thread(client: EtcdClient, prefix: str) -> None:
    stream = client.watch(prefix, 0, lifetime_s=60)
    batches = iter(stream)
    next(batches)
    threading.Timer(0.1, stream.cancel).start()
    begun = time.monotonic()
    assert list(batches) == []
    assert time.monotonic() - begun < 5


def test_watch_from_a_compacted_revision_says_so(own_etcd: EtcdServer, connect: Connect) -> None:
    client = connect(own_etcd)
    for n in range(5):
        client.put("/k", str(n))
    compact(client, client.list_prefix("/k").revision)
    with pytest.raises(EtcdCompactedError):
        list(client.watch("/k", 2, lifetime_s=10))


def test_no_etcd_is_named_with_its_address_and_reason(tmp_path: Path) -> None:
    client = EtcdClient(EtcdConfig(urls=("http://127.0.0.1:1",)))
    wanted = r"^no etcd answers at http://127\.0\.0\.1:1 \(.*Connection refused.*\)$"
    with pytest.raises(EtcdUnavailableError, match=wanted) as caught:
        client.get("/k")
    assert caught.value.retryable
    client.close()


def test_a_dead_endpoint_is_passed_over(shared_etcd: EtcdServer, prefix: str) -> None:
    urls = ("http://127.0.0.1:1", "http://localhost:1", shared_etcd.url)
    client = EtcdClient(EtcdConfig(urls=urls), shuffle=lambda endpoints: None)
    client.put(prefix, "x")
    assert client.get(prefix) is not None
    client.close()


def test_a_hung_endpoint_costs_one_deadline(
    own_etcd: EtcdServer, shared_etcd: EtcdServer, prefix: str
) -> None:
    config = EtcdConfig(urls=(own_etcd.url, shared_etcd.url), request_timeout_s=0.5)
    client = EtcdClient(config, shuffle=lambda endpoints: None)
    assert client.status().endpoint == own_etcd.url
    own_etcd.suspend()
    begun = time.monotonic()
    assert client.status().endpoint == shared_etcd.url
    assert time.monotonic() - begun < 2
    client.close()


def test_a_killed_server_is_found_again(own_etcd: EtcdServer, connect: Connect) -> None:
    client = connect(own_etcd)
    client.put("/k", "x")
    own_etcd.kill()
    with pytest.raises(EtcdUnavailableError, match="no etcd answers"):
        client.get("/k")
    own_etcd.restart()
    assert client.get("/k") is not None


def test_a_restart_in_between_is_not_noticed(own_etcd: EtcdServer, connect: Connect) -> None:
    client = connect(own_etcd)
    client.put("/k", "x")
    own_etcd.kill()
    own_etcd.restart()
    assert client.get("/k") is not None


def test_closing_ends_what_is_under_way(shared_etcd: EtcdServer, connect: Connect) -> None:
    client = connect(shared_etcd)
    outcome: list[Exception] = []

    def follow() -> None:
        try:
            list(client.watch("/k", 0, lifetime_s=60))
        except EtcdUnavailableError as error:
            outcome.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    client.get("/k")
    client.close()
    thread.join(5)
    assert not thread.is_alive()
    with pytest.raises(EtcdClosedError):
        client.get("/k")


def test_user_and_password_and_an_expired_token(own_etcd: EtcdServer, connect: Connect) -> None:
    own_etcd.enable_auth("root", "right")
    anonymous = connect(own_etcd)
    with pytest.raises(EtcdRefusedError, match="give a user name and password"):
        anonymous.get("/k")

    client = logged_in(own_etcd, "right")
    client.put("/k", "x")
    next(iter(client.watch("/k", 0, lifetime_s=5)))
    assert client._connection is not None
    client._connection.client.metadata = (("token", "expired.1"),)
    assert client.get("/k") is not None
    client.close()

    wrong = logged_in(own_etcd, "wrong")
    with pytest.raises(EtcdRefusedError, match="authentication failed") as caught:
        wrong.get("/k")
    assert not caught.value.retryable
    wrong.close()


def test_a_watch_without_permission_is_refused_not_silent(own_etcd: EtcdServer) -> None:
    own_etcd.enable_auth("root", "right")
    root = logged_in(own_etcd, "right")
    own_etcd.etcdctl("--user=root:right", "user", "add", "guest:guest")
    guest = EtcdClient(EtcdConfig(urls=(own_etcd.url,), username="guest", password="guest"))
    with pytest.raises(EtcdRefusedError, match="permission denied"):
        guest.get("/k")
    with pytest.raises(EtcdRefusedError, match="cancelled the watch"):
        list(guest.watch("/k", 0, lifetime_s=5))
    guest.close()
    root.close()


def test_a_user_where_none_is_needed_does_no_harm(shared_etcd: EtcdServer, prefix: str) -> None:
    client = logged_in(shared_etcd, "any")
    client.put(prefix, "x")
    assert client.get(prefix) is not None
    client.close()


def logged_in(server: EtcdServer, password: str) -> EtcdClient:
    return EtcdClient(EtcdConfig(urls=(server.url,), username="root", password=password))


def test_lost_connections_leave_no_threads_behind(own_etcd: EtcdServer, connect: Connect) -> None:
    client = connect(own_etcd)
    client.get("/k")
    before = threading.active_count()
    own_etcd.kill()
    for _ in range(20):
        with pytest.raises(EtcdUnavailableError):
            list(client.watch("/k", 0, lifetime_s=5))
    wait_for(lambda: threading.active_count() <= before)
