"""The forwarder of this node, whichever process it is at the moment, kept in step with the RIB.

unreached ── it answers: configured, all routes loaded ──> linked
    ^                                                        │
    └── it has died, or refuses what it is told ─────────────┘
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from pathlib import Path

from control.exits import ControlError
from control.fib_link import FibLink
from control.lease import IPNetwork
from control.loop import Loop
from control.rib import Route
from forwarder.api import ForwarderError
from forwarder.config import TunnelConfig
from forwarder.fib.writer import FibFull

log = logging.getLogger(__name__)

RETRY_S = 0.1
FULL_RETRY_S = 10.0
"""A FIB too small for all routes is tried again this often: some may have gone."""
PATIENCE_S = 10.0
"""A new forwarder may meet its predecessor's device or port this long; then it is an error."""


class ForwarderKeeper:
    """Control's side of the forwarder.  For the control loop's thread alone."""

    def __init__(self, run_dir: Path, loop: Loop) -> None:
        """`loop`: tells us when the forwarder has gone."""
        self.link: FibLink | None = None
        self.error: str | None = "the forwarder has not been reached yet"
        """Why it moves no packets; None: it does."""
        self.due_at = 0.0
        """When to try `reach` again, by time.monotonic()."""
        self._run_dir = run_dir
        self._loop = loop
        self._lost_at: float | None = None
        self._began_at = time.monotonic()

    def reach(self, wanted: TunnelConfig, routes: Mapping[IPNetwork, Route]) -> bool:
        """Configures the forwarder that runs now and gives it all routes; whether that worked.

        Raises ControlError where it refuses for good.
        """
        self.due_at = time.monotonic() + RETRY_S
        link = None
        try:
            link = FibLink(self._run_dir, wanted)
            link.load(routes)
        except (ForwarderError, FibFull) as error:
            if link is not None:
                link.close()
            self._note_refusal(error)
            return False
        self._loop.watch(link, self.check)
        self.link, self.error, self._lost_at = link, None, None
        offloads = ", ".join(f"{name} {state}" for name, state in link.offloads.items())
        log.info("the forwarder has %d routes; offloads: %s", link.route_count, offloads)
        return True

    def _note_refusal(self, error: ForwarderError | FibFull) -> None:
        if isinstance(error, FibFull):
            self.due_at += FULL_RETRY_S
            if self.error != str(error):
                log.error("%s", error)
        elif not error.retryable and not self._is_restarting():
            raise ControlError(str(error)) from error
        self.error = str(error)

    def _is_restarting(self) -> bool:
        return self._lost_at is not None and time.monotonic() < self._lost_at + PATIENCE_S

    def apply(self, changes: Mapping[IPNetwork, Route | None]) -> None:
        """Follows changes of the RIB; without a forwarder the next one gets all routes anyway."""
        if self.link is None:
            return
        try:
            self.link.apply(changes)
        except FibFull as error:
            # Nothing of it was applied: a FIB made anew may hold what a worn one cannot.
            self._lose(str(error))

    def keep_superpackets(
        self, interface: str, address: IPv4Address | None, routes: Iterable[Route]
    ) -> None:
        """Has superpackets leave whole where the host lets them, see SuperpacketPath."""
        if self.link is None:
            return
        try:
            self.link.superpackets.keep(interface, address, routes)
        except ForwarderError as error:
            self._lose(str(error))

    def note_firewall_change(self) -> None:
        """The next `keep_superpackets` tries anew."""
        if self.link is not None:
            self.link.superpackets.reconsider()

    def reconfigure(self, wanted: TunnelConfig) -> None:
        """Takes up other addresses or another MTU."""
        if self.link is None or self.link.config == wanted:
            return
        try:
            self.link.reconfigure(wanted)
        except ForwarderError as error:
            self._lose(str(error))

    @property
    def gone_s(self) -> float | None:
        """How long there has been none that we reach; None: there is one."""
        if self.link is not None:
            return None
        return time.monotonic() - (self._lost_at or self._began_at)

    def silence(self) -> str | None:
        """Which of its workers has given no sign of life for too long; None: none."""
        return None if self.link is None else self.link.silence()

    def check(self) -> None:
        """Notices that the forwarder has died."""
        if self.link is not None and self.link.is_gone:
            self._lose("the forwarder has gone")

    def _lose(self, reason: str) -> None:
        log.warning("%s; waiting for the next one", reason)
        self.close()
        self._lost_at, self.error, self.due_at = time.monotonic(), reason, 0.0

    def close(self) -> None:
        """Lets go of it; it goes on with the routes it has."""
        if self.link is not None:
            self._loop.forget(self.link)
            self.link.close()
            self.link = None
