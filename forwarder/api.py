"""The forwarder's api: msgpack messages over a Unix socket, one request, one reply.

SOCK_SEQPACKET keeps message boundaries; shared memory travels as file descriptors (SCM_RIGHTS).
Both ends are here: `serve_one` for the forwarder, `ForwarderClient` for control, perf and tests.

    request                                      reply
    {op: hello}                                  version, pid, workers, config, generation
    {op: configure, config: {...}}               offloads: {name: state}
    {op: fib, capacity: {...}}                   capacity, workers; fds: FIB, rows, per-peer
    {op: activate}                               (the workers have moved to the FIB of `fib`)
    {op: routes, set: [[prefix, next hop]...],   changed, generation
                 delete: [prefix...]}
    {op: list, after: n}                         routes: [[prefix, next hop, row]...], next
    {op: stats}                                  totals, drops, workers, offloads, ...

`routes` is for whoever runs the forwarder alone; a FIB handed out by `fib` has its own writer,
and `routes` is refused then.  A reply has ok: true, or ok: false with error and retryable.
"""

import array
import errno
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgpack

from forwarder import shm
from forwarder.config import ConfigError, TunnelConfig
from forwarder.counters import Counters
from forwarder.fib.layout import Capacity, FibMemory
from forwarder.fib.routes import NextHop, Prefix, next_hop_from_wire, next_hop_to_wire

SOCKET_NAME = "forwarder.sock"
MESSAGE_BYTES_MAX = 1 << 17
"""Longer lists travel in several messages."""
FDS_MAX = 4
ROUTES_PER_MESSAGE = 500

Reply = tuple[dict[str, Any], list[int]]
"""What a handler answers: values, and file descriptors that go with them."""


class ForwarderError(Exception):
    """The forwarder refused a request or cannot be reached.

    `retryable`: the same request may succeed later (the forwarder is starting or restarting).
    """

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


def socket_path(run_dir: str | Path) -> Path:
    return Path(run_dir) / SOCKET_NAME


def listen(run_dir: str | Path) -> socket.socket:
    """The listening socket, for root alone.  Raises ForwarderError when another forwarder lives."""
    path = socket_path(run_dir)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.connect(str(path))
        raise ForwarderError(f"run dir: another forwarder is running in {run_dir}")
    except FileNotFoundError:
        pass
    except ConnectionRefusedError:
        path.unlink()  # left by a forwarder that was killed
    old_mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old_mask)
    listener.listen()
    listener.setblocking(False)
    return listener


def serve_one(client: socket.socket, handlers: Mapping[str, Callable[..., Reply]]) -> bool:
    """Answers one request; False when the client has gone.  Bad requests get an answer too."""
    try:
        request = _receive(client)[0]
        if request is None:
            return False
        _send(client, *_answer(request, handlers))
    except OSError:
        return False
    return True


def _answer(request: dict[str, Any], handlers: Mapping[str, Callable[..., Reply]]) -> Reply:
    handler = handlers.get(str(request.get("op")))
    if handler is None:
        return _refusal(f"op: {request.get('op')!r} is unknown; there are {', '.join(handlers)}")
    arguments = {name: value for name, value in request.items() if name != "op"}
    try:
        values, fds = handler(**arguments)
    except ForwarderError as error:
        return _refusal(str(error), error.retryable)
    except (ConfigError, ValueError) as error:
        return _refusal(str(error))
    except TypeError as error:  # an argument too many or too few
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


@dataclass
class SharedFib:
    """A FIB handed out by the forwarder, mapped for writing, and the counters of its readers."""

    memory: FibMemory
    counters: Counters


class ForwarderClient:
    """A connection to a forwarder.  Every method may raise ForwarderError."""

    def __init__(self, run_dir: str | Path, timeout_s: float = 60.0) -> None:
        """`timeout_s` covers the forwarder's first start, when it compiles its kernels."""
        self._run_dir = run_dir
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(socket_path(run_dir)))
        except OSError as error:
            self._socket.close()
            raise _unreachable(run_dir, error) from error

    def __enter__(self) -> "ForwarderClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Readable when the forwarder has gone."""
        return self._socket.fileno()

    def hello(self) -> dict[str, Any]:
        return self._call("hello")[0]

    def configure(self, config: TunnelConfig) -> dict[str, Any]:
        """Opens the device and the sockets.  Workers start with the first FIB."""
        return self._call("configure", config=config.to_wire())[0]

    def new_fib(self, capacity: Capacity | None = None) -> SharedFib:
        """An empty FIB to fill.  The workers keep to the present one until `activate`."""
        wanted = asdict(capacity or Capacity())
        reply, fds = self._call("fib", capacity=wanted)
        fib, rows, per_peer = fds
        try:
            memory = FibMemory(shm.map_writable(fib), Capacity(**reply["capacity"]))
            counters = Counters(
                shm.map_readonly(rows), shm.map_readonly(per_peer), reply["workers"]
            )
        finally:
            for fd in fds:
                os.close(fd)
        return SharedFib(memory, counters)

    def activate(self) -> None:
        """Moves the workers over to the FIB that `new_fib` gave last."""
        self._call("activate")

    def set_routes(
        self, routes: Iterable[tuple[Prefix, NextHop]], delete: Iterable[Prefix] = ()
    ) -> int:
        """Has the forwarder itself write routes; returns how many made a difference."""
        sets = [[str(prefix), next_hop_to_wire(hop)] for prefix, hop in routes]
        deletes = [str(prefix) for prefix in delete]
        changed = 0
        while True:
            reply, _ = self._call(
                "routes", set=sets[:ROUTES_PER_MESSAGE], delete=deletes[:ROUTES_PER_MESSAGE]
            )
            changed += reply["changed"]
            sets, deletes = sets[ROUTES_PER_MESSAGE:], deletes[ROUTES_PER_MESSAGE:]
            if not sets and not deletes:
                return changed

    def list_routes(self) -> list[tuple[Prefix, NextHop, int]]:
        """The routes in the FIB the workers use: (prefix, next hop, adjacency row)."""
        routes: list[tuple[Prefix, NextHop, int]] = []
        after = 0
        while after is not None:
            reply, _ = self._call("list", after=after)
            routes += [
                (Prefix.parse(prefix), next_hop_from_wire(hop), row)
                for prefix, hop, row in reply["routes"]
            ]
            after = reply["next"]
        return routes

    def stats(self) -> dict[str, Any]:
        return self._call("stats")[0]

    def _call(self, op: str, **arguments: Any) -> Reply:
        try:
            _send(self._socket, {"op": op, **arguments}, [])
            reply, fds = _receive(self._socket)
        except OSError as error:
            raise _unreachable(self._run_dir, error) from error
        if reply is None:
            raise ForwarderError("the forwarder has closed the connection", retryable=True)
        if not reply.get("ok"):
            raise ForwarderError(str(reply.get("error")), bool(reply.get("retryable")))
        return reply, fds


def _unreachable(run_dir: str | Path, error: OSError) -> ForwarderError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return ForwarderError(f"{socket_path(run_dir)}: permission denied; run as root")
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return ForwarderError(
            f"no forwarder is running in {run_dir} (see --run-dir)", retryable=True
        )
    return ForwarderError(f"the forwarder in {run_dir} does not answer: {error}", retryable=True)
