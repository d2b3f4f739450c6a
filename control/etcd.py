"""The etcd client: etcd3's requests, with deadlines, fail-over and errors one can act on.

etcd3 makes the channel and the requests. Its watcher, its lock, its login and its lease refresh
are left alone: they spin, hang or stay silent when a server goes away. In their place:

- One connection at a time, to one endpoint of a shuffled list. Whatever goes unanswered makes us
  abandon that connection and open one to the next endpoint: names, addresses and TLS all work, and
  a member that hangs costs one deadline.
- Every request has a deadline; streams are watched over by HTTP/2 pings.
- Login, and login again when a token has expired, happen in the course of a call.

Safe to use from several threads. A write may have been carried out although its answer was lost
and it was sent again: a comparison that fails says "look again", not "somebody else did it".
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from control.etcd_config import Endpoint, EtcdConfig
from control.etcd_connection import Connection
from control.etcd_messages import rpc
from control.etcd_types import (
    Deletion,
    Entry,
    EtcdClosedError,
    EtcdCompactedError,
    EtcdError,
    EtcdLeaseGoneError,
    EtcdRefusedError,
    EtcdStatus,
    EtcdUnavailableError,
    Event,
    LeaseLife,
    Listing,
    WatchBatch,
)

PAGE_ENTRIES = 1000
LISTING_ATTEMPTS = 5

T = TypeVar("T")


class EtcdClient:
    """A client of one etcd cluster. Every method raises EtcdError's subclasses, and only those."""

    def __init__(
        self, config: EtcdConfig, shuffle: Callable[[list[Endpoint]], None] = random.shuffle
    ) -> None:
        self.config = config
        self._endpoints = list(config.endpoints)
        shuffle(self._endpoints)
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._closed = False

    # Reading

    def get(self, key: str) -> Entry | None:
        """The entry at `key`, or None."""
        response = self._call(lambda c: _range(c, rpc.RangeRequest(key=key.encode())))
        return _entry_of(response.kvs[0]) if response.kvs else None

    def list_prefix(
        self, prefix: str, *, created_since: int = 0, page_entries: int = PAGE_ENTRIES
    ) -> Listing:
        """Every entry whose key starts with `prefix`, all as of one revision.

        `created_since` leaves out keys created at lower revisions. Fetched in pages of
        `page_entries`; begun afresh if the revision is compacted away in between.
        """
        for _ in range(LISTING_ATTEMPTS):
            try:
                return self._list_pages(prefix.encode(), created_since, page_entries)
            except EtcdCompactedError as error:
                compacted = error
        raise EtcdUnavailableError(
            f"listing {prefix} was overtaken by compaction {LISTING_ATTEMPTS} times"
        ) from compacted

    def _list_pages(self, prefix: bytes, created_since: int, page_entries: int) -> Listing:
        request = rpc.RangeRequest(
            key=prefix,
            range_end=_range_end(prefix),
            limit=page_entries,
            min_create_revision=created_since,
        )
        entries: list[Entry] = []
        while True:
            page = self._call(lambda c: _range(c, request))
            # The first page settles the revision of all.
            request.revision = request.revision or page.header.revision
            entries += map(_entry_of, page.kvs)
            if not page.more:
                return Listing(tuple(entries), request.revision, page.header.cluster_id)
            request.key = page.kvs[-1].key + b"\0"

    def status(self) -> EtcdStatus:
        """The member we are connected to. Raises EtcdUnavailableError when there is none."""

        def ask(connection: Connection) -> EtcdStatus:
            client = connection.client
            options = {"timeout": client.timeout, "metadata": connection.metadata}
            status = client.maintenancestub.Status(rpc.StatusRequest(), **options)
            members = client.clusterstub.MemberList(rpc.MemberListRequest(), **options).members
            return EtcdStatus(
                endpoint=str(connection.endpoint),
                version=status.version,
                cluster_id=status.header.cluster_id,
                member_id=status.header.member_id,
                leader_id=status.leader,
                revision=status.header.revision,
                members=tuple(member.name for member in members),
            )

        return self._call(ask)

    # Writing

    def put(self, key: str, value: str, lease_id: int = 0) -> None:
        """Put unconditionally."""
        self._call(lambda c: c.client.put(key, value, lease_id))

    def delete(self, key: str) -> bool:
        """Delete unconditionally; whether there was anything to delete."""
        return bool(self._call(lambda c: c.client.delete(key)))

    def create_if_absent(self, key: str, value: str, lease_id: int = 0) -> int | None:
        """Put unless the key exists. The revision of the put, or None."""
        return self._put_if(lambda t: t.version(key) == 0, key, value, lease_id)

    def compare_and_put(
        self, key: str, value: str, mod_revision: int, lease_id: int = 0
    ) -> int | None:
        """Put if the key was last changed at `mod_revision`. The revision of the put, or None."""
        return self._put_if(lambda t: t.mod(key) == mod_revision, key, value, lease_id)

    def compare_and_delete(self, key: str, mod_revision: int) -> bool:
        """Delete if the key was last changed at `mod_revision`; whether it was deleted."""

        def transact(connection: Connection) -> bool:
            t = connection.client.transactions
            done, _ = connection.client.transaction(
                compare=[t.mod(key) == mod_revision], success=[t.delete(key)], failure=[]
            )
            return bool(done)

        return self._call(transact)

    def _put_if(
        self, condition: Callable[[Any], object], key: str, value: str, lease_id: int
    ) -> int | None:
        def transact(connection: Connection) -> int | None:
            t = connection.client.transactions
            done, responses = connection.client.transaction(
                compare=[condition(t)], success=[t.put(key, value, lease_id)], failure=[]
            )
            return int(responses[0].response_put.header.revision) if done else None

        return self._call(transact)

    # Leases

    def grant_lease(self, ttl_s: int) -> int:
        """A new etcd lease; its id."""
        return int(self._call(lambda c: c.client.lease(ttl_s)).id)

    def keep_alive(self, lease_id: int) -> int:
        """Renew a lease to its full time; seconds it now lives, 0 or less if it is gone."""

        def refresh(connection: Connection) -> int:
            for response in connection.client.refresh_lease(lease_id):
                return int(response.TTL)
            raise EtcdUnavailableError(f"{connection.endpoint} closed the stream of the keep-alive")

        return self._call(refresh)

    def time_to_live(self, lease_id: int) -> LeaseLife:
        """What is left of a lease, and the keys that live by it."""
        info = self._call(lambda c: c.client.get_lease_info(lease_id))
        return LeaseLife(info.TTL, info.grantedTTL, tuple(map(_text, info.keys)))

    def revoke_lease(self, lease_id: int) -> None:
        """End a lease and delete its keys; one that is gone already is no error."""
        try:
            self._call(lambda c: c.client.revoke_lease(lease_id))
        except EtcdLeaseGoneError:
            return

    # Watching

    def watch(self, prefix: str, start_revision: int, lifetime_s: float) -> WatchStream:
        """Follow every change below `prefix` from `start_revision` on, for `lifetime_s` seconds.

        The stream may fail when it is iterated: see WatchStream.
        """
        return self._call(
            lambda c: WatchStream(c, self._abandon, prefix.encode(), start_revision, lifetime_s)
        )

    # Connection

    def close(self) -> None:
        """Close the connection; calls and streams under way in other threads end at once."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()

    def reconnect(self) -> None:
        """Give up the connection: it is from an address that this host has no longer, and would
        be found dead only after the keepalive's time. Streams under way fail, and are begun again.
        """
        with self._lock:
            connection = self._connection
        if connection is not None:
            self._abandon(connection)

    def _current(self) -> Connection:
        with self._lock:
            if self._closed:
                raise EtcdClosedError("the etcd client was closed")
            if self._connection is None:
                self._connection = Connection(self._endpoints[0], self.config)
            return self._connection

    def _abandon(self, connection: Connection) -> None:
        """Close a connection that brought no answer, so that the next call tries the next one."""
        with self._lock:
            if self._connection is connection:
                self._connection = None
                self._endpoints.append(self._endpoints.pop(0))
        connection.close()

    def _call(self, request: Callable[[Connection], T]) -> T:
        """Make a request, at each endpoint in turn until one answers. Raises EtcdError.

        A connection that has been used before may have died of idleness since: that it fails says
        nothing about its endpoint, so it does not count as a turn.
        """
        silent: dict[str, str] = {}
        turns = len(self._endpoints)
        while turns:
            connection = self._current()
            turns -= not connection.was_used
            try:
                return connection.call(request)
            except EtcdUnavailableError as error:
                silent[str(connection.endpoint)] = str(error)
                self._abandon(connection)
        if self._closed:
            raise EtcdClosedError("the etcd client was closed")
        raise EtcdUnavailableError(
            "no etcd answers at " + ", ".join(f"{url} ({why})" for url, why in silent.items())
        )


class WatchStream:
    """A watch under way: iterate it for its batches, cancel it from any thread.

    Iteration ends when the stream's lifetime is over or it was cancelled. It raises
    EtcdCompactedError if the start revision is no longer kept, EtcdRefusedError if etcd cancelled
    it, EtcdUnavailableError if the connection failed or the stream ended without a word.
    """

    def __init__(
        self,
        connection: Connection,
        abandon: Callable[[Connection], None],
        prefix: bytes,
        start_revision: int,
        lifetime_s: float,
    ) -> None:
        self._connection = connection
        self._abandon = abandon
        self._ended = threading.Event()
        self._create = rpc.WatchRequest(
            create_request=rpc.WatchCreateRequest(
                key=prefix,
                range_end=_range_end(prefix),
                start_revision=start_revision,
                progress_notify=True,
                fragment=True,
            )
        )
        # hasleader: a member cut off from its cluster ends the stream, it does not fall silent.
        self._responses = connection.watchstub.Watch(
            self._requests(),
            timeout=lifetime_s,
            metadata=(*connection.metadata, ("hasleader", "true")),
        )

    def cancel(self) -> None:
        """End the stream; its iteration ends at once."""
        self._ended.set()
        self._responses.cancel()

    def __iter__(self) -> Iterator[WatchBatch]:
        try:
            yield from self._batches()
            if not self._ended.is_set():
                raise EtcdUnavailableError("the watch ended without a word")
        except grpc.RpcError as error:
            if not self._ended.is_set() and not _is_lifetime_over(error):
                self._abandon(self._connection)
                raise self._failure(error) from error
        finally:
            self.cancel()

    def _failure(self, error: grpc.RpcError) -> EtcdError:
        typed = self._connection.typed(error)
        if isinstance(typed, EtcdUnavailableError):
            return EtcdUnavailableError(f"no etcd answers at {self._connection.endpoint} ({typed})")
        return typed

    def _requests(self) -> Iterator[Any]:
        yield self._create
        self._ended.wait()  # the end of the requests would be the end of the watch

    def _batches(self) -> Iterator[WatchBatch]:
        fragments: list[Event] = []
        for response in self._responses:
            if response.compact_revision:
                raise EtcdCompactedError(f"compacted up to revision {response.compact_revision}")
            if response.canceled:
                # A refusal comes as a created response that is canceled; perhaps the token's fault.
                self._connection.forget_token()
                raise EtcdRefusedError(
                    f"etcd cancelled the watch: {response.cancel_reason or 'no why'}"
                )
            fragments += map(_event_of, response.events)
            if not response.fragment:
                header = response.header
                yield WatchBatch(tuple(fragments), header.revision, header.cluster_id)
                fragments = []


def _is_lifetime_over(error: grpc.RpcError) -> bool:
    # Whichever side's timer fires first; etcd passes Go's own words on as an unknown error.
    by_etcd = error.details() == "context deadline exceeded"
    return bool(by_etcd or error.code() == grpc.StatusCode.DEADLINE_EXCEEDED)


def _range(connection: Connection, request: Any) -> Any:
    client = connection.client
    return client.kvstub.Range(request, timeout=client.timeout, metadata=connection.metadata)


def _range_end(prefix: bytes) -> bytes:
    """The first key after all that start with `prefix`."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"


def _event_of(event: Any) -> Event:
    is_deletion = event.type == 1  # mvccpb.Event.EventType: PUT 0, DELETE 1
    if is_deletion:
        return Deletion(_text(event.kv.key), event.kv.mod_revision)
    return _entry_of(event.kv)


def _entry_of(kv: Any) -> Entry:
    return Entry(_text(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
