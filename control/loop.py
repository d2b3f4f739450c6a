"""The event loop of the control process: whoever is readable has its handler called.

Signals, other threads and the clients of a Unix socket are made readable like all the rest, so
that everything happens in one thread, one thing at a time.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
from collections.abc import Callable
from typing import Protocol

from forwarder import rpc

CLIENT_TIMEOUT_S = 1.0
"""Who asks on our socket and does not read the answer shall not hold us up."""


class Readable(Protocol):
    """Something with a descriptor."""

    def fileno(self) -> int: ...


class Loop:
    """To be made, turned and closed in the main thread."""

    def __init__(self) -> None:
        """From now on until `close` SIGTERM and SIGINT set `stopping`."""
        self.stopping = False
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._signals, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno())
        self._handlers = {
            number: signal.signal(number, self._on_stop)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        self.watch(self._signals, lambda: self._signals.recv(4096))
        self.watch(self._wake_fd, lambda: os.eventfd_read(self._wake_fd))

    def _on_stop(self, *_: object) -> None:
        self.stopping = True

    def watch(self, source: int | Readable, handler: Callable[[], object]) -> None:
        """Has `handler` called whenever `source` is readable; it reads, or is called again."""
        self._selector.register(source, selectors.EVENT_READ, handler)

    def forget(self, source: int | Readable) -> None:
        """To be called before `source` is closed."""
        self._selector.unregister(source)

    def serve(self, listener: socket.socket, handlers: rpc.Handlers) -> None:
        """Answers requests of all who connect."""
        self.watch(listener, lambda: self._accept(listener, handlers))

    def _accept(self, listener: socket.socket, handlers: rpc.Handlers) -> None:
        client, _ = listener.accept()
        client.settimeout(CLIENT_TIMEOUT_S)
        self.watch(client, lambda: self._answer(client, handlers))

    def _answer(self, client: socket.socket, handlers: rpc.Handlers) -> None:
        if not rpc.serve_one(client, handlers):
            self.forget(client)
            client.close()

    def wake(self) -> None:
        """Makes a turn that waits go on.  From any thread."""
        os.eventfd_write(self._wake_fd, 1)

    def turn(self, timeout_s: float) -> None:
        """Waits until something is readable, at most `timeout_s`, and has it handled."""
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def close(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._signals.close()
        self._wakeup.close()
