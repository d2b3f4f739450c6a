"""The other end of `perf/agent.py`: an agent in a pod, and how to ask it."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack

from perf.nodes import PACKAGES_DIR, log_tail
from perf.place import Place

START_S = 120.0
"""The first start on a machine compiles."""
REQUEST_S = 90.0
READ_BYTES = 1 << 16
AGENT = (sys.executable, "-m", "perf.agent")


class AgentError(RuntimeError):
    """The agent refused a request, or is gone."""


class AgentClient:
    def __init__(self, place: Place, log_path: Path, argv: Sequence[str] = AGENT) -> None:
        """Starts an agent, and does not wait for it.  Raises CommandError."""
        self._name = f"the agent in {place.name}"
        self._log_path = log_path
        with log_path.open("wb") as log:
            self.process = place.popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=PACKAGES_DIR,
            )
        self._replies = msgpack.Unpacker()

    def wait_until_ready(self) -> None:
        """Until it has compiled.  Raises AgentError."""
        self.ask("ready", timeout_s=START_S)

    def ask(self, op: str, /, *, timeout_s: float = REQUEST_S, **arguments: Any) -> dict[str, Any]:
        """One request and the values of its reply.  Raises AgentError."""
        request, replies = self.process.stdin, self.process.stdout
        assert request is not None
        assert replies is not None
        try:
            request.write(msgpack.packb({"op": op, **arguments}))
            request.flush()
            reply = self._read_reply(replies.fileno(), time.monotonic() + timeout_s)
        except (BrokenPipeError, EOFError):
            raise AgentError(f"{self._name} has ended:\n{log_tail(self._log_path)}") from None
        except TimeoutError:
            self.process.kill()  # else its late reply would be taken for that to the next request
            raise AgentError(f"{self._name} did not answer in {timeout_s:g} s: {op}") from None
        if "error" in reply:
            raise AgentError(f"{self._name}: {reply['error']}")
        return reply

    def _read_reply(self, fd: int, deadline: float) -> dict[str, Any]:
        while True:
            for reply in self._replies:
                return dict(reply)
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([fd], [], [], left_s)[0]:
                raise TimeoutError
            if not (data := os.read(fd, READ_BYTES)):
                raise EOFError
            self._replies.feed(data)

    def close(self) -> None:
        """The agent ends by itself; whoever built its place makes sure of that."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended with a request unread
                self.process.stdin.close()
