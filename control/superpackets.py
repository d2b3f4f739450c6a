"""The tunnel-GSO path's place on the host: its TAP device, and whether it may be used.

    the interface segments tunnels? ── no ──> off, the status says why
        │ yes
    TAP set up: address, sysctls ──> the forwarder probes towards a VTEP ──> on, or off
                                      └─ again when the firewall has changed

The TAP's packets have this host's own source address and are forwarded by the kernel: hence
forwarding and accept_local, and a reverse-path filter that is loose at most.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from control.host_state import DeviceGoneError, IPAddress, LinkError
from control.link import KernelRefusedError, NotPermittedError, device_has_feature
from control.rib import Kind, Route
from forwarder.api import ForwarderClient

log = logging.getLogger(__name__)

FEATURES = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
"""Of the underlay's interface: without them the UDP path is faster."""
SYSCTLS = (("forwarding", 1), ("accept_local", 1), ("rp_filter", 2))
RETRY_S = 60.0
"""After a probe that did not get through: a firewall may have been mended since."""
_IFF_UP, _IFF_NOARP = 0x1, 0x80


class SuperpacketPath:
    """Whether superpackets leave whole.  One for each connection to a forwarder."""

    def __init__(self, client: ForwarderClient, tap: str | None) -> None:
        """`tap`: the device's name, as `configure` told it; None: the forwarder has none."""
        self._client = client
        self._tap = tap
        self._tried: set[tuple[str, int]] = set()  # (interface, address family)
        self._due_at = 0.0
        self._said: str | None = None

    def reconsider(self) -> None:
        """The firewall has changed: what passed may not pass any more, and the other way round."""
        self._tried.clear()
        self._due_at = 0.0

    def keep(self, interface: str, address: IPv4Address | None, routes: Iterable[Route]) -> None:
        """Tries what has not been tried with this interface, as soon as there is a VTEP to probe.

        `address`: one of the overlay device's own, for the TAP to have one.
        Raises ForwarderError.
        """
        if self._tap is None or time.monotonic() < self._due_at:
            return
        for version in (4, 6):
            if (interface, version) in self._tried:
                continue
            vtep = next(_vteps(routes, version), None)
            if vtep is None:
                continue
            self._tried.add((interface, version))
            self._try(interface, address, vtep)

    def _try(self, interface: str, address: IPv4Address | None, vtep: IPAddress) -> None:
        assert self._tap is not None
        try:
            missing = [name for name in FEATURES if not device_has_feature(interface, name)]
            if missing:
                self._client.refuse_tunnel_gso(f"{interface} cannot: {missing[0]} is off")
                return
            set_up_tap(self._tap, address)
        except LinkError as error:
            self._client.refuse_tunnel_gso(str(error))
            log.warning("tunnel GSO stays off: %s", error)
            return
        state = self._client.try_tunnel_gso(interface, vtep)
        if state != self._said:
            log.info("tunnel GSO: %s", state)
        self._said = state
        if state != "on":
            self._tried.clear()
            self._due_at = time.monotonic() + RETRY_S


def _vteps(routes: Iterable[Route], version: int) -> Any:
    return (
        route.public_ip
        for route in routes
        if route.kind is Kind.REMOTE and route.public_ip.version == version
    )


def set_up_tap(name: str, address: IPv4Address | None) -> None:
    """Makes the kernel forward what is written to TAP device `name`.  Raises LinkError."""
    try:
        for setting, value in SYSCTLS:
            Path(f"/proc/sys/net/ipv4/conf/{name}/{setting}").write_text(str(value))
        ipv6 = Path(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode")
        if ipv6.exists():
            ipv6.write_text("1")  # none: nobody is there to be a neighbour
    except FileNotFoundError as error:
        raise DeviceGoneError(f"the device {name} is not there") from error
    except OSError as error:
        raise NotPermittedError(f"cannot set sysctls of {name}: {error.strerror}") from error
    with IPRoute() as netlink:
        try:
            (index,) = netlink.link_lookup(ifname=name)
            flags = _IFF_UP | _IFF_NOARP
            netlink.link("set", index=index, flags=flags, change=flags)
            if address is not None:
                netlink.addr("replace", index=index, address=str(address), prefixlen=32)
        except NetlinkError as error:
            if error.code == errno.EPERM:
                raise NotPermittedError(f"cannot set up {name}: run as root") from error
            raise KernelRefusedError(f"cannot set up {name}: {error}") from error
        except ValueError as error:
            raise DeviceGoneError(f"the device {name} is not there") from error
