"""The network config an operator puts at `<prefix>/config`: flannel's JSON, flannel's rules.

Parsing settles every default, so that two configs that mean the same compare equal however they
were written. Nothing here touches etcd.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any, Generic, TypeVar

DEFAULT_VNI = 1
DEFAULT_PORT = 8472
"""Linux's historical VXLAN port, which flannel uses; IANA's is 4789."""
LARGEST_VNI = (1 << 24) - 1
"""RFC 7348 section 5: the VNI is 24 bits."""

# What encapsulation adds to an inner IP packet: inner Ethernet, VXLAN, UDP, outer IP.
OVERHEAD_IPV4_BYTES = 14 + 8 + 8 + 20
OVERHEAD_IPV6_BYTES = 14 + 8 + 8 + 40

SMALLEST_INNER_MTU_BYTES = {4: 68, 6: 1280}
"""RFC 791 section 3.1 and RFC 8200 section 5."""

NetworkT = TypeVar("NetworkT", IPv4Network, IPv6Network)


class NetworkConfigError(ValueError):
    """The network config cannot be used. Trying again makes sense: an operator may be mending it.

    `field` is the name as flannel writes it, `value` what stood there, `allowed` what may.
    """

    retryable = True

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"network config: {field} is {_shown(value)}, allowed: {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


@dataclass(frozen=True)
class SubnetPool(Generic[NetworkT]):
    """The range of one address family that nodes take their subnets from."""

    network: NetworkT
    """The whole pod network."""
    subnet_len: int
    """Prefix length of each node's subnet."""
    first: NetworkT
    """The lowest subnet a node may take (SubnetMin)."""
    last: NetworkT
    """The highest subnet a node may take (SubnetMax)."""

    @property
    def size(self) -> int:
        """How many subnets there are to take."""
        return self.index(self.last) + 1

    def __getitem__(self, index: int) -> NetworkT:
        address = int(self.first.network_address) + index * self._step
        return type(self.network)((address, self.subnet_len))

    def index(self, subnet: IPv4Network | IPv6Network) -> int:
        """Where the subnet's first address falls, counted in subnets; may lie outside the pool."""
        return (int(subnet.network_address) - int(self.first.network_address)) // self._step

    def fits(self, subnet: IPv4Network | IPv6Network | None) -> bool:
        """Whether a node may hold this subnet under the present config."""
        return (
            isinstance(subnet, type(self.network))
            and subnet.prefixlen == self.subnet_len
            and 0 <= self.index(subnet) < self.size
        )

    @property
    def _step(self) -> int:
        return 1 << (self.network.max_prefixlen - self.subnet_len)


@dataclass(frozen=True)
class NetworkConfig:
    """A network config with every default settled; compares equal to any that means the same."""

    ipv4: SubnetPool[IPv4Network] | None
    """None when EnableIPv4 is false."""
    ipv6: SubnetPool[IPv6Network] | None
    """None unless EnableIPv6 is true."""
    vni: int = DEFAULT_VNI
    """VXLAN network identifier, 0 to 2^24 - 1."""
    port: int = DEFAULT_PORT
    """UDP destination port of the VXLAN packets."""
    mtu_bytes: int | None = None
    """MTU of the underlay (the outer packets); None: that of the external interface."""
    direct_routing: bool = False
    """Whether peers on the same link are reached by a plain route, without encapsulation."""
    enable_nftables: bool = False
    """flannel's wish for nftables; loden uses nftables in any case."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What the config asks for and loden does in another way: sentences for the log."""

    @classmethod
    def parse(cls, text: str | bytes) -> NetworkConfig:
        """Read the JSON an operator wrote. Raises NetworkConfigError, which names the field."""
        return _config_of(_Fields.of_json(text))

    @classmethod
    def build(
        cls,
        network: str,
        subnet_len: int | None = None,
        vni: int = DEFAULT_VNI,
        port: int = DEFAULT_PORT,
    ) -> NetworkConfig:
        """The config `loden init` writes; an IPv6 network makes an IPv6-only one.

        Raises NetworkConfigError.
        """
        is_ipv6 = ":" in network
        family = "IPv6" if is_ipv6 else ""
        wanted: dict[str, Any] = {f"{family}Network": network}
        if is_ipv6:
            wanted |= {"EnableIPv4": False, "EnableIPv6": True}
        if subnet_len is not None:
            wanted[f"{family}SubnetLen"] = subnet_len
        wanted["Backend"] = {"Type": "vxlan", "VNI": vni, "Port": port}
        return cls.parse(json.dumps(wanted))

    def to_json(self) -> str:
        """The config as flannel reads it; `parse` gives an equal config back."""
        written: dict[str, Any] = {}
        if self.ipv4 is None:
            written["EnableIPv4"] = False
        else:
            written |= _pool_fields("", self.ipv4)
        if self.ipv6 is not None:
            written |= {"EnableIPv6": True, **_pool_fields("IPv6", self.ipv6)}
        if self.enable_nftables:
            written["EnableNFTables"] = True
        backend: dict[str, Any] = {"Type": "vxlan", "VNI": self.vni, "Port": self.port}
        if self.mtu_bytes is not None:
            backend["MTU"] = self.mtu_bytes
        if self.direct_routing:
            backend["DirectRouting"] = True
        return json.dumps({**written, "Backend": backend}, indent=2)


