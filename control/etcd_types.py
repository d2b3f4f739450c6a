"""What the etcd client gives and raises, in plain terms: none of etcd3's or gRPC's own types."""

from __future__ import annotations

from dataclasses import dataclass


class EtcdError(Exception):
    """Something went wrong with etcd; `retryable` says whether trying again makes sense."""

    retryable = True


class EtcdUnavailableError(EtcdError):
    """No endpoint gave an answer. Try again, with backoff."""


class EtcdCompactedError(EtcdError):
    """The revision asked for is no longer kept. List again."""


class EtcdLeaseGoneError(EtcdError):
    """The etcd lease named in a request does not exist (any more). Grant a new one."""


class EtcdRefusedError(EtcdError):
    """etcd answered no: credentials, permissions, or a request it does not take."""

    retryable = False


class EtcdClosedError(EtcdError):
    """The client was closed."""

    retryable = False


@dataclass(frozen=True)
class Entry:
    """A key and its value, as of one revision."""

    key: str
    """Bytes that are not UTF-8 appear as backslash escapes."""
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int = 0
    """The etcd lease the key lives by; 0: none."""


@dataclass(frozen=True)
class Deletion:
    """A key that was deleted, or whose lease expired, at `mod_revision`."""

    key: str
    mod_revision: int


Event = Entry | Deletion


@dataclass(frozen=True)
class Listing:
    """Every entry below a prefix, all as of one revision, in order of their keys."""

    entries: tuple[Entry, ...]
    revision: int
    cluster_id: int


@dataclass(frozen=True)
class WatchBatch:
    """What one watch response brought. Without events it is but a sign of life."""

    events: tuple[Event, ...]
    header_revision: int
    """The store's revision; while catching up it runs ahead of the events. Never resume by it."""
    cluster_id: int


@dataclass(frozen=True)
class LeaseLife:
    """An etcd lease's time to live."""

    remaining_s: int
    """Seconds left; below 0 when the lease does not exist."""
    granted_s: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class EtcdStatus:
    """The member that answered, and the cluster it belongs to."""

    endpoint: str
    version: str
    cluster_id: int
    member_id: int
    leader_id: int
    """0: the member knows no leader."""
    revision: int
    members: tuple[str, ...]
    """The names of all members."""
