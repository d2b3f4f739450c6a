"""Keeping the lease: alive without a put, up to date, and ours alone.

A round renews the etcd lease and looks at the key. Rounds are made at a third of the lease's time,
and at once when asked to: `check()` when the watch saw our key change, `publish()` when our
address changed. Stopping keeps the lease: a restart finds its subnet again.

    held ── no answer until its time is over ──> unconfirmed ── etcd is back ──> held
      └──── key or lease gone, subnet free: taken again ──> held
      └──── the subnet is another node's ──> lost (the end: nothing may be sent from it any more)
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

from control.acquire import DEFAULT_TTL_S, check_ttl, create_lease, leases_in
from control.backoff import Backoff
from control.etcd import EtcdClient
from control.etcd_types import EtcdClosedError, EtcdError, EtcdLeaseGoneError
from control.lease import SUBNETS, Lease, LeaseAttrs

log = logging.getLogger(__name__)

DEFAULT_RENEW_MARGIN_S = 3600
"""flannel's --subnet-lease-renew-margin, 60 minutes."""


class LeaseLostError(Exception):
    """Another node holds our subnet. No use trying again: stop, and acquire another."""

    retryable = False


class LeaseState(Enum):
    """How sure we are of our subnet."""

    HELD = "held"
    UNCONFIRMED = "its time is over and etcd has not answered since"
    LOST = "another node holds the subnet"


@dataclass(frozen=True)
class LeaseStatus:
    """The lease at one moment."""

    state: LeaseState
    lease: Lease
    expires_in_s: float | None
    """Seconds until it ends unless renewed, negative afterwards; None: a reservation never ends."""
    error: str | None
    """Why the last round failed; None if it did not."""


