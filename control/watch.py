"""A watch that never lies: list at one revision, follow from the next, list again when in doubt.

Covers everything below the prefix: the network config, the leases, the route extension. What is
delivered may repeat itself and never leaves a gap: apply it by each key's mod_revision.

    disconnected ── listed ──> resyncing ── the watch answers ──> in sync
    in sync ── no answer, stream broken ──> disconnected ── the watch goes on ──> in sync
    in sync ── compacted, time for a new list, another cluster: listed ──> resyncing

Nothing is ever withdrawn because etcd is silent. When etcd turns out to be another cluster, or
runs at a lower revision than before, it was restored: what it lacks of the leases and routes we
had is kept ("retained") until it reappears or an operator confirms that it is gone.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from control.backoff import Backoff
from control.etcd import EtcdClient, WatchStream
from control.etcd_types import (
    Deletion,
    Entry,
    EtcdClosedError,
    EtcdError,
    EtcdUnavailableError,
    Event,
    Listing,
    WatchBatch,
)
from control.lease import ROUTES, SUBNETS

log = logging.getLogger(__name__)

RELIST_INTERVAL_S = 1800.0
"""A watch's longest life. Listing now and then mends whatever went wrong without a sign."""
RELIST_S_PER_ENTRY = 1.0
"""Or longer: however many nodes there are, together they list about once a second."""
STABLE_S = 10.0
"""A watch that lived this long was no failure, even if it brought nothing."""
FAILURES_BEFORE_RESYNC = 5


@dataclass(frozen=True)
class Snapshot:
    """All there is: what is not in it is gone."""

    entries: tuple[Entry, ...]
    """In order of keys, but for retained ones, which come last and have mod_revision 0."""
    revision: int
    retained: frozenset[str] = frozenset()
    """The keys that etcd has lost and we have not."""


@dataclass(frozen=True)
class Events:
    """What changed since; in order, possibly with repetitions."""

    events: tuple[Event, ...]


class Phase(Enum):
    """How the watch stands to etcd."""

    DISCONNECTED = "etcd does not answer"
    RESYNCING = "listed, the watch is being set up"
    IN_SYNC = "every change arrives as it happens"


@dataclass(frozen=True)
class WatchStatus:
    """The watch at one moment."""

    phase: Phase
    age_s: float | None
    """Seconds since what we know was last known to be up to date; 0 in sync, None: never."""
    revision: int
    """The revision we know."""
    cluster_id: int
    retained: int
    """Entries kept although etcd has lost them; see PrefixWatch.confirm_loss."""
    listings: int
    """How often everything was listed."""
    attempts: int
    """How often listing or watching was tried."""
    error: str | None
    """Why we are not in sync."""


Update = Snapshot | Events | Phase


class Knowledge:
    """What we know of etcd's contents and how it stands to what etcd says now. Pure."""

    def __init__(self, prefix: str) -> None:
        self._worth_keeping = (f"{prefix}/{SUBNETS}", f"{prefix}/{ROUTES}")
        self._entries: dict[str, Entry] = {}
        self._retained: dict[str, Entry] = {}
        self.cluster_id = 0
        self.revision = 0
        """What is known is complete up to here; events are awaited from the next one on."""

    @property
    def retained(self) -> frozenset[str]:
        return frozenset(self._retained)

    def relist_after_s(self, at_least_s: float) -> float:
        """Seconds that a list may be old. Each costs etcd time by its length, as each node does."""
        return max(at_least_s, RELIST_S_PER_ENTRY * len(self._entries))

    def contradicts(self, said: WatchBatch) -> bool:
        """Whether the watch speaks of another cluster than ours, or of our past."""
        return said.cluster_id != self.cluster_id or said.header_revision < self.revision

    def recall(self, known: Listing) -> None:
        """Know what an earlier process knew: a cluster restored since is then recognised."""
        self.cluster_id, self.revision = known.cluster_id, known.revision
        for entry in known.entries:
            was_retained = entry.mod_revision == 0
            (self._retained if was_retained else self._entries)[entry.key] = entry

    def learn_listing(self, listing: Listing, *, loss_confirmed: bool) -> Snapshot:
        """Know what was listed, and keep what a restored cluster has lost."""
        was_replaced = self.revision > 0 and (
            listing.cluster_id != self.cluster_id or listing.revision < self.revision
        )
        listed = {entry.key: entry for entry in listing.entries}
        candidates = {**self._retained, **(self._entries if was_replaced else {})}
        self._retained = {
            key: dataclasses.replace(entry, mod_revision=0)
            for key, entry in candidates.items()
            if key not in listed and not loss_confirmed and key.startswith(self._worth_keeping)
        }
        if was_replaced:
            log.error(
                "etcd was replaced: cluster %x at revision %d, before %x at %d; %d leases and "
                "routes that it lacks are kept until they reappear, or until an operator says "
                "that they are gone (loden route confirm-loss)",
                listing.cluster_id,
                listing.revision,
                self.cluster_id,
                self.revision,
                len(self._retained),
            )
        self._entries = listed
        self.cluster_id, self.revision = listing.cluster_id, listing.revision
        entries = (*listing.entries, *self._retained.values())
        return Snapshot(entries, listing.revision, self.retained)

    def learn_events(self, events: tuple[Event, ...]) -> Events:
        """Know what changed."""
        for event in events:
            if isinstance(event, Deletion):
                self._entries.pop(event.key, None)
            else:
                self._entries[event.key] = event
            self._retained.pop(event.key, None)
            # Not the header's revision: while etcd catches up for us, that runs ahead.
            self.revision = max(self.revision, event.mod_revision)
        return Events(events)


