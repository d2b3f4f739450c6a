"""Packets for the data path's tests, all built by scapy, and strategies that vary them.

Two nodes of one overlay: A has pods in 10.7.1.0/24 and fd07:1::/64, B in 10.7.2.0/24 and
fd07:2::/64; further VTEPs are peers of both.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from forwarder.fib.routes import Local, NextHop, Prefix, RemoteVtep
from tests.forwarder.fibs import PORT, VNI, Fib, make_fib
from tests.reference.checksum import checksum, pseudo_header
from tests.reference.packet import CHECKSUM_AT, find_transport, pseudo_sum

MAC_A = bytes.fromhex("02000000000a")
MAC_B = bytes.fromhex("02000000000b")
VTEP_A = RemoteVtep(IPv4Address("192.0.2.1"), MAC_A, VNI, PORT)
VTEP_B = RemoteVtep(IPv4Address("192.0.2.2"), MAC_B, VNI, PORT)
VTEP_C = RemoteVtep(IPv6Address("2001:db8::c"), bytes.fromhex("02000000000c"), VNI, PORT)

NET_A = {4: "10.7.1.", 6: "fd07:1::"}
NET_B = {4: "10.7.2.", 6: "fd07:2::"}
NET_C = {4: "10.7.3.", 6: "fd07:3::"}


def routes_of(own: str) -> dict[Prefix, NextHop | None]:
    """What node "A" or "B" believes."""
    routes: dict[Prefix, NextHop | None] = {}
    for name, net, vtep in (("A", NET_A, VTEP_A), ("B", NET_B, VTEP_B), ("C", NET_C, VTEP_C)):
        hop = Local() if name == own else vtep
        routes[Prefix.parse(f"{net[4]}0/24")] = hop
        routes[Prefix.parse(f"{net[6]}/64")] = hop
    return routes


def make_node(own: str) -> Fib:
    """The FIB of node "A" or "B"."""
    fib = make_fib(own_mac=MAC_A if own == "A" else MAC_B)
    fib.writer.apply(routes_of(own))
    return fib


@dataclass(frozen=True)
class Flow:
    """A TCP or UDP flow from a pod of A to one of B."""

    version: int = 4
    protocol: str = "tcp"
    source: str = NET_A[4] + "2"
    destination: str = NET_B[4] + "2"
    ports: tuple[int, int] = (40000, 80)

    @classmethod
    def between(cls, version: int, protocol: str, number: int, to: dict[int, str]) -> "Flow":
        """One of many: flows of different numbers differ in ports."""
        source, destination = NET_A[version] + "2", to[version] + "3"
        return cls(version, protocol, source, destination, (40000 + number, 80))

    def ip(self, **fields: object) -> Packet:
        if self.version == 4:
            return IP(src=self.source, dst=self.destination, **{"flags": "DF", **fields})
        return IPv6(src=self.source, dst=self.destination, **fields)

    def transport(self, **fields: object) -> Packet:
        sport, dport = self.ports
        if self.protocol == "tcp":
            return TCP(sport=sport, dport=dport, **{"flags": "A", "ack": 77, **fields})
        return UDP(sport=sport, dport=dport)

    def packet(
        self,
        payload: bytes,
        ip: dict[str, object] | None = None,
        transport: dict[str, object] | None = None,
    ) -> bytes:
        return bytes(self.ip(**ip or {}) / self.transport(**transport or {}) / Raw(payload))


def encapsulated(packet: bytes, to: bytes = MAC_B, source: bytes = MAC_A, vni: int = VNI) -> bytes:
    """The UDP payload that carries an inner packet, as scapy builds it."""
    ethertype = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    ethernet = Ether(dst=to.hex(":"), src=source.hex(":"), type=ethertype)
    return bytes(VXLAN(flags="Instance", vni=vni) / ethernet / Raw(packet))


def with_partial_checksum(packet: bytes) -> bytes:
    """A TCP or UDP packet as a kernel has it that leaves the checksum to hardware."""
    return _with_checksum_field(packet, pseudo_sum(packet))


def with_checksums(packet: bytes) -> bytes:
    """A packet with all its checksums made right."""
    transport = find_transport(packet)
    if packet[0] >> 4 == 4:
        header_bytes = (packet[0] & 15) * 4
        zeroed = packet[:10] + b"\0\0" + packet[12:header_bytes]
        packet = packet[:10] + checksum(zeroed).to_bytes(2, "big") + packet[12:]
    if transport.kind == 0:
        return packet
    zeroed = _with_checksum_field(packet, 0)
    pseudo = pseudo_header(packet, transport.protocol, len(packet) - transport.offset)
    return _with_checksum_field(packet, checksum(pseudo + zeroed[transport.offset :]) or 0xFFFF)


def _with_checksum_field(packet: bytes, value: int) -> bytes:
    transport = find_transport(packet)
    at = transport.offset + CHECKSUM_AT[transport.kind]
    return packet[:at] + value.to_bytes(2, "big") + packet[at + 2 :]


# ---- strategies ---------------------------------------------------------------------------------

versions = st.sampled_from([4, 6])
destinations = st.sampled_from([NET_B, NET_C])


@st.composite
def flows(draw: st.DrawFn, to: dict[int, str] | None = None, protocol: str | None = None) -> Flow:
    """One of a few flows, so that several packets of a batch share one."""
    return Flow.between(
        draw(versions),
        protocol or draw(st.sampled_from(["tcp", "udp"])),
        draw(st.integers(0, 5)),
        to or draw(destinations),
    )


payloads = st.integers(0, 1370).map(lambda size: bytes(i * 7 & 0xFF for i in range(size)))


@st.composite
def odd_packets(draw: st.DrawFn) -> bytes:
    """Everything that is no plain TCP or UDP: other protocols, options, fragments."""
    flow = draw(flows())
    body: Packet = draw(
        st.sampled_from(
            [
                ICMP() if flow.version == 4 else ICMPv6EchoRequest(),
                SCTP(sport=1, dport=2) / SCTPChunkData(data=b"data"),
                flow.transport(),
                Raw(b""),
            ]
        )
    )
    if flow.version == 4:
        fields: dict[str, object] = draw(
            st.sampled_from(
                [
                    {},
                    {"flags": "MF"},
                    {"frag": 100},
                    {"options": [IPOption_Router_Alert()]},
                    {"proto": 50},
                    {"tos": draw(st.integers(0, 255))},
                ]
            )
        )
        header = flow.ip(**fields)
    else:
        header = flow.ip(tc=draw(st.integers(0, 255)))
        for extension in draw(
            st.lists(
                st.sampled_from([IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment()]),
                max_size=3,
            )
        ):
            header = header / extension
    return bytes(header / body / Raw(draw(payloads)))
