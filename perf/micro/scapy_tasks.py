"""The same by scapy, packet by packet."""

from __future__ import annotations

from collections.abc import Callable

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw
from scapy.utils import checksum

from forwarder.wire.ip import L4_OPAQUE
from forwarder.wire.vxlan import ETHERTYPE_IPV4, format_mac
from perf.micro.inputs import OWN_MAC, SEGMENT_BYTES, TCP_HEADER_BYTES, VNI, Inputs, node_of
from perf.micro.task import Task, repeated


def tasks(inputs: Inputs) -> dict[str, Task]:
    packets = [packet for _, packet in inputs.frames]
    functions: dict[str, Callable[[], object]] = {
        "parse": lambda: parse(inputs.packets),
        "encap": lambda: encapsulate(inputs),
        "split": lambda: split(inputs.superpacket),
        "checksum": lambda: [checksum(packet) for packet in packets],
    }
    return {name: Task(repeated(function), function) for name, function in functions.items()}


def parse(packets: list[bytes]) -> object:
    lengths, kinds, transports = [], [], []
    for packet in packets:
        ip = IP(packet)
        lengths.append(ip.len)
        kinds.append(ip.proto if TCP in ip or UDP in ip else L4_OPAQUE)
        transports.append(ip.ihl * 4)
    return [lengths, kinds, transports]


def encapsulate(inputs: Inputs) -> object:
    macs, own = [format_mac(mac) for mac in inputs.macs], format_mac(OWN_MAC)
    return [
        bytes(
            VXLAN(flags="Instance", vni=VNI)
            / Ether(dst=macs[node_of(number)], src=own, type=ETHERTYPE_IPV4)
            / Raw(packet)
        )
        for number, packet in enumerate(inputs.packets)
    ]


def split(superpacket: bytes) -> object:
    whole = IP(superpacket)
    payload = bytes(whole[TCP].payload)
    headers = []
    for at in range(0, len(payload), SEGMENT_BYTES):
        ip, tcp = whole.copy(), whole[TCP].copy()
        ip.remove_payload()
        tcp.remove_payload()
        ip.id += at // SEGMENT_BYTES
        tcp.seq += at
        del ip.len, ip.chksum, tcp.chksum  # to be computed
        segment = ip / tcp / Raw(payload[at : at + SEGMENT_BYTES])
        headers.append(bytes(segment)[:TCP_HEADER_BYTES])
    return headers
