"""The control process's loop: signals, threads, clients and descriptors in one thread."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.loop import Loop
from forwarder import rpc


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_waiting_turn(loop: Loop, number: signal.Signals) -> None:
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
    begun = time.monotonic()
    loop.turn(10)
    assert time.monotonic() - begun < 5
    assert loop.stopping


def test_other_thread_ends_a_waiting_turn(loop: Loop) -> None:
    threading.Timer(0.05, loop.wake).start()
    begun = time.monotonic()
    loop.turn(10)
    assert time.monotonic() - begun < 5
    assert not loop.stopping


def test_turn_without_news_ends_in_time(loop: Loop) -> None:
    loop.wake()
    loop.turn(10)
    begun = time.monotonic()
    loop.turn(0.05)
    assert 0.04 < time.monotonic() - begun < 1


def test_readable_has_its_handler_called_until_it_is_forgotten(loop: Loop) -> None:
    reader, writer = os.pipe()
    read: list[bytes] = []
    loop.watch(reader, lambda: read.append(os.read(reader, 10)))
    os.write(writer, b"one")
    loop.turn(1)
    loop.forget(reader)
    os.write(writer, b"two")
    loop.turn(0)
    assert read == [b"one"]
    os.close(reader)
    os.close(writer)


def test_clients_of_the_socket_are_answered_until_they_go(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    listener = rpc.listen(path, "loden control")
    loop.serve(listener, {"greet": lambda name: ({"said": f"hello {name}"}, [])})
    answers: list[object] = []

    def ask() -> None:
        client = rpc.RpcClient(path, "loden control", 5.0)
        answers.extend(client.call("greet", name=name)[0]["said"] for name in ("you", "again"))
        client.close()
        loop.wake()

    client = threading.Thread(target=ask)
    client.start()
    deadline = time.monotonic() + 5
    while client.is_alive() and time.monotonic() < deadline:
        loop.turn(0.1)
    client.join(1)
    assert answers == ["hello you", "hello again"]
    listener.close()
