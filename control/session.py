"""A node's relations with etcd: config, lease, watch; in threads, reported as messages.

    read the config ──> acquire a subnet ──> keep the lease, watch the prefix
          ^  again each second, for ever        │ Acquired, then Snapshot, Events, Phase; LeaseLost
          └── no config yet, etcd silent,       v
              pool exhausted                 the control loop's queue

Whatever fails is said once, not once a second, and tried again: an operator may be typing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from control.acquire import acquire
from control.backoff import Backoff
from control.etcd import EtcdClient
from control.etcd_types import EtcdClosedError, EtcdError, Listing
from control.lease import Lease, LeaseAttrs, NodeSubnet, config_key
from control.lease_keeper import LeaseKeeper, LeaseLostError
from control.network_config import NetworkConfig
from control.watch import PrefixWatch, Update

log = logging.getLogger(__name__)

CONFIG_RETRY_S = 1.0
"""flannel's pace while it waits for a network config."""


class NoNetworkConfigError(Exception):
    """Nobody has written the network config yet."""

    retryable = True

    def __init__(self, key: str) -> None:
        super().__init__(
            f"there is no network config in etcd at {key}; write one with "
            "'loden init --network 10.5.0.0/16'"
        )


@dataclass(frozen=True)
class Acquired:
    """The node has its subnet."""

    config: NetworkConfig
    config_json: str
    lease: Lease


@dataclass(frozen=True)
class Waiting:
    """Why there is no subnet yet."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """There will be no subnet before somebody changes this node's settings."""

    reason: str


@dataclass(frozen=True)
class LeaseLost:
    """The subnet is another node's now."""

    reason: str


Message = Acquired | Waiting | Failed | LeaseLost | Update


class EtcdSession:
    """Acquires, keeps and watches.  `deliver` is called in threads of the session."""

    def __init__(
        self,
        client: EtcdClient,
        attrs_for: Callable[[NetworkConfig], LeaseAttrs],
        previous: NodeSubnet | None,
        ttl_s: int,
        renew_margin_s: float,
        deliver: Callable[[Message], None],
        known: Listing | None = None,
    ) -> None:
        """`attrs_for` tells, in a thread of ours, what to publish under a config; an error that it
        raises is tried again if it has a true attribute `retryable`.  `known`: what an earlier
        process knew of the prefix last.
        """
        self._client = client
        self._attrs_for = attrs_for
        self._previous = previous
        self._ttl_s = ttl_s
        self._renew_margin_s = renew_margin_s
        self._deliver = deliver
        self._known = known
        self._stopping = threading.Event()
        self._said: set[str] = set()
        self.keeper: LeaseKeeper | None = None
        self.watch: PrefixWatch | None = None
        self._thread = threading.Thread(target=self._run, name="acquire", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends all threads; the lease stays in etcd, for the next start.  Closes the client."""
        self._stopping.set()
        if self.watch is not None:
            self.watch.cancel()
        self._client.close()
        self._thread.join()
        for part in (self.watch, self.keeper):
            if part is not None:
                part.stop()

    def move(self, attrs: LeaseAttrs) -> None:
        """This node's address has changed: publish it, over a connection from the new one."""
        if self.keeper is not None:
            self.keeper.publish(attrs)
        self._client.reconnect()

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                acquired = self._acquire()
            except EtcdClosedError:
                return
            except EtcdError as error:
                self._say(str(error))
                self._stopping.wait(backoff.next_s())
            except Exception as error:
                # No config, a wrong one, no free subnet, no address on the underlay: all mendable.
                if not getattr(error, "retryable", False):
                    self._deliver(Failed(str(error)))
                    return
                self._say(str(error))
                self._stopping.wait(CONFIG_RETRY_S)
            else:
                self._begin(acquired)
                return

    def _say(self, reason: str) -> None:
        if reason not in self._said:  # several may take turns
            log.warning("%s; trying again", reason)
            self._said.add(reason)
        self._deliver(Waiting(reason))

    def _acquire(self) -> Acquired:
        entry = self._client.get(config_key(self._client.config.prefix))
        if entry is None:
            raise NoNetworkConfigError(config_key(self._client.config.prefix))
        config = NetworkConfig.parse(entry.value)
        attrs = self._attrs_for(config)
        lease = acquire(self._client, config, attrs, self._previous, self._ttl_s)
        return Acquired(config, entry.value.decode(), lease)

    def _begin(self, acquired: Acquired) -> None:
        for note in acquired.config.notes:
            log.info("network config: %s", note)
        log.info("this node's subnet is %s", acquired.lease.subnet)
        self.keeper = LeaseKeeper(self._client, acquired.lease, self._ttl_s, self._renew_margin_s)
        self.watch = PrefixWatch(self._client, self._deliver, known=self._known)
        self._deliver(acquired)  # before anything the watch may say
        self.keeper.start(self._lost)
        self.watch.start()

    def _lost(self, lost: LeaseLostError) -> None:
        self._deliver(LeaseLost(str(lost)))