class LeaseKeeper:
    """Keeps one lease, in a thread of its own or a round at a time."""

    def __init__(
        self,
        client: EtcdClient,
        lease: Lease,
        ttl_s: int = DEFAULT_TTL_S,
        renew_margin_s: float = DEFAULT_RENEW_MARGIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lease` as `acquire` returned it just now; `clock` gives monotonic seconds."""
        check_ttl(ttl_s)
        self._client = client
        self._lease = lease
        self._attrs = lease.attrs
        self._published = {lease.attrs}
        self._ttl_s = ttl_s
        self._clock = clock
        self._ends_at = clock() + ttl_s
        # In time for the margin, but a margin as long as the lease must not make us renew always.
        self._renew_every_s = max(min(ttl_s / 3, ttl_s - renew_margin_s), ttl_s / 10)
        self._backoff = Backoff()
        self._error: str | None = None
        self._lost: LeaseLostError | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    @property
    def lease(self) -> Lease:
        return self._lease

    def status(self) -> LeaseStatus:
        expires_in_s = None if self._lease.is_reservation else self._ends_at - self._clock()
        if self._lost:
            state = LeaseState.LOST
        elif expires_in_s is not None and expires_in_s <= 0:
            state = LeaseState.UNCONFIRMED
        else:
            state = LeaseState.HELD
        return LeaseStatus(state, self._lease, expires_in_s, self._error)

    def start(self, on_lost: Callable[[LeaseLostError], None]) -> None:
        """Keep the lease in a thread; `on_lost` is called there if it is lost, then it ends."""
        self._thread = threading.Thread(
            target=self._run, args=(on_lost,), name="lease", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the lease stays. A request under way is waited for: to be prompt while
        etcd hangs, close the client first.
        """
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Look at the key now: it was changed or deleted."""
        self._wake.set()

    def publish(self, attrs: LeaseAttrs) -> None:
        """Make these the lease's value from now on: our address or MAC has changed."""
        self._attrs = attrs
        self._published.add(attrs)
        self._wake.set()

    def run_once(self) -> float:
        """One round; seconds until the next one is due. Raises LeaseLostError, EtcdClosedError.

        While etcd does not answer, that is a backoff, and the lease is believed.
        """
        try:
            settled = self._renew() and self._confirm_key()
        except EtcdClosedError:
            raise
        except EtcdError as error:
            self._say_once("the lease %s is not renewed: %s", error)
            self._error = str(error)
            return self._backoff.next_s()
        except LeaseLostError as error:
            self._lost = error
            raise
        self._error = None
        if not settled:  # etcd changed under our hands: look again
            return self._backoff.next_s()
        self._backoff.reset()
        return self._renew_every_s * random.uniform(0.9, 1.0)

    def _run(self, on_lost: Callable[[LeaseLostError], None]) -> None:
        try:
            while not self._stopping:
                wait_s = self.run_once()
                self._wake.wait(wait_s)
                self._wake.clear()
        except LeaseLostError as error:
            log.error("%s", error)
            on_lost(error)
        except EtcdClosedError:
            log.debug("the etcd client was closed: the lease %s is left", self._lease.key)

    def _say_once(self, what: str, *details: object) -> None:
        """Logs what befell our key, unless the last round failed already: it comes every few
        seconds until it is mended."""
        if self._error is None:
            log.warning(what, self._lease.key, *details)

    def _renew(self) -> bool:
        """Keep the etcd lease alive, or take the subnet again; whether it is settled."""
        if self._lease.is_reservation:
            return True
        asked_at = self._clock()
        remaining_s = self._client.keep_alive(self._lease.lease_id)
        if remaining_s <= 0:
            self._say_once("the etcd lease of %s has ended")
            return self._take_again()
        self._ends_at = asked_at + remaining_s
        return True

    def _confirm_key(self) -> bool:
        """See that the key says what we say, and mend it; whether it is settled."""
        lease = self._lease
        entry = self._client.get(lease.key)
        if entry is None:
            self._say_once("%s was deleted")
            return self._take_again()
        (found,) = leases_in(self._client.config.prefix, [entry])
        if not self._is_ours(found.attrs):
            raise _lost_to(lease, found)
        if found.is_reservation and not lease.is_reservation:
            log.info("%s was made a reservation: it has no etcd lease any more", lease.key)
            self._lease = lease = dataclasses.replace(lease, lease_id=0)
        if (found.attrs, found.lease_id) == (self._attrs, lease.lease_id):
            self._lease = found
            return True
        return self._put(found)

    def _put(self, found: Lease) -> bool:
        """Publish our attributes over what was found; whether nobody was faster."""
        try:
            revision = self._client.compare_and_put(
                found.key, self._attrs.to_json(), found.mod_revision, self._lease.lease_id
            )
        except EtcdLeaseGoneError:
            return False  # the next round takes the subnet again
        if revision is None:
            return False
        self._lease = dataclasses.replace(
            found, attrs=self._attrs, lease_id=self._lease.lease_id, mod_revision=revision
        )
        log.info("%s published as %s", found.key, self._attrs.to_json())
        return True

    def _take_again(self) -> bool:
        """Create the key anew, with a fresh etcd lease, if the subnet is free."""
        prefix = self._client.config.prefix
        listing = self._client.list_prefix(f"{prefix}/{SUBNETS}")
        for other in leases_in(prefix, listing.entries):
            if other.subnet.overlaps(self._lease.subnet):
                if other.key == self._lease.key and self._is_ours(other.attrs):
                    self._lease = other  # of our own first try, whose answer was lost
                    return False
                raise _lost_to(self._lease, other)
        asked_at = self._clock()
        etcd_lease_id = self._client.grant_lease(self._ttl_s)
        lease = create_lease(
            self._client, self._lease.subnet, self._attrs, etcd_lease_id, listing.revision
        )
        if lease is None:
            self._client.revoke_lease(etcd_lease_id)
            return False
        self._lease, self._ends_at = lease, asked_at + self._ttl_s
        log.info("%s is ours again", lease.key)
        return True

    def _is_ours(self, attrs: LeaseAttrs) -> bool:
        """Whether we wrote it, or an operator did for us.

        Our address with another MAC is another daemon's: two of them would fight over the key.
        """
        return attrs in self._published or (
            attrs.same_address(self._attrs) and attrs.macs <= self._attrs.macs
        )


def _lost_to(lease: Lease, other: Lease) -> LeaseLostError:
    holder = other.attrs.public_ip or other.attrs.public_ipv6 or "unknown"
    macs = ", ".join(sorted(other.attrs.macs)) or "none"
    return LeaseLostError(
        f"the subnet {lease.subnet} is held by another node: {other.key} has "
        f"address {holder} and VTEP MAC {macs}"
    )
