"""Leases as flannel writes them: the key names a node's subnet, the value says who holds it.

    <prefix>/subnets/10.7.29.0-24                         an IPv4 subnet
    <prefix>/subnets/10.7.29.0-24&2001:cafe:42:4f::-64    both families
    <prefix>/subnets/0.0.0.0-0&2001:cafe:42:4f::-64       IPv6 only
    {"PublicIP":"192.168.77.12","PublicIPv6":null,"BackendType":"vxlan",
     "BackendData":{"VNI":1,"VtepMAC":"ee:2d:a9:5c:eb:08"}}                (compact, in this order)

flannel drops every peer's route when it meets anything else below `subnets/`, so what we write
there is exactly this. Parsing and emitting are mirrors; neither touches etcd.
"""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, TypeVar

from control.network_config import LARGEST_VNI, NetworkConfig

SUBNETS = "subnets/"
"""Below the prefix: flannel's leases."""
ROUTES = "routes/"
"""Below the prefix: loden's extension, routes for single pods or any prefix."""
CONFIG = "config"
"""Below the prefix: the network config."""

VXLAN = "vxlan"
NO_IPV4 = IPv4Address(0)
"""How flannel writes PublicIP for a node that has none."""

_LENGTH = re.compile(r"\d{1,3}", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}", re.IGNORECASE | re.ASCII)

IPNetwork = IPv4Network | IPv6Network
NetworkT = TypeVar("NetworkT", IPv4Network, IPv6Network)


class LeaseFormatError(ValueError):
    """A key or value is not in flannel's format; the message is the reason."""

    retryable = False


@dataclass(frozen=True)
class NodeSubnet:
    """A node's pod subnet: IPv4, IPv6, or one of each."""

    ipv4: IPv4Network | None = None
    ipv6: IPv6Network | None = None

    @classmethod
    def parse(cls, name: str) -> NodeSubnet:
        """Read what follows `<prefix>/subnets/`. Raises LeaseFormatError."""
        ipv4_name, both, ipv6_name = name.partition("&")
        ipv4 = _network_of(ipv4_name, IPv4Network)
        if not both:
            if ipv4.prefixlen == 0:
                raise LeaseFormatError(f"{name!r} names no subnet")
            return cls(ipv4)
        return cls(ipv4 if ipv4.prefixlen else None, _network_of(ipv6_name, IPv6Network))

    @property
    def name(self) -> str:
        """The last part of the lease's key."""
        ipv4 = network_name(self.ipv4 or IPv4Network("0.0.0.0/0"))
        return ipv4 if self.ipv6 is None else f"{ipv4}&{network_name(self.ipv6)}"

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        return tuple(network for network in (self.ipv4, self.ipv6) if network is not None)

    def fits(self, config: NetworkConfig) -> bool:
        """Whether a node may hold this subnet under `config`."""
        return (self.ipv4 is None if config.ipv4 is None else config.ipv4.fits(self.ipv4)) and (
            self.ipv6 is None if config.ipv6 is None else config.ipv6.fits(self.ipv6)
        )

    def overlaps(self, other: NodeSubnet) -> bool:
        """Whether any address belongs to both."""
        return bool(self.ipv4 and other.ipv4 and self.ipv4.overlaps(other.ipv4)) or bool(
            self.ipv6 and other.ipv6 and self.ipv6.overlaps(other.ipv6)
        )

    def __str__(self) -> str:
        return " and ".join(map(str, self.networks))


def network_name(network: IPNetwork) -> str:
    """A network as keys spell it: `10.5.7.0-24`."""
    return f"{network.network_address}-{network.prefixlen}"


def parse_network_name(name: str) -> IPNetwork:
    """Read what follows `<prefix>/routes/`, of either family. Raises LeaseFormatError."""
    return _network_of(name, IPv6Network) if ":" in name else _network_of(name, IPv4Network)


def _network_of(name: str, kind: type[NetworkT]) -> NetworkT:
    address, dash, length = name.rpartition("-")
    if not dash or not _LENGTH.fullmatch(length):
        raise LeaseFormatError(f"{name!r} is not <address>-<prefix length>")
    try:
        return kind((_packed(address, kind), int(length)))
    except ValueError as error:
        raise LeaseFormatError(f"{name!r}: {error}") from None


def _packed(text: str, kind: type[Any]) -> bytes:
    """The bytes of an address of `kind`'s family. Raises ValueError.

    Three times as fast as ipaddress: a node reads two of them per peer when it starts.
    """
    version = 4 if kind in (IPv4Address, IPv4Network) else 6
    try:
        return socket.inet_pton(socket.AF_INET if version == 4 else socket.AF_INET6, text)
    except (OSError, UnicodeError):
        raise ValueError(f"{text!r} is no IPv{version} address") from None


@dataclass(frozen=True)
class Vtep:
    """The VXLAN end of a node, for one family of the overlay."""

    vni: int
    """VXLAN network identifier, 24 bits."""
    mac: str
    """The address inner frames are sent to, lower case with colons."""


