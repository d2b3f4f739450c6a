"""The forwarder's api, from the client's side: what control, perf and tests ask of it.

    request                                      reply
    {op: hello}                                  pid, workers, config, running, generation
    {op: configure, config: {...}}               offloads: {name: state}, tap: device or nil
    {op: tunnel_gso, interface, probe, why_not}  state: on, or why not
    {op: fib, capacity: {...}}                   capacity, workers; fds: FIB, rows, per-peer
    {op: activate}                               (the workers have moved to the FIB of `fib`)
    {op: routes, set: [[prefix, next hop]...],   changed, generation
                 delete: [prefix...]}
    {op: list, after: n}                         routes: [[prefix, next hop, row]...], next
    {op: stats}                                  totals, drops, per_worker, offloads, ...

`routes` is for whoever runs the forwarder alone; a FIB handed out by `fib` has its own writer,
and `routes` is refused then.  The messages themselves: rpc.py.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forwarder import shm
from forwarder.config import TunnelConfig
from forwarder.counters import Counters
from forwarder.fib.layout import Capacity, FibMemory
from forwarder.fib.routes import IPAddress, NextHop, Prefix, next_hop_from_wire, next_hop_to_wire
from forwarder.rpc import RpcClient, RpcError

SOCKET_NAME = "forwarder.sock"
ROUTES_PER_MESSAGE = 500


class ForwarderError(RpcError):
    """The forwarder refused a request or cannot be reached; `retryable` as in RpcError."""


def socket_path(run_dir: str | Path) -> Path:
    """Where the forwarder of a run dir listens."""
    return Path(run_dir) / SOCKET_NAME


@dataclass
class SharedFib:
    """A FIB handed out by the forwarder, mapped for writing, and the counters of its readers."""

    memory: FibMemory
    counters: Counters


class ForwarderClient(RpcClient):
    """A connection to a forwarder.  Every method may raise ForwarderError."""

    error_type = ForwarderError

    def __init__(self, run_dir: str | Path, timeout_s: float = 90.0) -> None:
        """`timeout_s` covers the forwarder's first start, when it compiles its kernels."""
        super().__init__(socket_path(run_dir), "forwarder", timeout_s)

    def __enter__(self) -> "ForwarderClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hello(self) -> dict[str, Any]:
        return self.call("hello")[0]

    def configure(self, config: TunnelConfig) -> dict[str, Any]:
        """Opens the device and the sockets.  Workers start with the first FIB."""
        return self.call("configure", config=config.to_wire())[0]

    def try_tunnel_gso(self, interface: str, probe: IPAddress) -> str:
        """Has superpackets leave whole by `interface`, if a probe towards a VTEP gets through.

        The TAP that `configure` names must have been set up.  Returns "on", or why not.
        """
        reply, _ = self.call("tunnel_gso", interface=interface, probe=str(probe), why_not="")
        return str(reply["state"])

    def refuse_tunnel_gso(self, why_not: str) -> None:
        """Keeps that path off, and has the status say why."""
        self.call("tunnel_gso", interface="", probe="", why_not=why_not)

    def new_fib(self, capacity: Capacity | None = None) -> SharedFib:
        """An empty FIB to fill.  The workers keep to the present one until `activate`."""
        wanted = asdict(capacity or Capacity())
        reply, fds = self.call("fib", capacity=wanted)
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
        self.call("activate")

    def set_routes(
        self, routes: Iterable[tuple[Prefix, NextHop]], delete: Iterable[Prefix] = ()
    ) -> int:
        """Has the forwarder itself write routes; returns how many made a difference."""
        sets = [[str(prefix), next_hop_to_wire(hop)] for prefix, hop in routes]
        deletes = [str(prefix) for prefix in delete]
        changed = 0
        while True:
            reply, _ = self.call(
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
            reply, _ = self.call("list", after=after)
            routes += [
                (Prefix.parse(prefix), next_hop_from_wire(hop), row)
                for prefix, hop, row in reply["routes"]
            ]
            after = reply["next"]
        return routes

    def stats(self) -> dict[str, Any]:
        return self.call("stats")[0]
