"""Control's hold on one forwarder process: configures it, keeps its FIB in step with the RIB."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from pathlib import Path

from control.lease import IPNetwork
from control.rib import Kind, Route
from control.superpackets import SuperpacketPath
from forwarder import shm
from forwarder.api import ForwarderClient
from forwarder.config import TunnelConfig
from forwarder.counters import Counters, Total
from forwarder.fib.routes import Local, NextHop, Prefix, RemoteVtep
from forwarder.fib.writer import FibWriter
from forwarder.wire.vxlan import parse_mac

HELLO_TIMEOUT_S = 1.0
"""A forwarder that still compiles its kernels does not answer: control must not hang on it."""
REQUEST_TIMEOUT_S = 10.0
WORKER_SILENT_S = 5.0
"""Even an idle worker renews its heartbeat every second."""


class FibLink:
    """One connection to one forwarder process, and the writer of its FIB."""

    def __init__(self, run_dir: Path, config: TunnelConfig) -> None:
        """Connects and configures.  The packets of an earlier control keep flowing meanwhile.

        Raises ForwarderError.
        """
        self.config = config
        with ForwarderClient(run_dir, HELLO_TIMEOUT_S) as probe:
            probe.hello()
        self._client = ForwarderClient(run_dir, REQUEST_TIMEOUT_S)
        try:
            configured = self._client.configure(config)
            shared = self._client.new_fib()
        except BaseException:
            self._client.close()
            raise
        self.offloads: dict[str, str] = configured["offloads"]
        self.superpackets = SuperpacketPath(self._client, configured["tap"])
        self._counters: Counters = shared.counters
        self._writer = FibWriter(
            shared.memory,
            config.mac,
            self._is_past,
            shm.order_writes,
            shared.counters.clear_peer,
        )
        self._active = False

    def fileno(self) -> int:
        """Readable when the forwarder has gone."""
        return self._client.fileno()

    @property
    def is_gone(self) -> bool:
        """Whether the forwarder has closed its end: it is dead."""
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def route_count(self) -> int:
        return len(self._writer.routes)

    def silence(self) -> str | None:
        """The worker that has been silent longest, if that is too long."""
        return silence_of(self._counters, time.monotonic_ns()) if self._active else None

    def load(self, routes: Mapping[IPNetwork, Route]) -> None:
        """Makes the FIB hold exactly these routes, and has the workers use it.

        Raises ForwarderError, FibFull.
        """
        wanted = {Prefix.of(network): self._next_hop(route) for network, route in routes.items()}
        gone = dict.fromkeys(self._writer.routes.keys() - wanted.keys())
        self._writer.apply({**gone, **wanted})
        if not self._active:
            self._client.activate()
            self._active = True

    def apply(self, changes: Mapping[IPNetwork, Route | None]) -> int:
        """Follows changes of the RIB; returns how many made a difference to packets.

        Raises FibFull.
        """
        return self._writer.apply(
            {
                Prefix.of(network): None if route is None else self._next_hop(route)
                for network, route in changes.items()
            }
        )

    def reconfigure(self, config: TunnelConfig) -> None:
        """Changes addresses or MTU of the running tunnel.  Raises ForwarderError."""
        self._client.configure(config)
        self.config = config

    def close(self) -> None:
        self._client.close()

    def _is_past(self, generation: int) -> bool:
        """Whether no worker holds anything older; the dead, who never say so, hold nothing."""
        return self._counters.all_past(generation) or self.is_gone

    def _next_hop(self, route: Route) -> NextHop:
        if route.kind is Kind.LOCAL:
            return Local()
        return RemoteVtep(route.public_ip, parse_mac(route.vtep_mac), route.vni, self.config.port)


def silence_of(counters: Counters, now_ns: int) -> str | None:
    """Which worker has been silent too long at `now_ns` (CLOCK_MONOTONIC); None: none."""
    beats = counters.rows[:, Total.HEARTBEAT_NS]
    worker = int(beats.argmin())
    silent_s = (now_ns - int(beats[worker])) / 1e9
    if silent_s <= WORKER_SILENT_S:
        return None
    cpu = int(counters.rows[worker, Total.CPU])
    return f"the worker on CPU {cpu} has given no sign of life for {silent_s:.0f} s"
