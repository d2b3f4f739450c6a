"""What a node does with a datagram from the underlay: every check, in order."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from forwarder.counters import Drop
from forwarder.fib.routes import IPAddress, Local, NextHop, RemoteVtep
from tests.reference.checksum import checksum
from tests.reference.packet import ip_length
from tests.reference.routes import RouteTable

NOT_ECT, ECT1, ECT0, CE = range(4)

ECN_MERGED = {
    # inner, outer: what the inner becomes, None: dropped (RFC 6040, figure 4)
    (NOT_ECT, NOT_ECT): NOT_ECT,
    (NOT_ECT, ECT0): NOT_ECT,
    (NOT_ECT, ECT1): NOT_ECT,
    (NOT_ECT, CE): None,
    (ECT0, NOT_ECT): ECT0,
    (ECT0, ECT0): ECT0,
    (ECT0, ECT1): ECT1,
    (ECT0, CE): CE,
    (ECT1, NOT_ECT): ECT1,
    (ECT1, ECT0): ECT1,
    (ECT1, ECT1): ECT1,
    (ECT1, CE): CE,
    (CE, NOT_ECT): CE,
    (CE, ECT0): CE,
    (CE, ECT1): CE,
    (CE, CE): CE,
}


@dataclass
class Node:
    vni: int
    mac: bytes
    routes: RouteTable[NextHop]


def decapsulate(node: Node, frame: bytes, sender: IPAddress, outer_tos: int) -> bytes | Drop:
    """The inner packet, or why there is none."""
    if len(frame) < 22:
        return Drop.TRUNCATED
    vxlan, ethernet, inner = frame[:8], frame[8:22], frame[22:]
    if not vxlan[0] & 0x08:
        return Drop.NO_VNI_FLAG
    if vxlan[:4] != b"\x08\0\0\0" or vxlan[7]:
        return Drop.RESERVED_BITS
    if int.from_bytes(vxlan[4:7], "big") != node.vni:
        return Drop.WRONG_VNI
    if ethernet[:6] != node.mac:
        return Drop.NOT_OUR_MAC
    if ethernet[6:12] == node.mac:
        return Drop.OWN_SOURCE_MAC
    if ethernet[12:] not in (b"\x08\x00", b"\x86\xdd"):
        return Drop.NOT_IP
    version = 4 if ethernet[12:] == b"\x08\x00" else 6
    length = ip_length(inner)
    if length == 0 or inner[0] >> 4 != version:
        return Drop.INNER_MALFORMED
    packet = inner[:length]
    source, destination = addresses_of(packet)
    if (reason := _check_sender(node, source, sender)) is not None:
        return reason
    if not isinstance(node.routes.lookup(destination), Local):
        return Drop.NOT_OUR_DESTINATION
    merged = ECN_MERGED[ecn_of(packet), outer_tos & 3]
    return Drop.ECN_INVALID if merged is None else with_ecn(packet, merged)


def _check_sender(node: Node, source: IPAddress, sender: IPAddress) -> Drop | None:
    """The inner source must be routed to the VTEP that sent the datagram."""
    hop = node.routes.lookup(source)
    if isinstance(hop, RemoteVtep) and hop.address == sender:
        return None
    vteps = {hop.address for hop in node.routes.routes.values() if isinstance(hop, RemoteVtep)}
    return Drop.SPOOFED_SOURCE if sender in vteps else Drop.UNKNOWN_VTEP


def addresses_of(packet: bytes) -> tuple[IPAddress, IPAddress]:
    """Source and destination."""
    if packet[0] >> 4 == 4:
        return IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    return IPv6Address(packet[8:24]), IPv6Address(packet[24:40])


def ecn_of(packet: bytes) -> int:
    """The low two bits of the TOS or traffic class."""
    return packet[1] & 3 if packet[0] >> 4 == 4 else packet[1] >> 4 & 3


def with_ecn(packet: bytes, ecn: int) -> bytes:
    """The packet with another ECN field; an IPv4 checksum is adjusted, right or not (RFC 1624)."""
    if ecn == ecn_of(packet):
        return packet
    if packet[0] >> 4 == 6:
        return packet[:1] + bytes([packet[1] & ~0x30 | ecn << 4]) + packet[2:]
    old, new = packet[:2], packet[:1] + bytes([packet[1] & ~3 | ecn])
    adjusted = checksum(_inverted(packet[10:12]) + _inverted(old) + new)
    return new + packet[2:10] + adjusted.to_bytes(2, "big") + packet[12:]


def _inverted(word: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in word)
