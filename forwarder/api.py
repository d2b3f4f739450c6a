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
    {op: view}                                   capacity or nil, workers;
                                                 fds, read-only: FIB, rows, per-peer
    {op: lookup, destination}                    reason, mtu_bytes, whole
    {op: check_inbound, source, destination,     reason
                        vtep}
    {op: stats}                                  per_worker, offloads, ...; fd, read-only: rows
    {op: capture}                                workers; fd: the memory of capture_ring.py

`routes` is for whoever runs the forwarder alone; a FIB handed out by `fib` has its own writer,
and `routes` is refused then.  The messages themselves: rpc.py.
"""

import mmap
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forwarder import shm
from forwarder.config import TunnelConfig
from forwarder.counters import Counters, Drop
from forwarder.fib.layout import Capacity, FibMemory
from forwarder.fib.listing import find_route, list_peers
from forwarder.fib.routes import (
    IPAddress,
    NextHop,
    Prefix,
    RemoteVtep,
    next_hop_from_wire,
    next_hop_to_wire,
)
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
    """A FIB of the forwarder, mapped for its writer or for reading; the counters of its readers."""

    memory: FibMemory
    counters: Counters


@dataclass(frozen=True)
class Lookup:
    """What would become of a packet from a pod of this node."""

    route: tuple[Prefix, NextHop] | None
    """The longest prefix that holds its destination, and where that leads."""
    reason: Drop
    mtu_bytes: int
    """The largest packet of its IP version that goes there unfragmented."""
    whole: bool
    """Whether TCP superpackets leave whole, by the tunnel-GSO path."""


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
        return _map(*self.call("fib", capacity=wanted), shm.map_writable)

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

    def view_fib(self) -> SharedFib | None:
        """The FIB that the workers use now, and their counters, for reading; None: there is none.

        It stays readable, but is of the past once a FIB is activated or the forwarder ends.
        """
        reply, fds = self.call("view")
        return _map(reply, fds, shm.map_readonly) if fds else None

    def peers(self) -> list[tuple[RemoteVtep, list[int]]]:
        """Every peer and its counters, see listing.list_peers."""
        shared = self.view_fib()
        return list_peers(shared.memory, shared.counters.per_peer) if shared else []

    def lookup(self, destination: IPAddress) -> Lookup:
        """What would happen to a pod's packets to `destination`."""
        reply, _ = self.call("lookup", destination=str(destination))
        shared = self.view_fib()
        return Lookup(
            find_route(shared.memory, destination) if shared else None,
            Drop[reply["reason"].upper()],
            reply["mtu_bytes"],
            reply["whole"],
        )

    def check_inbound(self, source: IPAddress, destination: IPAddress, vtep: IPAddress) -> Drop:
        """What would happen to a packet between two pods that arrives here, sent by `vtep`."""
        arguments = {"source": str(source), "destination": str(destination), "vtep": str(vtep)}
        return Drop[self.call("check_inbound", **arguments)[0]["reason"].upper()]

    def stats(self) -> dict[str, Any]:
        """Everything that is counted, and the state of workers, sockets, device and offloads."""
        reply, (rows_fd,) = self.call("stats")
        rows = shm.map_readonly(rows_fd)
        os.close(rows_fd)
        counters = Counters(rows, None, reply["workers"])
        for worker, state in enumerate(reply["per_worker"]):
            state["totals"] = counters.totals(worker)
            state["drops"] = counters.drops(worker)
            state["batches"] = counters.batches(worker)
        reply["totals"], reply["drops"] = counters.totals(), counters.drops()
        reply["drop_help"] = {drop.name.lower(): drop.sentence for drop in Drop if drop}
        return reply

    def capture(self) -> tuple[int, int]:
        """(a descriptor of the captures' memory, which is the caller's to close; workers)."""
        reply, (fd,) = self.call("capture")
        return fd, reply["workers"]


def _map(
    reply: dict[str, Any], fds: list[int], map_region: Callable[[int], mmap.mmap]
) -> SharedFib:
    """Maps FIB and per-peer counters by `map_region`, the workers' rows for reading."""
    fib, rows, per_peer = fds
    try:
        memory = FibMemory(map_region(fib), Capacity(**reply["capacity"]))
        counters = Counters(shm.map_readonly(rows), map_region(per_peer), reply["workers"])
    finally:
        for fd in fds:
            os.close(fd)
    return SharedFib(memory, counters)
