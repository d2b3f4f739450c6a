"""Requests and replies over a Unix socket, good ones and bad ones."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from forwarder.rpc import Reply, RpcClient, RpcError, listen, serve_one


def add(a: int, b: int) -> Reply:
    return {"sum": a + b}, []


def refuse(retryable: bool) -> Reply:
    raise RpcError("not now", retryable)


def complain(number: str) -> Reply:
    return {"number": int(number)}, []


def shout(text: str) -> Reply:
    return {"text": text.upper()}, []


def lend() -> Reply:
    reader, writer = os.pipe()
    os.write(writer, b"lent")
    os.close(writer)
    lent.append(reader)
    return {}, [reader]


lent: list[int] = []
HANDLERS: dict[str, Callable[..., Reply]] = {
    "add": add,
    "refuse": refuse,
    "complain": complain,
    "shout": shout,
    "lend": lend,
}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A server for one client at a time."""
    path = tmp_path / "run" / "server.sock"
    listener = listen(path, "server")
    listener.setblocking(True)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    yield path
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    while lent:
        os.close(lent.pop())


def serve(listener: socket.socket) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client:
            while serve_one(client, HANDLERS):
                pass


@pytest.fixture
def client(path: Path) -> Iterator[RpcClient]:
    client = RpcClient(path, "server", timeout_s=5)
    yield client
    client.close()


def test_request_is_answered(client: RpcClient) -> None:
    assert client.call("add", a=1, b=2) == ({"ok": True, "sum": 3}, [])


def test_descriptors_travel_with_the_reply(client: RpcClient) -> None:
    _, [fd] = client.call("lend")
    assert os.read(fd, 10) == b"lent"
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("subtract", {}, "op: 'subtract' is unknown; there are add, refuse, complain, shout, lend"),
        ("shout", {"text": 5}, "shout: 'int' object has no attribute 'upper'"),
        ("add", {"a": 1}, "add: .*missing 1 required positional argument: 'b'"),
        ("add", {"a": 1, "b": "2"}, "add: unsupported operand"),
        ("complain", {"number": "x"}, "invalid literal"),
        ("refuse", {"retryable": False}, "not now"),
    ],
)
def test_bad_request_is_answered_and_the_connection_lives_on(
    client: RpcClient, op: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(RpcError, match=message) as caught:
        client.call(op, **arguments)
    assert not caught.value.retryable
    assert client.call("add", a=1, b=1)[0]["sum"] == 2


def test_refusal_says_whether_to_try_again(client: RpcClient) -> None:
    with pytest.raises(RpcError, match="not now") as caught:
        client.call("refuse", retryable=True)
    assert caught.value.retryable


@pytest.mark.parametrize("data", [b"\xc1", msgpack.packb([1, 2]), msgpack.packb({"op": []})])
def test_message_that_is_no_request_is_refused(path: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
        raw.settimeout(5)
        raw.connect(str(path))
        raw.send(data)
        reply = msgpack.unpackb(raw.recv(4096))
    assert reply["ok"] is False
    assert "is unknown" in reply["error"]


def test_second_server_is_refused_and_a_dead_ones_socket_is_taken_over(path: Path) -> None:
    with pytest.raises(RpcError, match=f"another server is running in {path.parent}"):
        listen(path, "server")
    dead = path.with_name("dead.sock")
    listen(dead, "server").close()
    assert dead.exists()
    listen(dead, "server").close()


def test_socket_is_for_its_owner_alone(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_nobody_there_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(RpcError, match=f"no server is running in {tmp_path}") as caught:
        RpcClient(tmp_path / "none.sock", "server", timeout_s=1)
    assert caught.value.retryable