def _pool_fields(family: str, pool: SubnetPool[Any]) -> dict[str, Any]:
    return {
        f"{family}Network": str(pool.network),
        f"{family}SubnetLen": pool.subnet_len,
        f"{family}SubnetMin": str(pool.first.network_address),
        f"{family}SubnetMax": str(pool.last.network_address),
    }


class _Fields:
    """One JSON object, read as Go reads it: any case, unknown names ignored, null as absent."""

    def __init__(self, values: dict[str, Any], where: str = "") -> None:
        self._values = {name.lower(): value for name, value in values.items()}
        self._where = where

    @classmethod
    def of_json(cls, text: str | bytes) -> _Fields:
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise NetworkConfigError("the whole", text, f"a JSON object ({error})") from None
        if not isinstance(values, dict):
            raise NetworkConfigError("the whole", text, "a JSON object")
        return cls(values)

    def section(self, name: str) -> _Fields | None:
        value = self._typed(name, dict, "a JSON object")
        return None if value is None else _Fields(value, f"{name}.")

    def boolean(self, name: str, default: bool) -> bool:
        value = self._typed(name, bool, "true or false")
        return default if value is None else value

    def number(self, name: str, default: int, largest: int) -> int:
        allowed = f"a whole number from 0 to {largest}"
        value = self._typed(name, int, allowed)
        if value is None:
            return default
        if not 0 <= value <= largest:
            raise self.error(name, value, allowed)
        return int(value)

    def text(self, name: str) -> str | None:
        value = self._typed(name, str, "a string")
        return None if value is None else str(value)

    def parsed(self, name: str, parse: Callable[[str], Any], allowed: str) -> Any:
        """`parse` of the field's text, or None where the field is absent."""
        value = self._typed(name, str, allowed)
        if value is None:
            return None
        try:
            return parse(value)
        except ValueError:
            raise self.error(name, value, allowed) from None

    def error(self, name: str, value: object, allowed: str) -> NetworkConfigError:
        return NetworkConfigError(self._where + name, value, allowed)

    def _typed(self, name: str, wanted: type, allowed: str) -> Any:
        value = self._values.get(name.lower())
        # In Python true is an int; in JSON it is not a number.
        if value is not None and type(value) is not wanted:
            raise self.error(name, value, allowed)
        return value


def _config_of(fields: _Fields) -> NetworkConfig:
    enable_ipv4 = fields.boolean("EnableIPv4", True)
    enable_ipv6 = fields.boolean("EnableIPv6", False)
    if not (enable_ipv4 or enable_ipv6):
        raise fields.error("EnableIPv4", False, "true, or EnableIPv6 true")
    ipv4 = _pool_of(fields, "", IPv4Network, longest_subnet=30) if enable_ipv4 else None
    ipv6 = _pool_of(fields, "IPv6", IPv6Network, longest_subnet=126) if enable_ipv6 else None
    backend = _vxlan_backend_of(fields)
    return NetworkConfig(
        ipv4=ipv4,
        ipv6=ipv6,
        vni=backend.number("VNI", DEFAULT_VNI, LARGEST_VNI),
        port=backend.number("Port", 0, 65535) or DEFAULT_PORT,
        mtu_bytes=_mtu_of(backend, SMALLEST_INNER_MTU_BYTES[6 if enable_ipv6 else 4]),
        direct_routing=backend.boolean("DirectRouting", False),
        enable_nftables=fields.boolean("EnableNFTables", False),
        notes=_notes_of(backend),
    )


