"""A captured packet in words: one line for a terminal, and the comment in a pcapng file."""

from __future__ import annotations

import struct
import time
from ipaddress import ip_address

from forwarder.capture_reader import Captured
from forwarder.capture_ring import Direction
from forwarder.counters import Drop

PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 44: "fragment", 58: "ICMPv6", 132: "SCTP"}
WITH_PORTS = {6, 17, 132}
ETHERNET_BYTES = 14
IPV4_BYTES, IPV6_BYTES = 20, 40

ABOUT_THE_HEADER = {Drop.NO_VNI_FLAG, Drop.RESERVED_BITS, Drop.WRONG_VNI}
"""What was wrong is to be seen in the VXLAN header, which no inner packet has."""


def line(packet: Captured) -> str:
    """When, which way, who to whom, how long, and its fate."""
    seconds, ns = divmod(packet.time_ns, 1_000_000_000)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    inner_bytes = max(packet.original_bytes - ETHERNET_BYTES, 0)
    told = f"{clock}.{ns // 1000:06} {packet.direction.name.lower():3} {_ends(packet.frame)}"
    return f"{told}, {inner_bytes} bytes, {fate(packet)}"


def fate(packet: Captured) -> str:
    """Which VTEP it is from or goes to, and whether it was dropped and why."""
    words = []
    if packet.vtep is not None:
        preposition = "to" if packet.direction is Direction.OUT else "from"
        words.append(f"{preposition} {packet.vtep}")
    if packet.reason is not Drop.NONE:
        words.append(f"dropped {packet.reason.name.lower()}: {packet.reason.sentence}")
    if packet.reason in ABOUT_THE_HEADER:
        words.append(f"VXLAN header {packet.vxlan.hex(' ')}")
    return ", ".join(words) or "to nobody"


def _ends(frame: bytes) -> str:
    """Source and destination, with ports where there are any, and the protocol."""
    packet = frame[ETHERNET_BYTES:]
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= IPV4_BYTES:
        protocol, header_bytes = packet[9], (packet[0] & 15) * 4
        source, destination = packet[12:16], packet[16:20]
        has_ports = not int.from_bytes(packet[6:8], "big") & 0x1FFF  # the first fragment, or all
    elif version == 6 and len(packet) >= IPV6_BYTES:
        protocol, header_bytes = packet[6], IPV6_BYTES
        source, destination = packet[8:24], packet[24:40]
        has_ports = True
    else:
        return "no IP packet"
    ends = [str(ip_address(source)), str(ip_address(destination))]
    transport = packet[header_bytes : header_bytes + 4]
    if has_ports and protocol in WITH_PORTS and len(transport) == 4:
        ports = struct.unpack("!HH", transport)
        shown = "{}:{}" if version == 4 else "[{}]:{}"
        ends = [shown.format(end, port) for end, port in zip(ends, ports, strict=True)]
    return f"{ends[0]} > {ends[1]} {PROTOCOLS.get(protocol, f'protocol {protocol}')}"
