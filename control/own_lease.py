"""Our own lease in what etcd tells: whether it is lost, its keeper finds out, not the watch.

Until then its subnet stays ours, and packets to our pods are delivered: a key that an operator
deleted, or that a restored cluster lacks, is there again a moment later.
"""

from __future__ import annotations

from collections.abc import Iterable

from control.etcd_types import Deletion, Entry, Event
from control.lease import Lease


def is_touched(lease: Lease, events: Iterable[Event]) -> bool:
    """Whether somebody deleted the lease or wrote something else."""
    ours = lease.attrs.to_json().encode()
    return any(
        isinstance(event, Deletion) or event.value != ours
        for event in events
        if event.key == lease.key
    )


def is_among(lease: Lease, entries: Iterable[Entry]) -> bool:
    """Whether etcd holds it as we wrote it. What is kept from a lost cluster does not count."""
    ours = lease.attrs.to_json().encode()
    return any(
        entry.key == lease.key and entry.value == ours and entry.mod_revision > 0
        for entry in entries
    )


def without_its_end(lease: Lease, events: Iterable[Event]) -> list[Event]:
    """All that happened, but for the lease's deletion."""
    return [
        event for event in events if not (event.key == lease.key and isinstance(event, Deletion))
    ]


def with_it(lease: Lease, entries: Iterable[Entry]) -> list[Entry]:
    """All there is, and the lease."""
    found = list(entries)
    if not any(entry.key == lease.key for entry in found):
        value = lease.attrs.to_json().encode()
        # As the watch keeps what a lost cluster had: of no revision.
        found.append(Entry(lease.key, value, lease.create_revision, 0, lease.lease_id))
    return found
