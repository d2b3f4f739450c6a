"""Our firewall rules on this host: what they are made of, and when to look after them.

Rules are looked at when ours have to change, when the kernel says that somebody changed some
(control/host_changes.py), and now and then, since the older iptables change without a notice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from control.firewall_tools import FirewallError
from control.forward_accepts import ForwardAccepts
from control.host_state import IPNetwork
from control.masquerade import Masquerade

T = TypeVar("T")

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 60.0
LOOKING_SHARE = 0.1
"""Of the time, at most: where others have thousands of rules, a look takes half a second."""


class Firewall:
    """All rules of one overlay device, in the network namespace of the thread that calls."""

    def __init__(
        self, device: str, networks: Iterable[IPNetwork], *, ip_masq: bool, forward: bool
    ) -> None:
        """
        `device`: name of the overlay device. `networks`: everything the overlay carries.
        `ip_masq`: masquerade what leaves the cluster, or enters it elsewhere.
        `forward`: accept what is forwarded from and to the cluster.
        """
        self._device, self._networks = device, tuple(networks)
        self._ip_masq, self._forward = ip_masq, forward
        self._own: frozenset[IPNetwork] | None = None
        self._table: Masquerade | None = None
        self._accepts = ForwardAccepts(device, self._networks)
        self._said: set[str] = set()
        self._due_at = self._not_before = 0.0

    def follow(self, own_subnets: Iterable[IPNetwork]) -> None:
        """`own_subnets`: what of the networks is on this node."""
        own = frozenset(own_subnets)
        if own == self._own:
            return
        self._own = own
        self._table = Masquerade(
            self._device,
            self._networks,
            sorted(own, key=str),
            ip_masq=self._ip_masq,
            forward=self._forward,
        )
        self._due_at = 0.0

    def note_change(self) -> None:
        """Somebody's rules have changed: `reconcile` shall look at ours before long."""
        self._due_at = min(self._due_at, self._not_before)

    def reconcile(self) -> list[str]:
        """Have our rules in place, and none that is not wanted (any more).

        To be called often; it mostly has nothing to do. Returns what it did, in words. Raises
        FirewallError where masquerading fails.
        """
        began = time.monotonic()
        if began < self._due_at:
            return []
        done = []
        if self._table is not None and self._try(self._table.reconcile, needed=self._ip_masq):
            done.append("firewall rules written")
        if self._forward:
            if self._try(self._accepts.reconcile):
                done.append("forwarding accepted among iptables' rules")
        else:
            self._try(self._accepts.remove)
        ended = time.monotonic()
        self._due_at = ended + LOOK_AGAIN_S
        self._not_before = ended + (ended - began) / LOOKING_SHARE
        return done

    def remove(self) -> None:
        """Take our rules away, if there are any. Raises FirewallError, as `reconcile`."""
        self._try(self._accepts.remove)
        if self._table is not None:
            self._try(self._table.remove, needed=self._ip_masq)

    def _try(self, change: Callable[[], T], *, needed: bool = False) -> T | None:
        """Packets flow without accepts where nobody drops: their failure is said, once."""
        try:
            return change()
        except FirewallError as error:
            if needed:
                raise
            if str(error) not in self._said:
                log.warning("%s", error)
            self._said.add(str(error))
            return None
