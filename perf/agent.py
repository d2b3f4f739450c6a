"""A process in a pod that sends and receives on request: `python -m perf.agent`.

It stays for all measurements on its pod, since a Python with Numba takes a second to start.
Requests come on standard input and replies go to standard output, both as msgpack maps one after
the other: so a pod may be anywhere that a command can be run, on another machine by ssh for one.
It ends with its input.

    {op: ready}                                            {}
    {op: receive, address, port, flows, sizes, ...}        {}  counting begins
    {op: send, address, port, flows, sizes, rate_pps...}   {sent, refused, begun_ns, ended_ns}
    {op: received, sent}                                   {received, duplicates, reordered...}
    {op: echo, address, port} ... {op: quiet}              {}  answers meanwhile
    {op: ping_pong, address, port, count, seconds}         {asked, times_ns: ascending}

What cannot be done is answered with {error: a sentence}.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, BinaryIO

import msgpack
import numpy as np

from perf import udp_generator as generator

QUIET_S = 0.05
"""No packet for so long: no more will come."""
WARM_UP_COUNT = 50

Values = dict[str, Any]
Loop = Callable[[Any], None]
"""Runs, in a thread, until the array it is given holds something else than 0."""


class Agent:
    """What the process does: one thing at a time."""

    def __init__(self) -> None:
        self._ticker = generator.open_ticker()
        self._scratch = np.zeros(4, np.int64)
        self._receiver: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stop = np.zeros(1, np.int64)
        self._tally = np.zeros(6, np.int64)
        self.handlers: dict[str, Callable[..., Values]] = {
            "ready": self.ready,
            "send": self.send,
            "receive": self.receive,
            "received": self.received,
            "echo": self.echo,
            "quiet": self.quiet,
            "ping_pong": self.ping_pong,
        }

    def ready(self) -> Values:
        """Compiles the loops, or loads them from the cache: each runs once on loopback."""
        port, loopback = 9, "127.0.0.1"
        self.receive(loopback, port, flows=1, sizes=[64], trial=1, most=10)
        sent = self.send(loopback, port, 1, [64], 1, 1e4, 0.01, 10, 0)["sent"]
        self.received(sent)
        self.echo(loopback, port)
        self.ping_pong(loopback, port, 3, 1.0)
        return self.quiet()

    def send(
        self,
        address: str,
        port: int,
        flows: int,
        sizes: Sequence[int],
        trial: int,
        rate_pps: float,
        seconds: float,
        most: int,
        spread: int,
    ) -> Values:
        """As `send_numbered`."""
        target = ip_address(address)
        payload_sizes = generator.check_sizes(sizes)
        tally = np.zeros(4, np.int64)
        if spread:
            train = generator.make_addressed_train(port)
            sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
        else:
            train = generator.make_train()
            sockets = generator.open_sockets(target, port, flows)
        generator.send_numbered(
            np.array([flow.fileno() for flow in sockets], np.int64),
            train,
            payload_sizes,
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
        return dict(zip(("sent", "refused", "begun_ns", "ended_ns"), tally.tolist(), strict=True))

    def receive(
        self, address: str, port: int, flows: int, sizes: Sequence[int], trial: int, most: int
    ) -> Values:
        """Begins to count what comes to that address; `most`: numbers are below it."""
        payload_sizes = generator.check_sizes(sizes)
        train = generator.make_train()  # with more room, to see what is too long
        seen, highest = np.zeros(most, np.uint8), np.full(flows, -1, np.int64)
        tally, scratch = np.zeros(6, np.int64), np.zeros(2, np.int64)

        def count(stop: Any) -> None:
            assert self._receiver is not None
            fd = self._receiver.fileno()
            generator.receive_numbered(
                fd, train, payload_sizes, trial, seen, highest, scratch, tally, stop
            )

        self._tally = tally
        self._begin(address, port, count)
        return {}

    def received(self, sent: int) -> Values:
        """What was counted, after all `sent` packets or a silence."""
        tally = self._tally
        progress, changed_at = -1, time.monotonic()
        while tally[generator.RECEIVED] < sent and time.monotonic() - changed_at < QUIET_S:
            if progress != (now := int(tally[: generator.FIRST_NS].sum())):
                progress, changed_at = now, time.monotonic()
            time.sleep(0.001)
        uncounted = generator.count_drops(self._receiver) if self._receiver else 0
        self.quiet()
        names = ("received", "duplicates", "reordered", "strange", "first_ns", "last_ns")
        return {**dict(zip(names, tally.tolist(), strict=True)), "uncounted": uncounted}

    def echo(self, address: str, port: int) -> Values:
        """Begins to answer, from the address that is asked."""
        train = generator.make_train(generator.SOCKADDR_BYTES)

        def answer(stop: Any) -> None:
            assert self._receiver is not None
            generator.echo(self._receiver.fileno(), train, stop)

        self._begin(address, port, answer)
        return {}

    def ping_pong(self, address: str, port: int, count: int, seconds: float) -> Values:
        """Asks up to `count` times, for so long; the times from question to answer."""
        (asking,) = generator.open_sockets(ip_address(address), port, 1)
        with asking:
            generator.set_wait(asking, generator.REPLY_WAIT_US)
            times_ns, duration_ns = np.zeros(count, np.int64), int(seconds * 1e9)
            warm_up_ns = times_ns[:WARM_UP_COUNT]
            generator.ping_pong(asking.fileno(), warm_up_ns, duration_ns // 4, self._scratch)
            asked, answered = generator.ping_pong(
                asking.fileno(), times_ns, duration_ns, self._scratch
            )
        return {"asked": int(asked), "times_ns": np.sort(times_ns[:answered]).tolist()}

    def quiet(self) -> Values:
        """Ends receiving or answering; nothing if there is none."""
        if self._thread is not None and self._receiver is not None:
            self._stop[0] = 1
            self._thread.join()
            self._receiver.close()
            self._thread = self._receiver = None
        return {}

    def _begin(self, address: str, port: int, loop: Loop) -> None:
        self.quiet()
        self._receiver = generator.open_receiver(
            ip_address(address), port, generator.RECEIVE_WAIT_US
        )
        self._stop = np.zeros(1, np.int64)
        self._thread = threading.Thread(target=loop, args=(self._stop,), daemon=True)
        self._thread.start()


def serve(agent: Agent, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answers until there are no more requests.  `requests` is unbuffered."""
    for request in msgpack.Unpacker(requests):
        replies.write(msgpack.packb(answer(agent, **request)))
    agent.quiet()


def answer(agent: Agent, op: str, **arguments: Any) -> Values:
    """What the handler says, or why it cannot; a network that is down is an answer too."""
    try:
        if op not in agent.handlers:
            raise ValueError(f"'{op}' is unknown; there are {', '.join(agent.handlers)}")
        return agent.handlers[op](**arguments)
    except (ValueError, TypeError) as error:
        return {"error": f"{op}: {error}"}
    except OSError as error:
        return {"error": f"{op}: {error.strerror}"}


def main() -> None:
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))  # a socket per flow
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed is no reply
    with os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as requests:
        serve(Agent(), requests, replies)


if __name__ == "__main__":
    main()