def _pool_of(
    fields: _Fields, family: str, kind: type[NetworkT], *, longest_subnet: int
) -> SubnetPool[NetworkT]:
    """The pool of one family; `family` is what flannel puts before its names: nothing, or IPv6."""
    example = "2001:db8:42::/56" if family else "10.5.0.0/16"
    network = fields.parsed(f"{family}Network", _cidr(kind), f"a network such as {example}")
    if network is None:
        raise fields.error(f"{family}Network", None, f"a network such as {example}")
    subnet_len = _subnet_len_of(fields, family, network, longest_subnet)

    def edge(name: str, default: int) -> NetworkT:
        allowed = f"an address inside {network}, on a /{subnet_len} boundary"
        address = fields.parsed(f"{family}{name}", ip_address, allowed)
        if address is None or int(address) == 0:  # flannel takes 0.0.0.0 for absent
            return kind((default, subnet_len))
        try:
            if address in network:
                return kind((int(address), subnet_len))
        except ValueError:
            pass
        raise fields.error(f"{family}{name}", str(address), allowed)

    step = 1 << (network.max_prefixlen - subnet_len)
    # flannel leaves the first subnet out: its network address is the whole network's as well.
    first = edge("SubnetMin", int(network.network_address) + step)
    last = edge("SubnetMax", int(network.broadcast_address) + 1 - step)
    if last < first:
        raise fields.error(
            f"{family}SubnetMax",
            str(last.network_address),
            f"{family}SubnetMin ({first.network_address}) or higher",
        )
    return SubnetPool(network, subnet_len, first, last)


def _subnet_len_of(
    fields: _Fields, family: str, network: IPv4Network | IPv6Network, longest: int
) -> int:
    """The given SubnetLen, or a /24 (/64) where four of them fit, or a quarter of the network."""
    shortest = network.prefixlen + 2  # room for four subnets, of which the first is not used
    if shortest > longest:
        raise fields.error(f"{family}Network", str(network), f"a prefix of /{longest - 2} or less")
    given = fields.number(f"{family}SubnetLen", 0, network.max_prefixlen)
    if given == 0:
        return max(24 if network.version == 4 else 64, shortest)
    if not shortest <= given <= longest:
        allowed = f"{shortest} to {longest} (four subnets must fit into {network})"
        raise fields.error(f"{family}SubnetLen", given, allowed)
    return given


def _vxlan_backend_of(fields: _Fields) -> _Fields:
    backend = fields.section("Backend")
    how = 'vxlan, the only one loden speaks: write "Backend": {"Type": "vxlan"}'
    if backend is None:
        raise fields.error("Backend", "absent, which means udp", how)
    backend_type = backend.text("Type")
    if backend_type is None or backend_type.lower() != "vxlan":
        raise backend.error("Type", backend_type, how)
    if backend.boolean("GBP", False):
        raise backend.error("GBP", True, "false (loden sends and accepts no group policy bits)")
    return backend


def _mtu_of(backend: _Fields, smallest_inner: int) -> int | None:
    mtu = backend.number("MTU", 0, 65535)
    smallest = smallest_inner + OVERHEAD_IPV4_BYTES
    if 0 < mtu < smallest:
        allowed = f"{smallest} to 65535, or 0 for the external interface's"
        raise backend.error("MTU", mtu, allowed)
    return mtu or None


def _notes_of(backend: _Fields) -> tuple[str, ...]:
    if backend.boolean("Learning", False):
        return ("Backend.Learning is true: loden learns from etcd alone, never from packets",)
    return ()


def _cidr(kind: type[NetworkT]) -> Callable[[str], NetworkT]:
    def parse(text: str) -> NetworkT:
        _, slash, length = text.partition("/")
        if not (slash and length.isascii() and length.isdigit()):
            raise ValueError(text)
        network = ip_network(text, strict=False)
        if not isinstance(network, kind):
            raise ValueError(text)
        return network

    return parse


def _shown(value: object) -> str:
    if value is None:
        return "absent"
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    text = value if isinstance(value, str) else json.dumps(value)
    return repr(text if len(text) <= 200 else text[:200] + "...")


def overlay_mtu_bytes(underlay_mtu_bytes: int, underlay_address: IPv4Address | IPv6Address) -> int:
    """The largest inner packet that fits an outer one of `underlay_mtu_bytes`."""
    is_ipv6 = underlay_address.version == 6
    return underlay_mtu_bytes - (OVERHEAD_IPV6_BYTES if is_ipv6 else OVERHEAD_IPV4_BYTES)
