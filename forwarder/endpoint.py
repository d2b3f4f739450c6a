"""This node's end of the tunnel: the open device and sockets, and what each worker gets of them."""

import mmap
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import numpy as np
import pytun

from forwarder import tun, tunnel_gso, udp
from forwarder.api import ForwarderError
from forwarder.arrays import Bytes, Longs, Words
from forwarder.config import ForwarderOptions, TunnelConfig, tap_name
from forwarder.dscp import parse_dscp
from forwarder.fib.routes import IPAddress
from forwarder.offloads import NOT_TRIED, ON, REFUSED, Offloads
from forwarder.selftest import Findings
from forwarder.tunnel import Tunnel


class Endpoint:
    """What is open for the config of the moment; nothing before the first `open`."""

    def __init__(self, options: ForwarderOptions) -> None:
        self.config: TunnelConfig | None = None
        self.device: tun.Device | None = None
        self.sockets: list[udp.WorkerSockets] = []
        """One element per worker."""
        self._options = options
        self._tap: list[pytun.TunTapDevice] | None = None
        self._offloads = Offloads(options)
        # Shared by the workers: the first one to meet a refusal switches an offload off for all.
        switches: Longs = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.int64)
        self._udp_gso, self._tunnel_gso = switches[:1], switches[1:3]
        self._udp_gso[0] = options.udp_gso

    # ---- opening --------------------------------------------------------------------------------

    def open(self, new: TunnelConfig) -> None:
        """Opens what `new` asks for; what stays the same is kept, queued packets and all.

        Raises ForwarderError: the old config stays open then.
        """
        old = self.config
        device, sockets = self.device, self.sockets
        if device is None or device.name != new.device:
            device = self._open_device(new.device)
        if old is None or _socket_fields(new) != _socket_fields(old):
            try:
                sockets = self._open_sockets(new)
            except BaseException:
                if device is not self.device:
                    device.close()
                raise
            for group in self.sockets:
                group.close()
        if device is not self.device:
            if self.device is not None:
                self.device.close()
            self._open_tap(tap_name(new.device))
        self.config, self.device, self.sockets = new, device, sockets

    def _open_device(self, name: str) -> tun.Device:
        wanted = self._offloads["tun_tso"], self._offloads["tun_uso"]
        try:
            device = tun.open_device(name, len(self._options.cpus), *wanted)
        except tun.DeviceError as error:
            raise ForwarderError(str(error)) from error
        if not device.tso:
            self._offloads.refuse("tun_tso")
        if not device.uso:
            self._offloads.refuse("tun_uso")
        return device

    def _open_sockets(self, new: TunnelConfig) -> list[udp.WorkerSockets]:
        cpus = self._options.cpus
        steer_by = cpus if self._options.steer_by_cpu else ()
        try:
            return udp.open_sockets(
                new.addresses, new.port, new.lanes, len(cpus), self._offloads["udp_gro"], steer_by
            )
        except udp.SocketError as error:
            raise ForwarderError(str(error)) from error

    def _open_tap(self, name: str) -> None:
        """The second device, of the tunnel-GSO path; without it that path stays off."""
        if not self._options.tunnel_gso:
            return
        if self._tap is not None:
            tunnel_gso.close(self._tap)
        self._tunnel_gso[:] = 0
        self._tap = tunnel_gso.open_tap(name, len(self._options.cpus))
        refused = f"{REFUSED} (6.17 is the first that can)"
        self._offloads.say("tunnel_gso", NOT_TRIED if self._tap else refused)

    def close(self) -> None:
        """Closes everything; the devices go with it."""
        for group in self.sockets:
            group.close()
        if self.device is not None:
            self.device.close()
        if self._tap is not None:
            tunnel_gso.close(self._tap)

    # ---- offloads -------------------------------------------------------------------------------

    def heed(self, findings: Findings) -> None:
        """Uses no offload that failed its test."""
        self._offloads.heed(findings)
        self._udp_gso[0] &= self._offloads["udp_gso"]

    @property
    def tap_name(self) -> str | None:
        """The device of the tunnel-GSO path; None: there is none."""
        return tap_name(self.config.device) if self._tap and self.config else None

    def try_tunnel_gso(self, interface: str, probe: str, why_not: str) -> str:
        """Switches that path on if a probe leaves by `interface`, off with a reason; its state."""
        if self._tap is not None and self.config is not None:
            if why_not:
                self._tunnel_gso[:] = 0
            self._offloads.say("tunnel_gso", why_not or self._probe(interface, ip_address(probe)))
        return self.offload_states()["tunnel_gso"]

    def _probe(self, interface: str, destination: IPAddress) -> str:
        assert self._tap is not None
        passes = tunnel_gso.probe(self._tap[0], self._templates(), interface, destination)
        self._tunnel_gso[int(destination.version == 6)] = passes
        return ON if self._tunnel_gso.any() else f"a probe did not leave by {interface}"

    def offload_states(self) -> dict[str, str]:
        """Each offload with "on", or why it is not."""
        if not self._udp_gso[0]:  # a worker has met a refusal
            self._offloads.refuse("udp_gso")
        if not self._tunnel_gso.any():
            self._offloads.refuse("tunnel_gso")
        return self._offloads.states()

    # ---- workers --------------------------------------------------------------------------------

    def tunnel_of(self, worker: int, wake_fd: int, path_mtu: Words) -> Tunnel:
        """What a worker must know; `path_mtu` as in PathMtus."""
        assert self.config is not None
        assert self.device is not None
        group = self.sockets[worker]
        lanes = [*group.lanes[0], *group.lanes[1]]
        return Tunnel(
            tun_fd=self.device.queues[worker].fileno(),
            receivers=_descriptors(group.receivers),
            sockets=_descriptors(lanes),
            wake_fd=wake_fd,
            vni=self.config.vni,
            mac=np.frombuffer(bytearray(self.config.mac), np.uint8),
            mtu_bytes=self.config.mtu_bytes,
            dscp=parse_dscp(self._options.dscp),
            path_mtu=path_mtu,
            coalesce_tcp=self._offloads["coalesce_tcp"],
            coalesce_udp=self._offloads["coalesce_udp"],
            udp_gso=self._udp_gso,
            tap_fd=self._tap[worker].fileno() if self._tap else -1,
            templates=self._templates(),
            lane_ports=np.array([s.getsockname()[1] if s else 0 for s in lanes], np.int64),
            tunnel_gso=self._tunnel_gso,
        )

    def _templates(self) -> Bytes:
        assert self.config is not None
        tap_mac = self._tap[0].hwaddr if self._tap else bytes(6)
        return tunnel_gso.make_templates(tap_mac, self.config.addresses)


def _socket_fields(config: TunnelConfig) -> tuple[object, ...]:
    """What the sockets are made from: a change of anything else leaves them open."""
    return config.addresses, config.port, config.lanes


def _descriptors(sockets: Sequence[socket.socket | None]) -> Longs:
    return np.array([-1 if s is None else s.fileno() for s in sockets], np.int64)
