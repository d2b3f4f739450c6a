"""A process in a pod that sends and receives on request: `python -m perf.agent SOCKET`.

It stays for all measurements on its pod, since a Python with Numba takes a second to start.
Requests come over a Unix socket, which network namespaces do not divide (messages:
forwarder/rpc.py):

    {op: receive, address, port, flows, payload_bytes, trial, most}   counting begins
    {op: send, address, port, flows, ...}                             sent, refused, begun_ns...
    {op: received, sent}                                              received, duplicates...
    {op: echo, address, port} ... {op: quiet}                         answers meanwhile
    {op: ping_pong, address, port, count}                             times_ns, ascending
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np

from forwarder import rpc
from perf import udp_generator as generator
from perf.namespace import Namespace
from perf.nodes import PACKAGES_DIR, wait_for

QUIET_S = 0.05
"""No packet for so long: no more will come."""
START_S = 120.0
"""The first start on a machine compiles."""
REQUEST_S = 90.0
WARM_UP_COUNT = 50

Loop = Callable[[Any], None]
"""Runs, in a thread, until the array it is given holds something else than 0."""


class AgentError(rpc.RpcError):
    """The agent refused a request, or is gone."""


class Agent:
    """What the process does: one thing at a time."""

    def __init__(self) -> None:
        self._ticker = generator.open_ticker()
        self._scratch = np.zeros(4, np.int64)
        self._receiver: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stop = np.zeros(1, np.int64)
        self._tally = np.zeros(5, np.int64)
        self.handlers: rpc.Handlers = {
            "send": self.send,
            "receive": self.receive,
            "received": self.received,
            "echo": self.echo,
            "quiet": self.quiet,
            "ping_pong": self.ping_pong,
        }

    def send(
        self,
        address: str,
        port: int,
        flows: int,
        payload_bytes: int,
        trial: int,
        rate_pps: float,
        seconds: float,
        most: int,
        spread: int,
    ) -> rpc.Reply:
        """As `send_numbered`."""
        target = ip_address(address)
        tally = np.zeros(4, np.int64)
        if spread:
            train = generator.make_addressed_train(payload_bytes, port)
            sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
        else:
            train = generator.make_train(payload_bytes)
            sockets = generator.open_sockets(target, port, flows)
        generator.send_numbered(
            np.array([flow.fileno() for flow in sockets], np.int64),
            train,
            self._ticker,
            trial,
            float(rate_pps),
            int(seconds * 1e9),
            most,
            int(target) if spread else 0,
            spread,
            self._scratch,
            tally,
        )
        for flow in sockets:
            flow.close()
        sent, refused, begun_ns, ended_ns = tally.tolist()
        times = {"begun_ns": begun_ns, "ended_ns": ended_ns}
        return {"sent": sent, "refused": refused, **times}, []

    def receive(
        self, address: str, port: int, flows: int, payload_bytes: int, trial: int, most: int
    ) -> rpc.Reply:
        """Begins to count; `most`: numbers are below it."""
        train = generator.make_train(generator.PAYLOAD_MAX)  # to see what is too long
        seen, highest = np.zeros(most, np.uint8), np.full(flows, -1, np.int64)
        tally, scratch = np.zeros(5, np.int64), np.zeros(2, np.int64)

        def count(stop: Any) -> None:
            assert self._receiver is not None
            fd = self._receiver.fileno()
            generator.receive_numbered(
                fd, train, payload_bytes, trial, seen, highest, scratch, tally, stop
            )

        self._tally = tally
        self._begin(address, port, count)
        return {}, []

    def received(self, sent: int) -> rpc.Reply:
        """What was counted, after all `sent` packets or a silence."""
        tally = self._tally
        progress, changed_at = -1, time.monotonic()
        while tally[generator.RECEIVED] < sent and time.monotonic() - changed_at < QUIET_S:
            if progress != (now := int(tally[: generator.LAST_NS].sum())):
                progress, changed_at = now, time.monotonic()
            time.sleep(0.001)
        self.quiet()
        names = ("received", "duplicates", "reordered", "strange", "last_ns")
        return dict(zip(names, tally.tolist(), strict=True)), []

    def echo(self, address: str, port: int) -> rpc.Reply:
        """Begins to answer."""
        train = generator.make_train(generator.PAYLOAD_MAX, name_bytes=generator.SOCKADDR_BYTES)

        def answer(stop: Any) -> None:
            assert self._receiver is not None
            generator.echo(self._receiver.fileno(), train, stop)

        self._begin(address, port, answer)
        return {}, []

    def ping_pong(self, address: str, port: int, count: int) -> rpc.Reply:
        """Times from question to answer; there are fewer than `count` if some were lost."""
        (asking,) = generator.open_sockets(ip_address(address), port, 1)
        with asking:
            generator.set_wait(asking, generator.REPLY_WAIT_US)
            times_ns = np.zeros(count, np.int64)
            generator.ping_pong(asking.fileno(), times_ns[:WARM_UP_COUNT], self._scratch)
            answered = generator.ping_pong(asking.fileno(), times_ns, self._scratch)
        return {"times_ns": np.sort(times_ns[:answered]).tolist()}, []

    def quiet(self) -> rpc.Reply:
        """Ends receiving or answering; nothing if there is none."""
        if self._thread is not None and self._receiver is not None:
            self._stop[0] = 1
            self._thread.join()
            self._receiver.close()
            self._thread = self._receiver = None
        return {}, []

    def _begin(self, address: str, port: int, loop: Loop) -> None:
        self.quiet()
        self._receiver = generator.open_receiver(
            ip_address(address), port, generator.RECEIVE_WAIT_US
        )
        self._stop = np.zeros(1, np.int64)
        self._thread = threading.Thread(target=loop, args=(self._stop,), daemon=True)
        self._thread.start()


def compile_loops(agent: Agent) -> None:
    """Compiles them, or loads them from the cache: each runs once on loopback."""
    port, loopback = 9, "127.0.0.1"
    agent.receive(loopback, port, flows=1, payload_bytes=64, trial=1, most=10)
    sent, _ = agent.send(loopback, port, 1, 64, 1, 1e4, 0.01, 10, 0)
    agent.received(sent["sent"])
    agent.echo(loopback, port)
    agent.ping_pong(loopback, port, 3)
    agent.quiet()


def main(path: Path) -> None:
    """Serves one client, and ends with it."""
    agent = Agent()
    compile_loops(agent)
    with rpc.listen(path, "agent") as listener:
        listener.setblocking(True)
        client, _ = listener.accept()
    with client:
        handlers = {op: refusing(handler) for op, handler in agent.handlers.items()}
        while rpc.serve_one(client, handlers):
            pass
    agent.quiet()


def refusing(handler: Callable[..., rpc.Reply]) -> Callable[..., rpc.Reply]:
    """What the kernel refuses the agent, such as a network that is down, is its answer."""

    def answer(**arguments: Any) -> rpc.Reply:
        try:
            return handler(**arguments)
        except OSError as error:
            raise AgentError(f"{handler.__name__}: {error.strerror}") from error

    return answer


class AgentClient(rpc.RpcClient):
    """The other end: a connection to a pod's agent."""

    error_type = AgentError

    def __init__(self, path: Path) -> None:
        super().__init__(path, "agent", REQUEST_S)

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One request and the values of its reply.  Raises AgentError."""
        return self.call(op, **arguments)[0]


def start_agent(pod: Namespace, path: Path) -> subprocess.Popen[bytes]:
    """Returns at once; the agent's files are `path` with suffixes."""
    argv = [sys.executable, "-m", "perf.agent", str(path.with_suffix(".sock"))]
    with path.with_suffix(".log").open("wb") as log:
        return pod.popen(argv, stdout=log, stderr=subprocess.STDOUT, cwd=PACKAGES_DIR)


def connect_agent(pod: Namespace, process: subprocess.Popen[bytes], path: Path) -> AgentClient:
    """Waits until it has compiled.  Raises NodeFailed."""

    def connect() -> AgentClient | None:
        try:
            return AgentClient(path.with_suffix(".sock"))
        except AgentError:
            return None

    name = f"the agent in {pod.name}"
    return wait_for(connect, process, name, path.with_suffix(".log"), START_S)


if __name__ == "__main__":
    os.umask(0o077)
    main(Path(sys.argv[1]))
