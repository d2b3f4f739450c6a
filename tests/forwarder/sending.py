"""Packets through all outbound stages, to the end: real sockets send them."""

import socket
from dataclasses import dataclass, field

import numpy as np

from forwarder import udp
from forwarder.arrays import Longs
from forwarder.batch import Outbound
from forwarder.counters import COLUMNS
from forwarder.fib.routes import IPAddress, RemoteVtep
from forwarder.outbound import encapsulate, lay_out, parse, plan, route
from forwarder.tunnel import Tunnel
from forwarder.udp import WorkerSockets
from tests.forwarder.fibs import VNI, Fib, make_fib
from tests.forwarder.packets import MAC_B, NET_B
from tests.forwarder.stages import FromTun, make_tunnel, put_packets


@dataclass
class Sending:
    """A worker's sockets, and a FIB that routes B's pods to one VTEP."""

    sockets: WorkerSockets
    fib: Fib
    tunnel: Tunnel
    row: Longs = field(default_factory=lambda: np.zeros(COLUMNS, np.int64))

    @classmethod
    def to(cls, vtep: IPAddress, port: int, sockets: WorkerSockets, gso: bool = True) -> "Sending":
        fib = make_fib()
        hop = RemoteVtep(vtep, MAC_B, VNI, port)
        fib.route_to((NET_B[4] + "0/24", hop), (NET_B[6] + "/64", hop))
        lanes = [*sockets.lanes[0], *sockets.lanes[1]]
        fds = [-1 if lane is None else lane.fileno() for lane in lanes]
        tunnel = make_tunnel(udp_gso=gso)._replace(sockets=np.array(fds, np.int64))
        return cls(sockets, fib, tunnel)

    @property
    def lanes(self) -> list[socket.socket]:
        """Those that are open."""
        return [lane for family in self.sockets.lanes for lane in family if lane is not None]

    def send(self, batch: Outbound, *packets: FromTun) -> list[int]:
        """Each packet's drop reason.  The device's MTU limits nothing here."""
        put_packets(batch, packets)
        view, tunnel = self.fib.view, self.tunnel
        parse(batch, len(packets))
        route(batch, len(packets), view, tunnel._replace(mtu_bytes=65535))
        batch.whole[:] = 0
        _, segments = encapsulate(tunnel, batch, 0, len(packets), view)
        messages = plan(batch, segments, view, tunnel)
        lay_out(batch, segments, messages, view, len(tunnel.sockets), tunnel.udp_gso)
        udp.send(tunnel, batch, messages, self.row)
        return batch.reason[: len(packets)].tolist()
