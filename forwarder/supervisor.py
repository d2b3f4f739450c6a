"""The forwarder process: owns the TUN queues, the sockets and the shared memory; runs workers.

    unconfigured --configure--> configured --activate--> running

It keeps every descriptor open, so that a worker that dies is replaced without losing what is
queued for it.  One thread, one selector; its own work is rare (requests, dead workers).
"""

import gc
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from ipaddress import ip_address
from itertools import zip_longest
from typing import Any

from forwarder import (
    api,
    capabilities,
    rehearsal,
    rpc,
    sandbox,
    selftest,
    shm,
    stats,
    worker,
)
from forwarder.api import ForwarderError
from forwarder.capture_ring import memory_bytes, ring_of
from forwarder.config import ForwarderOptions, TunnelConfig
from forwarder.counters import IDLE, Counters, Total, rows_bytes
from forwarder.crew import Crew, Duty
from forwarder.endpoint import Endpoint
from forwarder.fib.layout import Capacity, FibView
from forwarder.fib.listing import list_routes
from forwarder.fib.routes import NextHop, Prefix, next_hop_from_wire, next_hop_to_wire
from forwarder.fib.writer import FibFull
from forwarder.held_fib import HeldFib
from forwarder.jit import CACHE_FOLDER, prune_cache
from forwarder.path_mtu import REFRESH_S
from forwarder.rpc import Reply
from forwarder.tunnel import Tunnel

log = logging.getLogger("loden.forwarder")