@dataclass(frozen=True)
class LeaseAttrs:
    """A lease's value: where the holder of a subnet is reached."""

    public_ip: IPv4Address | None
    """The node's underlay address for IPv4 pods."""
    public_ipv6: IPv6Address | None = None
    """The node's underlay address for IPv6 pods."""
    vtep: Vtep | None = None
    """Where IPv4 pods' packets go (BackendData)."""
    vtep_v6: Vtep | None = None
    """Where IPv6 pods' packets go (BackendV6Data)."""
    backend_type: str = VXLAN
    """Other types' data is not read; their subnets are taken all the same."""

    @classmethod
    def parse(cls, value: str | bytes) -> LeaseAttrs:
        """Read a lease's value. Raises LeaseFormatError."""
        try:
            fields = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise LeaseFormatError(f"not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise LeaseFormatError("not a JSON object")
        public_ip = _address_of(fields, "PublicIP", IPv4Address)
        backend_type = fields.get("BackendType", "")
        if not isinstance(backend_type, str):
            raise LeaseFormatError(f"BackendType is {backend_type!r}, allowed: a string")
        is_vxlan = backend_type == VXLAN
        return cls(
            public_ip=None if public_ip == NO_IPV4 else public_ip,
            public_ipv6=_address_of(fields, "PublicIPv6", IPv6Address),
            vtep=_vtep_of(fields, "BackendData") if is_vxlan else None,
            vtep_v6=_vtep_of(fields, "BackendV6Data") if is_vxlan else None,
            backend_type=backend_type,
        )

    def to_json(self) -> str:
        """The value as flannel writes it, byte for byte."""
        fields: dict[str, Any] = {
            "PublicIP": str(self.public_ip or NO_IPV4),
            "PublicIPv6": None if self.public_ipv6 is None else str(self.public_ipv6),
        }
        if self.backend_type:
            fields["BackendType"] = self.backend_type
        for name, vtep in (("BackendData", self.vtep), ("BackendV6Data", self.vtep_v6)):
            if vtep is not None:
                fields[name] = {"VNI": vtep.vni, "VtepMAC": vtep.mac}
        return json.dumps(fields, separators=(",", ":"))

    @property
    def macs(self) -> frozenset[str]:
        return frozenset(vtep.mac for vtep in (self.vtep, self.vtep_v6) if vtep is not None)

    def same_address(self, other: LeaseAttrs) -> bool:
        """Whether both speak of one node by flannel's rule: the same underlay address."""
        if self.public_ip is not None and other.public_ip is not None:
            return self.public_ip == other.public_ip
        return self.public_ipv6 is not None and self.public_ipv6 == other.public_ipv6


def _address_of(fields: dict[str, Any], name: str, kind: type[Any]) -> Any:
    text = fields.get(name)
    if text is None or text == "":
        return None
    try:
        return kind(_packed(text if isinstance(text, str) else "", kind))
    except ValueError:
        allowed = f"an IPv{kind(0).version} address"
        raise LeaseFormatError(f"{name} is {text!r}, allowed: {allowed}") from None


def _vtep_of(fields: dict[str, Any], name: str) -> Vtep | None:
    data = fields.get(name)
    if data is None:
        return None
    if not isinstance(data, dict):
        raise LeaseFormatError(f"{name} is {data!r}, allowed: a JSON object")
    vni = data.get("VNI", 0)
    if type(vni) is not int or not 0 <= vni <= LARGEST_VNI:
        raise LeaseFormatError(f"{name}.VNI is {vni!r}, allowed: 0 to {LARGEST_VNI}")
    return Vtep(vni, _mac_of(data.get("VtepMAC"), f"{name}.VtepMAC"))


def _mac_of(text: object, name: str) -> str:
    """A unicast MAC in lower case with colons; flannel also reads dashes."""
    is_mac = isinstance(text, str) and _MAC.fullmatch(text)
    mac = str(text).lower().replace("-", ":")
    if not is_mac or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise LeaseFormatError(f"{name} is {text!r}, allowed: a unicast MAC such as 0e:2d:a9:5c…")
    return mac


@dataclass(frozen=True)
class Lease:
    """One entry below `subnets/`, as etcd has it."""

    key: str
    subnet: NodeSubnet
    attrs: LeaseAttrs
    lease_id: int
    """The etcd lease the key lives by; 0: it was put without one and never expires."""
    create_revision: int
    mod_revision: int

    @property
    def is_reservation(self) -> bool:
        """Whether an operator put the key; it must then stay without an etcd lease."""
        return self.lease_id == 0


def subnet_key(prefix: str, subnet: NodeSubnet) -> str:
    """The etcd key of a node's subnet; `prefix` without a slash at its end."""
    return f"{prefix}/{SUBNETS}{subnet.name}"


def route_key(prefix: str, network: IPNetwork) -> str:
    """The etcd key of loden's route extension; `prefix` without a slash at its end."""
    return f"{prefix}/{ROUTES}{network_name(network)}"


def config_key(prefix: str) -> str:
    """The etcd key of the network config; `prefix` without a slash at its end."""
    return f"{prefix}/{CONFIG}"
