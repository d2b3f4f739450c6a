"""Prefixes and next hops: a route as the writer of the FIB is given it."""

import ipaddress
from dataclasses import dataclass, field
from typing import NamedTuple

from forwarder.wire.vxlan import VNI_MAX, format_mac, parse_mac

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Prefix(NamedTuple):
    """A destination: all inner addresses whose first `length` bits are those of `address`.

    A plain tuple, because tables of a million routes are made of these.
    """

    version: int
    """4 or 6."""
    address: int
    """The network address as a number; bits beyond `length` are zero."""
    length: int
    """0 to 32 or 128."""

    @classmethod
    def of(cls, network: IPNetwork) -> "Prefix":
        return cls(network.version, int(network.network_address), network.prefixlen)

    @classmethod
    def parse(cls, text: str) -> "Prefix":
        """From "10.5.7.0/24" or "2001:db8::/64".  Raises ValueError naming the text."""
        return cls.of(ipaddress.ip_network(text))

    @property
    def bits(self) -> int:
        return 32 if self.version == 4 else 128

    @property
    def last(self) -> int:
        """The highest address of the prefix, as a number."""
        return self.address | ((1 << (self.bits - self.length)) - 1)

    def shortened(self, length: int) -> "Prefix":
        """The prefix of `length` bits that covers this one."""
        shift = self.bits - length
        return Prefix(self.version, self.address >> shift << shift, length)

    def __str__(self) -> str:
        kind = ipaddress.IPv4Address if self.version == 4 else ipaddress.IPv6Address
        return f"{kind(self.address)}/{self.length}"


@dataclass(frozen=True)
class RemoteVtep:
    """Another node: where its packets are sent, and all that encapsulation needs to know."""

    address: IPAddress
    """Outer (underlay) address."""
    mac: bytes
    """The node's VTEP MAC, the inner destination MAC; 6 bytes."""
    vni: int
    port: int
    """Outer UDP destination port."""
    _hash: int = field(init=False, repr=False, compare=False)
    """Of the other fields: a FIB asks for it several times for each of a million routes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.address, self.mac, self.vni, self.port)))
        if len(self.mac) != 6:
            raise ValueError(f"mac {self.mac!r}: a MAC address has 6 bytes")
        if not 0 <= self.vni <= VNI_MAX:
            raise ValueError(f"vni {self.vni}: allowed are 0 to {VNI_MAX}")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port {self.port}: allowed are 1 to 65535")

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return f"{self.address} (VNI {self.vni}, {format_mac(self.mac)})"


@dataclass(frozen=True)
class Local:
    """This node: inbound packets to it are delivered, and it may use these inner sources."""

    def __str__(self) -> str:
        return "local"


@dataclass(frozen=True)
class Blackhole:
    """Nowhere: packets are dropped and counted."""

    def __str__(self) -> str:
        return "blackhole"


NextHop = RemoteVtep | Local | Blackhole


def next_hop_to_wire(hop: NextHop) -> dict[str, object]:
    """A next hop as plain values for msgpack or JSON; `next_hop_from_wire` reads it back."""
    if isinstance(hop, RemoteVtep):
        return {
            "kind": "remote",
            "address": str(hop.address),
            "mac": format_mac(hop.mac),
            "vni": hop.vni,
            "port": hop.port,
        }
    return {"kind": str(hop)}


def next_hop_from_wire(value: object) -> NextHop:
    """Raises ValueError that names the field, its value and what is allowed."""
    if not isinstance(value, dict):
        raise ValueError(f"next hop {value!r}: expected a map with 'kind'")
    kind = value.get("kind")
    if kind == "local":
        return Local()
    if kind == "blackhole":
        return Blackhole()
    if kind != "remote":
        raise ValueError(f"kind {kind!r}: allowed are 'remote', 'local' and 'blackhole'")
    vni, port = value.get("vni"), value.get("port")
    if not isinstance(vni, int):
        raise ValueError(f"vni {vni!r}: expected a number from 0 to {VNI_MAX}")
    if not isinstance(port, int):
        raise ValueError(f"port {port!r}: expected a number from 1 to 65535")
    return RemoteVtep(
        ipaddress.ip_address(str(value.get("address"))),
        parse_mac(str(value.get("mac"))),
        vni,
        port,
    )