class Supervisor:
    """Serves the api and keeps the workers alive until told to stop."""

    def __init__(self, options: ForwarderOptions) -> None:
        """Raises ConfigError for a user that is not there."""
        self.options = options
        count = len(options.cpus)
        self._limits = sandbox.prepare(options.user, options.seccomp)
        self._crew = Crew(options.cpus, self._limits, options.busy_poll_us * 1000)
        self._endpoint = Endpoint(options)
        self._fib: HeldFib | None = None
        self._pending: HeldFib | None = None
        self._rows_fd = shm.create("loden-counters", rows_bytes(count))
        self._readonly_rows_fd = shm.reopen_readonly(self._rows_fd)
        self._rows = shm.map_writable(self._rows_fd)
        self._capture_fd = shm.create("loden-capture", memory_bytes(count))
        self._capture = shm.map_writable(self._capture_fd)
        # No worker holds an index yet: whoever fills the first FIB has none to wait for.
        Counters(self._rows, None, count).rows[:, Total.GENERATION_SEEN] = IDLE
        self._stopping = False
        self._refresh_at = 0.0
        self._started_at = time.monotonic()
        self._asking: socket.socket | None = None
        """Whose request is being answered."""
        self._controller: socket.socket | None = None
        """Who fills the FIB in use, as long as it is connected."""
        self._controller_gone_at = self._started_at
        self._handlers: dict[str, Callable[..., Reply]] = {
            "hello": self.hello,
            "configure": self.configure,
            "tunnel_gso": self.try_tunnel_gso,
            "fib": self.new_fib,
            "activate": self.activate,
            "routes": self.write_routes,
            "list": self.list_routes,
            "view": self.view_fib,
            "lookup": self.lookup,
            "check_inbound": self.check_inbound,
            "stats": self.stats,
            "capture": self.share_capture,
        }

    @property
    def config(self) -> TunnelConfig | None:
        """What was asked for last and is open now."""
        return self._endpoint.config

    # ---- the life of the process ----------------------------------------------------------------

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT.  Raises RpcError if another one is running."""
        listener = rpc.listen(api.socket_path(self.options.run_dir), "forwarder")
        signals, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes the selector
        try:
            started = time.monotonic()
            self._endpoint.heed(selftest.run())
            worker.compile_kernels()
            if CACHE_FOLDER is not None:
                prune_cache(CACHE_FOLDER)
            gc.collect()
            gc.freeze()  # the workers share this memory: the collector shall not touch it
            log.info("kernels ready after %.1f s", time.monotonic() - started)
            capabilities.keep_only(capabilities.OF_FORWARDER | capabilities.to_read())
            self._serve(listener, signals)
        finally:
            self._crew.stop()
            listener.close()
            api.socket_path(self.options.run_dir).unlink(missing_ok=True)
            self._endpoint.close()
            signal.set_wakeup_fd(-1)

    def _on_stop(self, *_: object) -> None:
        self._stopping = True

    def _serve(self, listener: socket.socket, signals: socket.socket) -> None:
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(signals, selectors.EVENT_READ)
        while not self._stopping:
            for key, _ in selector.select(self._seconds_to_next_task()):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready is listener:
                    client, _ = listener.accept()
                    selector.register(client, selectors.EVENT_READ)
                elif ready is signals:
                    signals.recv(4096)
                elif not self._serve_client(ready):
                    selector.unregister(ready)
                    ready.close()
            self._crew.look_after()
            self._refresh_path_mtus()
        selector.close()

    def _serve_client(self, client: socket.socket) -> bool:
        """Whether it is still there."""
        self._asking = client
        is_there = rpc.serve_one(client, self._handlers)
        if client is self._controller and not is_there:
            self._controller, self._controller_gone_at = None, time.monotonic()
        return is_there

    def _seconds_to_next_task(self) -> float | None:
        """None: nothing is due until somebody asks for something."""
        if self._fib is None:
            return None
        return max(0.0, min(self._refresh_at, self._crew.due_at) - time.monotonic())

    def _refresh_path_mtus(self) -> None:
        """Has the workers know what fits the way to the peers they send to."""
        if self._fib is None or self.config is None or time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + REFRESH_S
        self._endpoint.offload_states()
        config = self.config
        changed = self._fib.path_mtus.refresh(config.addresses, config.mtu_bytes)
        if changed:
            said = [f"{limit or 'no limit'} to {peer}" for peer, limit in changed.items()]
            more = f" and {len(said) - 8} more peers" if len(said) > 8 else ""
            log.info("bytes of the largest inner packet: %s%s", ", ".join(said[:8]), more)

    # ---- requests -------------------------------------------------------------------------------

    def hello(self) -> Reply:
        """Who we are and what state we are in."""
        return {
            "pid": os.getpid(),
            "workers": len(self._crew.members),
            "config": self.config.to_wire() if self.config else None,
            "running": self._fib is not None,
            "generation": int(self._fib.memory.header["generation"]) if self._fib else 0,
        }, []

    def configure(self, config: dict[str, Any]) -> Reply:
        """Opens what the config asks for; what stays the same is kept, queued packets and all."""
        new = TunnelConfig.from_wire(config)
        if new != self.config:
            self._crew.stop()
            try:
                self._endpoint.open(new)
            finally:
                if self._fib is not None and self.config is not None:
                    self._start_crew()
        return {"offloads": self._endpoint.offload_states(), "tap": self._endpoint.tap_name}, []

    def try_tunnel_gso(self, interface: str, probe: str, why_not: str) -> Reply:
        """Switches the tunnel-GSO path on if a probe leaves by `interface`, off with a reason."""
        return {"state": self._endpoint.try_tunnel_gso(interface, probe, why_not)}, []

    def new_fib(self, capacity: dict[str, int]) -> Reply:
        """Makes an empty FIB for the caller to fill."""
        if self._pending is not None:
            self._pending.close()
        self._pending = HeldFib(Capacity(**capacity), self._rows, len(self._crew.members))
        fds = [self._pending.fd, self._rows_fd, self._pending.per_peer_fd]
        return {"capacity": capacity, "workers": len(self._crew.members)}, fds

    def activate(self) -> Reply:
        """Moves the workers to the FIB handed out last."""
        if self._pending is None:
            raise ForwarderError("activate: there is no new FIB; ask for one with 'fib' first")
        if self.config is None:
            raise ForwarderError("activate: not configured yet; send 'configure' first")
        old, self._fib, self._pending = self._fib, self._pending, None
        self._controller = self._asking
        self._crew.stop()
        self._start_crew()
        if old is not None:
            old.close()
        return {}, []

    def write_routes(self, set: list[Any], delete: list[Any]) -> Reply:
        """Writes routes ourselves, for whoever runs the forwarder alone."""
        if self.config is None:
            raise ForwarderError("routes: not configured yet; send 'configure' first")
        changes: dict[Prefix, NextHop | None] = {
            Prefix.parse(prefix): next_hop_from_wire(hop) for prefix, hop in set
        }
        changes |= dict.fromkeys(map(Prefix.parse, delete))
        if self._fib is None:
            if self._pending is not None:
                self._pending.close()
            self._pending = HeldFib(Capacity(), self._rows, len(self._crew.members))
            self._pending.write_here(self.config.mac, self._crew.look_after)
            self.activate()
        assert self._fib is not None
        writer = self._fib.writer
        if writer is None:
            raise ForwarderError("routes: the FIB is written by a control process")
        try:
            changed = writer.apply(changes)
        except FibFull as error:
            raise ForwarderError(str(error)) from error
        return {"changed": changed, "generation": writer.generation}, []

    def list_routes(self, after: int) -> Reply:
        """One page of the routes in the FIB, read from shared memory."""
        if self._fib is None:
            return {"routes": [], "next": None}, []
        page, following = list_routes(self._fib.memory, after, api.ROUTES_PER_MESSAGE)
        routes = [[str(prefix), next_hop_to_wire(hop), row] for prefix, hop, row in page]
        return {"routes": routes, "next": following}, []

    def view_fib(self) -> Reply:
        """The FIB that the workers use and their counters, for reading."""
        if self._fib is None:
            return {"capacity": None}, []
        capacity = asdict(self._fib.memory.capacity)
        fds = [self._fib.readonly_fd, self._readonly_rows_fd, self._fib.readonly_per_peer_fd]
        return {"capacity": capacity, "workers": len(self._crew.members)}, fds

    def lookup(self, destination: str) -> Reply:
        """What would happen to a pod's packets to an address."""
        tunnel, view = self._rehearsed("lookup")
        outcome = rehearsal.send(tunnel, view, ip_address(destination))
        return {**outcome._asdict(), "reason": outcome.reason.name.lower()}, []

    def check_inbound(self, source: str, destination: str, vtep: str) -> Reply:
        """What would happen to a packet between two pods that a VTEP sends to us."""
        addresses = (ip_address(source), ip_address(destination), ip_address(vtep))
        reason = rehearsal.receive(*self._rehearsed("check_inbound"), *addresses)
        return {"reason": reason.name.lower()}, []

    def _rehearsed(self, op: str) -> tuple[Tunnel, FibView]:
        if self._fib is None:
            raise ForwarderError(f"{op}: there are no routes yet", retryable=True)
        return self._tunnel(0), self._fib.memory.view

    def stats(self) -> Reply:
        """The state of workers, sockets, device and offloads; the rows of counters to read."""
        rows = Counters(self._rows, None, len(self._crew.members)).rows
        device, now = self._endpoint.device, time.monotonic()
        workers = [
            {
                **state,
                **stats.process_usage(state["pid"]),
                "receive_drops": stats.receive_drops(group.receivers if group else ()),
            }
            for state, group in zip_longest(self._crew.describe(rows), self._endpoint.sockets)
        ]
        return {
            **self.hello()[0],
            **stats.process_usage(os.getpid()),
            "up_s": now - self._started_at,
            "control_gone_s": None if self._controller else now - self._controller_gone_at,
            "offloads": self._endpoint.offload_states(),
            "seccomp": self._limits.filter_state,
            "path_mtus": self._fib.path_mtus.limits(api.ROUTES_PER_MESSAGE) if self._fib else {},
            "device_drops": stats.device_drops(device.name) if device else 0,
            "per_worker": workers,
        }, [self._readonly_rows_fd]

    def share_capture(self) -> Reply:
        """The memory that workers copy packets to when asked; see capture_reader.py."""
        return {"workers": len(self._crew.members)}, [self._capture_fd]

    # ---- workers --------------------------------------------------------------------------------

    def _start_crew(self) -> None:
        """Workers on the present descriptors: whatever was queued meanwhile waits for them."""
        assert self._fib is not None
        tunnels = [self._tunnel(index) for index in range(len(self._crew.members))]
        rings = [ring_of(self._capture, index) for index in range(len(tunnels))]
        self._crew.start(Duty(tunnels, self._fib.memory.view, self._fib.counters, rings))

    def _tunnel(self, worker: int) -> Tunnel:
        assert self._fib is not None
        wake_fd = self._crew.members[worker].wake_fd
        return self._endpoint.tunnel_of(worker, wake_fd, self._fib.path_mtus.column)
