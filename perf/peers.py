"""The kernel's vxlan device as a peer, programmed statically as flannel does it.

    flannel.<VNI>   vxlan, nolearning, address <subnet>.0/32 (IPv6: flannel-v6.<VNI>, <subnet>::)
    per peer        neighbour  <peer's .0> is at <VtepMAC>        permanent
                    FDB        <VtepMAC> is behind <PublicIP>     permanent
                    route      <peer's subnet> via <peer's .0>    onlink

Nothing is learned, nothing is flooded.
"""

from __future__ import annotations

import json
import os
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from perf.topology import UNDERLAY_DEVICE, Host

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

FLANNEL_PORT = 8472
FLANNEL_VNI = 1
OVERHEAD_BYTES = {4: 20 + 8 + 8 + 14, 6: 40 + 8 + 8 + 14}
"""Outer IP, UDP, VXLAN, inner Ethernet; by the IP version of the underlay."""


class KernelVxlan:
    """A flannel node's overlay device on a host of a topology.

    An IPv4 subnet goes over the IPv4 underlay and an IPv6 subnet over the IPv6 one, by a device
    of its own, as with flannel.
    """

    def __init__(
        self,
        host: Host,
        subnet: IPNetwork,
        *,
        vni: int = FLANNEL_VNI,
        port: int = FLANNEL_PORT,
        mac: str | None = None,
        mtu_bytes: int | None = None,
        udp_checksum: bool = True,
    ) -> None:
        """`mac`: of the VTEP; None: a random one. `mtu_bytes`: inner; None: 1500 − overhead.

        `udp_checksum`: of outer IPv4 packets; without, it is zero (RFC 7348 §5).
        """
        self.host = host
        self.subnet = subnet
        self.vni = vni
        self.mac = mac or random_mac()
        self.public_ip: IPAddress = host.address
        self.device = f"flannel.{vni}"
        if subnet.version == 6:
            if host.address_ipv6 is None:
                raise ValueError(f"subnet: {subnet} needs a topology with ipv6=True")
            self.public_ip = host.address_ipv6
            self.device = f"flannel-v6.{vni}"
        self.mtu_bytes = mtu_bytes or 1500 - OVERHEAD_BYTES[subnet.version]
        nodad = " nodad" if subnet.version == 6 else ""
        checksum = "udpcsum" if udp_checksum else "noudpcsum"
        host.ip(
            f"link add {self.device} address {self.mac} mtu {self.mtu_bytes} type vxlan id {vni}"
            f" local {self.public_ip} dev {UNDERLAY_DEVICE} dstport {port} nolearning"
            f" {checksum}",
            f"address add {subnet.network_address}/{subnet.max_prefixlen} dev {self.device}{nodad}",
            f"link set {self.device} up",
        )

    def add_peer(self, subnet: IPNetwork, public_ip: IPAddress, mac: str) -> None:
        """Program what a lease says; again with other values, after the peer has changed."""
        gateway = subnet.network_address
        self.host.ip(
            f"neighbour replace {gateway} lladdr {mac} dev {self.device} nud permanent",
            f"route replace {subnet} via {gateway} dev {self.device} onlink",
        )
        fdb = f"fdb replace {mac} dev {self.device} dst {public_ip} self permanent"
        self.host.run(["bridge", *fdb.split()])


def random_mac() -> str:
    """Unicast and locally administered (IEEE 802: low bits of the first octet are 10)."""
    octets = bytearray(os.urandom(6))
    octets[0] = octets[0] & 0xFC | 0x02
    return octets.hex(":")


def lease_name(subnet: IPv4Network) -> str:
    """The last part of the lease's key in etcd: `10.5.7.0-24`."""
    return f"{subnet.network_address}-{subnet.prefixlen}"


def lease_value(ipv4: KernelVxlan, ipv6: KernelVxlan | None = None) -> str:
    """The lease's value in etcd, byte for byte as flannel writes it."""
    value = {
        "PublicIP": str(ipv4.public_ip),
        "PublicIPv6": str(ipv6.public_ip) if ipv6 else None,
        "BackendType": "vxlan",
        "BackendData": {"VNI": ipv4.vni, "VtepMAC": ipv4.mac},
    }
    if ipv6:
        value["BackendV6Data"] = {"VNI": ipv6.vni, "VtepMAC": ipv6.mac}
    return json.dumps(value, separators=(",", ":"))
