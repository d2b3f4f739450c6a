"""A watch, and what one knows who believes all it delivers."""

from __future__ import annotations

import threading

from control.etcd import EtcdClient
from control.etcd_types import Deletion, Listing
from control.watch import Events, Phase, PrefixWatch, Snapshot, Update
from tests.control.conftest import wait_for


class Follower:
    """Follows from the moment it is made until `watch.stop()`."""

    def __init__(
        self, client: EtcdClient, relist_interval_s: float = 1800, known: Listing | None = None
    ) -> None:
        self.watch = PrefixWatch(client, self._deliver, relist_interval_s, known=known)
        self.updates: list[Update] = []
        self.values: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self.watch.start()

    def _deliver(self, update: Update) -> None:
        with self._lock:
            self.updates.append(update)
            if isinstance(update, Snapshot):
                self.values = {entry.key: entry.value for entry in update.entries}
            elif isinstance(update, Events):
                for event in update.events:
                    if isinstance(event, Deletion):
                        self.values.pop(event.key, None)
                    else:
                        self.values[event.key] = event.value

    @property
    def phase(self) -> Phase:
        return self.watch.status().phase

    @property
    def snapshots(self) -> list[Snapshot]:
        return [update for update in self.updates if isinstance(update, Snapshot)]

    def wait_in_sync(self, timeout_s: float = 15) -> None:
        wait_for(lambda: self.phase is Phase.IN_SYNC, timeout_s)