class PrefixWatch:
    """Follows a client's prefix in a thread of its own, through whatever happens to etcd."""

    def __init__(
        self,
        client: EtcdClient,
        deliver: Callable[[Update], None],
        relist_interval_s: float = RELIST_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
        known: Listing | None = None,
    ) -> None:
        """`deliver` is called in the watch's thread, one call at a time; it must not raise.

        A Snapshot comes before any Events. `clock` gives monotonic seconds. `known`: what an
        earlier process knew last.
        """
        self._client = client
        self._deliver = deliver
        self._relist_interval_s = relist_interval_s
        self._clock = clock
        self._knowledge = Knowledge(client.config.prefix)
        if known is not None:
            self._knowledge.recall(known)
        self._backoff = Backoff()
        self._phase = Phase.DISCONNECTED
        self._up_to_date_at: float | None = None
        self._error: str | None = None
        self._listings = self._attempts = self._failures = 0
        self._must_list = True
        self._loss_confirmed = False
        self._stopping = threading.Event()
        self._stream_lock = threading.Lock()
        self._stream: WatchStream | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread. A listing under way is waited for: to be prompt while etcd hangs, cancel,
        and close the client, first.
        """
        self.cancel()
        if self._thread.is_alive():
            self._thread.join()

    def cancel(self) -> None:
        """Have the thread end soon: what fails from now on is not worth a word."""
        self._stopping.set()
        self._cancel_stream()

    def confirm_loss(self) -> None:
        """An operator says: what etcd has lost is gone indeed. A snapshot without it follows."""
        self._loss_confirmed = True
        self._cancel_stream()  # and so list again

    def status(self) -> WatchStatus:
        if self._phase is Phase.IN_SYNC:
            age_s: float | None = 0.0
        else:
            at = self._up_to_date_at
            age_s = None if at is None else self._clock() - at
        return WatchStatus(
            phase=self._phase,
            age_s=age_s,
            revision=self._knowledge.revision,
            cluster_id=self._knowledge.cluster_id,
            retained=len(self._knowledge.retained),
            listings=self._listings,
            attempts=self._attempts,
            error=self._error,
        )

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._attempts += 1
            try:
                if self._must_list:
                    self._list()
                self._follow()
                self._must_list = True
            except EtcdClosedError:
                return
            except EtcdError as error:
                self._fail(error)
            self._stopping.wait(self._backoff.next_s())

    def _list(self) -> None:
        confirmed = self._loss_confirmed
        listing = self._client.list_prefix(f"{self._client.config.prefix}/")
        snapshot = self._knowledge.learn_listing(listing, loss_confirmed=confirmed)
        if confirmed:
            self._loss_confirmed = False
        self._listings += 1
        self._failures = 0
        self._must_list = False
        self._up_to_date_at = self._clock()
        self._enter(Phase.RESYNCING)
        self._deliver(snapshot)

    def _follow(self) -> None:
        """Follow from the next revision on; return when it is time to list again."""
        begun = self._clock()
        stream = self._client.watch(
            f"{self._client.config.prefix}/",
            self._knowledge.revision + 1,
            # Spread, so that nodes started together do not list together for ever.
            self._knowledge.relist_after_s(self._relist_interval_s) * random.uniform(0.5, 1),
        )
        with self._stream_lock:
            self._stream = stream
        if self._stopping.is_set() or self._loss_confirmed:
            stream.cancel()
        try:
            for batch in stream:
                if self._knowledge.contradicts(batch):
                    return
                self._enter(Phase.IN_SYNC)
                if batch.events:
                    self._deliver(self._knowledge.learn_events(batch.events))
                    self._failures = 0
                    self._backoff.reset()
        finally:
            stream.cancel()
            if self._phase is Phase.IN_SYNC:
                self._up_to_date_at = self._clock()
            if self._clock() - begun >= STABLE_S:
                self._backoff.reset()

    def _fail(self, error: EtcdError) -> None:
        """Say that we are not in sync, and settle whether following on is safe."""
        if self._phase is Phase.IN_SYNC or self._error is None:
            log.warning("not in sync with etcd, its last state is kept: %s", error)
        if self._phase is not Phase.DISCONNECTED:
            self._failures += 1  # it does answer, and yet we get nowhere
        if not isinstance(error, EtcdUnavailableError) or self._failures >= FAILURES_BEFORE_RESYNC:
            self._must_list = True
        self._error = str(error)
        self._enter(Phase.DISCONNECTED)

    def _enter(self, phase: Phase) -> None:
        if phase is Phase.IN_SYNC:
            self._error = None
        if phase is not self._phase:
            log.info("watch of %s: %s", self._client.config.prefix, phase.value)
            self._phase = phase
            self._deliver(phase)

    def _cancel_stream(self) -> None:
        with self._stream_lock:
            if self._stream is not None:
                self._stream.cancel()
