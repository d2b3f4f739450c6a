"""A forwarder that moves no packets: it hands out FIBs, and tells what has been stored in them.

Control cannot tell it from a real one, so that what is measured is control itself, down to the
last store into shared memory.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from forwarder import rpc, shm
from forwarder.api import socket_path
from forwarder.counters import COLUMNS, IDLE, Total, per_peer_bytes, rows_bytes
from forwarder.fib.layout import Capacity, FibMemory
from forwarder.wire.vxlan import INNER_DESTINATION_AT

WORKERS = 1


class FibReceiver:
    """Serves one control process, in a thread of its own, from entering to leaving."""

    def __init__(self, run_dir: Path) -> None:
        self.memory: FibMemory | None = None
        """The FIB in use."""
        self.activated_at: float | None = None
        """When it came into use: complete, by time.monotonic()."""
        self._filling: FibMemory | None = None
        self._fds: list[int] = []
        self._listener = rpc.listen(socket_path(run_dir), "forwarder")
        self._ending, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="fib receiver", daemon=True)
        self._handlers: rpc.Handlers = {
            "hello": lambda: ({"pid": os.getpid(), "workers": WORKERS}, []),
            "configure": lambda config: ({"offloads": {}, "tap": None}, []),
            "tunnel_gso": lambda interface, probe, why_not: ({"state": "off"}, []),
            "fib": self._hand_out,
            "activate": self._activate,
        }

    def __enter__(self) -> FibReceiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        self._thread.join()
        self._listener.close()
        self._ending.close()
        for fd in self._fds:
            os.close(fd)

    def ipv4_routes(self) -> int:
        """How many /24s lead somewhere."""
        return 0 if self.memory is None else int(np.count_nonzero(self.memory.view.tbl24))

    def mac_of(self, slot: int) -> bytes:
        """The MAC that inner frames get which are sent to the IPv4 /24 with this number."""
        assert self.memory is not None
        row = self.memory.view.tbl24[slot]
        return self.memory.view.adjacencies[row][INNER_DESTINATION_AT:][:6].tobytes()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._ending, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._ending:
                        self._hang_up(selector)
                        return
                    if key.fileobj is self._listener:
                        client, _ = self._listener.accept()
                        selector.register(client, selectors.EVENT_READ)
                    else:
                        self._answer(key.fileobj, selector)

    def _answer(self, client: Any, selector: selectors.BaseSelector) -> None:
        if not rpc.serve_one(client, self._handlers):
            selector.unregister(client)
            client.close()

    def _hang_up(self, selector: selectors.BaseSelector) -> None:
        for key in list(selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket) and key.fileobj is not self._listener:
                selector.unregister(key.fileobj)
                key.fileobj.close()

    def _hand_out(self, capacity: dict[str, int]) -> rpc.Reply:
        wanted = Capacity(**capacity)
        fib = shm.create("loden-fib", wanted.total_bytes)
        rows = shm.create("loden-counters", rows_bytes(WORKERS))
        per_peer = shm.create("loden-per-peer", per_peer_bytes(WORKERS, wanted.adjacencies))
        # The one worker there would be holds nothing: no row has to wait for it.
        of_worker = np.frombuffer(shm.map_writable(rows), np.int64, COLUMNS)
        of_worker[Total.GENERATION_SEEN] = IDLE
        self._filling = FibMemory(shm.map_readonly(fib), wanted)
        fds = [fib, rows, per_peer]
        self._fds += fds
        return {"capacity": asdict(wanted), "workers": WORKERS}, fds

    def _activate(self) -> rpc.Reply:
        self.memory, self.activated_at = self._filling, time.monotonic()
        return {}, []
