"""The forwarder's settings: what its command line fixes, and what `configure` tells it later."""

import ipaddress
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from forwarder.dscp import parse_dscp
from forwarder.fib.routes import IPAddress
from forwarder.wire.vxlan import DEFAULT_PORT, VNI_MAX, format_mac, parse_mac

DEVICE_NAME_MAX = 15  # IFNAMSIZ - 1
MTU_MIN, MTU_MAX = 576, 65535 - 70
LANES_MAX = 64


def tap_name(overlay_device: str) -> str:
    """Of the TAP beside an overlay device, for the tunnel-GSO path; at most 15 characters."""
    return f"{overlay_device[:11]}-gso"


class ConfigError(ValueError):
    """A setting that cannot be: the message names the field, its value and what is allowed."""


@dataclass(frozen=True)
class TunnelConfig:
    """One node's end of the tunnel, as the api's `configure` takes it."""

    device: str = "loden0"
    """Name of the overlay device to create."""
    vni: int = 1
    port: int = DEFAULT_PORT
    """UDP port to receive on."""
    mtu_bytes: int = 1450
    """The overlay's MTU: the largest inner packet."""
    mac: bytes = b""
    """Our VTEP's MAC, 6 bytes: what remote nodes send to."""
    addresses: tuple[IPAddress, ...] = ()
    """Our own addresses on the underlay, one IPv4, one IPv6, or one of each."""
    lanes: int = 8
    """Source ports that flows are spread over, per address family."""

    def __post_init__(self) -> None:
        _check("device", self.device, 0 < len(self.device) <= DEVICE_NAME_MAX, "1 to 15 characters")
        no_slash = not any(c in "/ \t\n" for c in self.device) and self.device not in (".", "..")
        _check("device", self.device, no_slash, "no '/', no white space, not '.' or '..'")
        _check("vni", self.vni, 0 <= self.vni <= VNI_MAX, f"0 to {VNI_MAX}")
        _check("port", self.port, 1 <= self.port <= 65535, "1 to 65535")
        in_range = MTU_MIN <= self.mtu_bytes <= MTU_MAX
        _check("mtu_bytes", self.mtu_bytes, in_range, f"{MTU_MIN} to {MTU_MAX}")
        unicast = len(self.mac) == 6 and not self.mac[0] & 1
        _check("mac", format_mac(self.mac), unicast, "6 bytes of a unicast MAC")
        versions = sorted(address.version for address in self.addresses)
        shown = ", ".join(map(str, self.addresses))
        _check("addresses", shown, versions in ([4], [6], [4, 6]), "one IPv4, one IPv6, or both")
        _check("lanes", self.lanes, 1 <= self.lanes <= LANES_MAX, f"1 to {LANES_MAX}")

    def to_wire(self) -> dict[str, Any]:
        """Plain values, for msgpack; `from_wire` reads them back."""
        values = asdict(self)
        values["mac"] = format_mac(self.mac)
        values["addresses"] = [str(address) for address in self.addresses]
        return values

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> "TunnelConfig":
        """Raises ConfigError for a field that is unknown, of the wrong type, or out of range."""
        known = {"device": str, "vni": int, "port": int, "mtu_bytes": int, "mac": str}
        known |= {"addresses": list, "lanes": int}
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"{name}: no such field; there are {', '.join(known)}")
            if not isinstance(value, known[name]):
                raise ConfigError(f"{name}: {value!r} is no {known[name].__name__}")
        converted = dict(values)
        try:
            converted["mac"] = parse_mac(values.get("mac", ""))
            converted["addresses"] = tuple(
                ipaddress.ip_address(text) for text in values.get("addresses", ())
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return cls(**converted)


@dataclass(frozen=True)
class ForwarderOptions:
    """What the command line fixes for the life of the forwarder."""

    run_dir: str
    """Where the api's socket is."""
    cpus: tuple[int, ...]
    """One worker is pinned to each; all can be used by us."""
    user: str = "nobody"
    """Whom the workers become."""
    seccomp: bool = True
    """Allow them the system calls of their loop alone."""
    tso: bool = True
    """Take TCP superpackets from the overlay device."""
    uso: bool = True
    """Take UDP superpackets from it (Linux 6.2)."""
    coalesce: bool = True
    """Hand many packets of a flow to it in one write."""
    udp_gso: bool = True
    """Send many datagrams in one message (UDP_SEGMENT)."""
    udp_gro: bool = True
    """Receive many datagrams in one message (UDP_GRO)."""
    tunnel_gso: bool = True
    """Have the NIC cut TCP superpackets, where kernel and NIC can (Linux 6.17)."""
    steer_by_cpu: bool = False
    """Each worker gets what arrives on its CPU, instead of flows by a hash."""
    dscp: str = "0"
    """Of outer packets, 0 to 63, or "copy": the inner packet's; see dscp.py."""
    busy_poll_us: int = 50
    """Where packets come more often than this, a worker looks for so long before it blocks."""

    def __post_init__(self) -> None:
        try:
            parse_dscp(self.dscp)
        except ValueError as error:
            raise ConfigError(f"dscp: {error}") from None


def _check(field: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{field}: {value!r} is not allowed; allowed: {allowed}")
