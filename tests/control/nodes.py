"""Attributes of nodes that differ from each other, for tests."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from control.etcd import EtcdClient
from control.lease import Lease, LeaseAttrs, Vtep
from control.network_config import NetworkConfig

CONFIG = NetworkConfig.build("10.7.0.0/16")
DUAL_CONFIG = NetworkConfig.parse(
    '{"Network":"10.7.0.0/16","EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56",'
    '"Backend":{"Type":"vxlan"}}'
)


def node(number: int, vni: int = 1) -> LeaseAttrs:
    """The IPv4 node with this number."""
    mac = f"0e:00:00:00:{number >> 8:02x}:{number & 255:02x}"
    return LeaseAttrs(
        IPv4Address(f"192.0.{2 + (number >> 8)}.{number & 255}"), None, Vtep(vni, mac)
    )


def dual_node(number: int) -> LeaseAttrs:
    """The node with this number, with both families."""
    ipv4 = node(number)
    mac = f"0e:06:00:00:{number >> 8:02x}:{number & 255:02x}"
    ipv6 = IPv6Address(f"fd77::{number:x}")
    return LeaseAttrs(ipv4.public_ip, ipv6, ipv4.vtep, Vtep(1, mac))


def put_lease(client: EtcdClient, name: str, attrs: LeaseAttrs, lease_id: int = 0) -> str:
    """Publish a lease behind everybody's back; its key."""
    key = f"{client.config.prefix}/subnets/{name}"
    client.put(key, attrs.to_json(), lease_id)
    return key


def held_by(client: EtcdClient, lease: Lease) -> LeaseAttrs | None:
    """Whom etcd says the lease's key belongs to."""
    entry = client.get(lease.key)
    return None if entry is None else LeaseAttrs.parse(entry.value)
