"""subnet.env: what Docker, CNI plugins and our own restart learn this node's subnet from.

    FLANNEL_NETWORK=10.7.0.0/16
    FLANNEL_SUBNET=10.7.29.1/24
    FLANNEL_IPV6_NETWORK=2001:cafe:42::/56
    FLANNEL_IPV6_SUBNET=2001:cafe:42:4f::1/64
    FLANNEL_MTU=1450
    FLANNEL_IPMASQ=false

The order and spelling are flannel's; a family that is off has no lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path
from typing import TypeVar

from control.atomic_file import replace_file
from control.lease import NodeSubnet
from control.network_config import NetworkConfig

DEFAULT_PATH = Path("/run/flannel/subnet.env")
FILE_MODE = 0o644

T = TypeVar("T")


class SubnetEnvError(ValueError):
    """A line of subnet.env cannot be read; the message names it."""

    retryable = False


@dataclass(frozen=True)
class SubnetEnv:
    """The contents of subnet.env."""

    network: IPv4Network | None
    """The whole pod network."""
    subnet: IPv4Interface | None
    """This node's first pod address (the bridge's) and the length of its subnet."""
    ipv6_network: IPv6Network | None
    ipv6_subnet: IPv6Interface | None
    mtu_bytes: int
    """The largest packet pods may send: the underlay's MTU less the encapsulation."""
    ip_masq: bool
    """Whether loden masquerades what leaves the cluster; if not, Docker shall."""

    @classmethod
    def of(
        cls, config: NetworkConfig, subnet: NodeSubnet, mtu_bytes: int, ip_masq: bool
    ) -> SubnetEnv:
        """What to write for a node that holds `subnet` under `config`."""
        ipv4, ipv6 = subnet.ipv4, subnet.ipv6
        return cls(
            network=config.ipv4.network if config.ipv4 else None,
            subnet=IPv4Interface((ipv4.network_address + 1, ipv4.prefixlen)) if ipv4 else None,
            ipv6_network=config.ipv6.network if config.ipv6 else None,
            ipv6_subnet=IPv6Interface((ipv6.network_address + 1, ipv6.prefixlen)) if ipv6 else None,
            mtu_bytes=mtu_bytes,
            ip_masq=ip_masq,
        )

    @property
    def node_subnet(self) -> NodeSubnet:
        """The subnet this node held when the file was written, to ask for again."""
        return NodeSubnet(
            self.subnet.network if self.subnet else None,
            self.ipv6_subnet.network if self.ipv6_subnet else None,
        )

    @classmethod
    def parse(cls, text: str) -> SubnetEnv:
        """Read the file's text; other lines are ignored. Raises SubnetEnvError."""
        pairs = (line.strip().partition("=") for line in text.splitlines())
        values = {name: value.strip("\"'") for name, _, value in pairs}

        def read(name: str, parse: Callable[[str], T]) -> T | None:
            value = values.get(name)
            if value is None:
                return None
            try:
                return parse(value)
            except ValueError as error:
                raise SubnetEnvError(f"subnet.env: {name} is {value!r}: {error}") from None

        return cls(
            network=read("FLANNEL_NETWORK", IPv4Network),
            subnet=read("FLANNEL_SUBNET", IPv4Interface),
            ipv6_network=read("FLANNEL_IPV6_NETWORK", IPv6Network),
            ipv6_subnet=read("FLANNEL_IPV6_SUBNET", IPv6Interface),
            mtu_bytes=read("FLANNEL_MTU", int) or 0,
            ip_masq=values.get("FLANNEL_IPMASQ", "false") == "true",
        )

    def to_text(self) -> str:
        """The file's text, in flannel's order."""
        lines = [
            ("FLANNEL_NETWORK", self.network),
            ("FLANNEL_SUBNET", self.subnet),
            ("FLANNEL_IPV6_NETWORK", self.ipv6_network),
            ("FLANNEL_IPV6_SUBNET", self.ipv6_subnet),
            ("FLANNEL_MTU", self.mtu_bytes),
            ("FLANNEL_IPMASQ", str(self.ip_masq).lower()),
        ]
        return "".join(f"{name}={value}\n" for name, value in lines if value is not None)


def read_subnet_env(path: Path = DEFAULT_PATH) -> SubnetEnv | None:
    """What subnet.env says, or None where there is no such file.

    Raises SubnetEnvError for a damaged file, OSError where it cannot be read.
    """
    try:
        return SubnetEnv.parse(path.read_text())
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise SubnetEnvError(f"subnet.env: {path} is not text: {error}") from None


def write_subnet_env(contents: SubnetEnv, path: Path = DEFAULT_PATH) -> None:
    """Put the file in place at one stroke: a reader sees the old one or the new one, whole.

    Makes the directory where it is missing. The modes hold whatever the umask. Raises OSError.
    """
    replace_file(path, contents.to_text().encode(), FILE_MODE)
