"""Requests and replies over a Unix socket: msgpack maps, one request, one reply.

SOCK_SEQPACKET keeps message boundaries; file descriptors travel with a reply (SCM_RIGHTS).
A request is {op: name, ...arguments}; a reply has ok: true and values, or ok: false with error
(a sentence) and retryable.
"""

import array
import errno
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack

MESSAGE_BYTES_MAX = 1 << 17
"""Longer lists travel in several messages."""
FDS_MAX = 4

Reply = tuple[dict[str, Any], list[int]]
"""What a handler answers: values, and file descriptors that go with them."""
Handlers = Mapping[str, Callable[..., Reply]]


class RpcError(Exception):
    """A request was refused, or the other side cannot be reached.

    `retryable`: the same request may succeed later (the other side is starting, or restarting).
    """

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


def listen(path: Path, who: str) -> socket.socket:
    """A listening socket for root alone.  Raises RpcError when `who` runs there already."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.connect(str(path))
        raise RpcError(f"run-dir: another {who} is running in {path.parent}")
    except FileNotFoundError:
        pass
    except ConnectionRefusedError:
        path.unlink()  # left by one that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    old_mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old_mask)
    listener.listen()
    listener.setblocking(False)
    return listener


def serve_one(client: socket.socket, handlers: Handlers) -> bool:
    """Answers one request; False when the client has gone.  Bad requests get an answer too."""
    try:
        request, unasked = _receive(client)
        for fd in unasked:
            os.close(fd)
        if request is None:
            return False
        _send(client, *_answer(request, handlers))
    except OSError:
        return False
    return True


def _answer(request: dict[str, Any], handlers: Handlers) -> Reply:
    handler = handlers.get(str(request.get("op")))
    if handler is None:
        return _refusal(f"op: {request.get('op')!r} is unknown; there are {', '.join(handlers)}")
    arguments = {name: value for name, value in request.items() if name != "op"}
    try:
        values, fds = handler(**arguments)
    except RpcError as error:
        return _refusal(str(error), error.retryable)
    except ValueError as error:
        return _refusal(str(error))
    except (TypeError, AttributeError) as error:  # one too many, too few, or of the wrong type
        return _refusal(f"{request['op']}: {error}")
    return {"ok": True, **values}, fds


def _refusal(message: str, retryable: bool = False) -> Reply:
    return {"ok": False, "error": message, "retryable": retryable}, []


def _send(to: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
    ancillary = []
    if fds:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes()))
    to.sendmsg([msgpack.packb(message)], ancillary)


def _receive(source: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and its descriptors; (None, []) at the end of the connection."""
    data, ancillary, _, _ = source.recvmsg(
        MESSAGE_BYTES_MAX, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    if not data:
        return None, list(fds)
    try:
        message = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        return {"op": f"no msgpack message: {error}"}, list(fds)
    return (message if isinstance(message, dict) else {}), list(fds)


class RpcClient:
    """A connection to whoever listens at `path`.  Every method may raise RpcError."""

    error_type = RpcError

    def __init__(self, path: Path, who: str, timeout_s: float) -> None:
        self._path = path
        self._who = who
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise self._unreachable(error) from error

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Readable when the other side has gone."""
        return self._socket.fileno()

    def call(self, op: str, **arguments: Any) -> Reply:
        """One request; the reply's values and descriptors, which are the caller's to close."""
        try:
            _send(self._socket, {"op": op, **arguments}, [])
            reply, fds = _receive(self._socket)
        except OSError as error:
            raise self._unreachable(error) from error
        if reply is None:
            raise self.error_type(f"the {self._who} has closed the connection", retryable=True)
        if not reply.get("ok"):
            raise self.error_type(str(reply.get("error")), bool(reply.get("retryable")))
        return reply, fds

    def _unreachable(self, error: OSError) -> RpcError:
        run_dir = self._path.parent
        if error.errno in (errno.EACCES, errno.EPERM):
            return self.error_type(f"{self._path}: permission denied; run as root")
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            text = f"no {self._who} is running in {run_dir} (see --run-dir)"
            return self.error_type(text, retryable=True)
        return self.error_type(
            f"the {self._who} in {run_dir} does not answer: {error}", retryable=True
        )
