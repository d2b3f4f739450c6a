"""What a node puts on disk while all is well, and what it makes of that when etcd is silent."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from control.acquire import leases_in
from control.etcd_types import Entry, Listing
from control.lease import Lease, NodeSubnet
from control.network_config import NetworkConfig, NetworkConfigError
from control.state import State, StateDamagedError, StateError, StateFile, new_vtep_mac
from control.subnet_env import SubnetEnvError, read_subnet_env

log = logging.getLogger(__name__)

GATHER_S = 2.0
"""Changes are gathered this long before they are written."""


@dataclass(frozen=True)
class LastGood:
    """Enough to forward without etcd."""

    config: NetworkConfig
    lease: Lease
    entries: tuple[Entry, ...]
    revision: int
    saved_on: str
    """Local date and time."""


class SavedState:
    """The state file of one node, and when to write it next."""

    def __init__(self, state_dir: Path, prefix: str) -> None:
        """Makes this node's MAC at the first start of all.  Raises StateError."""
        self._file = StateFile(state_dir)
        self._prefix = prefix
        self._state = self._load()
        self._error: str | None = None
        """Why the last `write` failed."""
        self.due_at: float | None = None
        """When to `write`, by time.monotonic(); None: there is nothing to write."""

    def _load(self) -> State:
        state = None
        try:
            state = self._file.load()
        except StateDamagedError as error:
            log.error("%s", error)
        if state is None:
            state = State(vtep_mac=new_vtep_mac())
            self._file.save(state)
        return state

    @property
    def vtep_mac(self) -> bytes:
        """6 bytes; the same for the life of the state dir."""
        return self._state.vtep_mac

    @property
    def age_s(self) -> float | None:
        """Seconds since the routes were saved; None: they never were."""
        return time.time() - self._state.saved_at if self._state.saved_at else None

    def last_good(self) -> LastGood | None:
        """None if this node never had a subnet, or the file is of no use any more."""
        state = self._state
        if state.network_config is None or state.lease is None:
            return None
        if not state.lease.key.startswith(f"{self._prefix}/"):
            return None  # of another network
        try:
            config = NetworkConfig.parse(state.network_config)
        except NetworkConfigError as error:
            log.warning("the saved state is of no use: %s", error)
            return None
        (lease,) = leases_in(self._prefix, [state.lease])
        saved_on = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.saved_at))
        return LastGood(config, lease, state.entries, state.revision, saved_on)

    def previous_subnet(self, subnet_file: Path) -> NodeSubnet | None:
        """The subnet to ask for again: subnet.env's, as flannel does, else the saved one."""
        try:
            if (env := read_subnet_env(subnet_file)) is not None:
                return env.node_subnet
        except (SubnetEnvError, OSError) as error:
            log.warning("%s", error)
        saved = self.last_good()
        return saved.lease.subnet if saved else None

    def known(self, lease_ttl_s: float) -> Listing | None:
        """What was in etcd, for the watch to compare; None if nothing is known that may still hold.

        Leases that nobody has renewed for `lease_ttl_s` are over.
        """
        state = self._state
        is_recent = 0 <= time.time() - state.saved_at < lease_ttl_s
        if state.cluster_id == 0 or not is_recent or self.last_good() is None:
            return None
        return Listing(state.entries, state.revision, state.cluster_id)

    def note_config(self, network_config: str) -> None:
        """Keeps the network config, JSON as it is in etcd, for the next `write`."""
        self._state = replace(self._state, network_config=network_config)

    def note_change(self) -> None:
        """Something worth saving has changed."""
        self.due_at = self.due_at or time.monotonic() + GATHER_S

    def write(
        self, own_key: str, entries: Iterable[Entry], revision: int = 0, cluster_id: int = 0
    ) -> None:
        """Puts on disk what is believed now.  A disk that refuses is no reason to stop packets."""
        self.due_at = None
        kept = tuple(entries)
        own = next((entry for entry in kept if entry.key == own_key), self._state.lease)
        self._state = replace(
            self._state,
            lease=own,
            entries=kept,
            revision=revision,
            cluster_id=cluster_id,
            saved_at=time.time(),
        )
        try:
            self._file.save(self._state)
        except StateError as error:
            if self._error != str(error):
                log.error("%s", error)
            self._error = str(error)
        else:
            self._error = None
