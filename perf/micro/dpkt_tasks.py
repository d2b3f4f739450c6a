"""The same by dpkt, packet by packet."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import dpkt

from forwarder.batch import CHAIN_MAX
from forwarder.coalesce import IP_PACKET_MAX
from forwarder.wire.ip import IPV4_BYTES, L4_OPAQUE, L4_TCP, TCP_ACK
from forwarder.wire.vxlan import ETHERTYPE_IPV4, VXLAN_FLAG_VNI
from perf.micro.inputs import OWN_MAC, SEGMENT_BYTES, TCP_HEADER_BYTES, VNI, Inputs, node_of
from perf.micro.task import Task, repeated


def tasks(inputs: Inputs) -> dict[str, Task]:
    packets = [packet for _, packet in inputs.frames]
    functions: dict[str, Callable[[], object]] = {
        "parse": lambda: parse(inputs.packets),
        "encap": lambda: encapsulate(inputs),
        "split": lambda: split(inputs.superpacket),
        "coalesce": lambda: coalesce(packets),
        "checksum": lambda: [dpkt.dpkt.in_cksum(packet) for packet in packets],
    }
    return {name: Task(repeated(function), function) for name, function in functions.items()}


def parse(packets: list[bytes]) -> object:
    lengths, kinds, transports = [], [], []
    for packet in packets:
        ip = dpkt.ip.IP(packet)
        lengths.append(ip.len)
        kinds.append(ip.p if isinstance(ip.data, dpkt.tcp.TCP | dpkt.udp.UDP) else L4_OPAQUE)
        transports.append(ip.hl * 4)
    return [lengths, kinds, transports]


def encapsulate(inputs: Inputs) -> object:
    vxlan = struct.pack("!B3xI", VXLAN_FLAG_VNI, VNI << 8)  # dpkt has none
    return [
        vxlan
        + bytes(
            dpkt.ethernet.Ethernet(
                dst=inputs.macs[node_of(number)], src=OWN_MAC, type=ETHERTYPE_IPV4, data=packet
            )
        )
        for number, packet in enumerate(inputs.packets)
    ]


def split(superpacket: bytes) -> object:
    whole = dpkt.ip.IP(superpacket)
    payload = whole.tcp.data
    headers = []
    for at in range(0, len(payload), SEGMENT_BYTES):
        tcp = dpkt.tcp.TCP(
            sport=whole.tcp.sport,
            dport=whole.tcp.dport,
            seq=whole.tcp.seq + at,
            ack=whole.tcp.ack,
            off=whole.tcp.off,
            flags=whole.tcp.flags,
            win=whole.tcp.win,
            opts=whole.tcp.opts,
            data=payload[at : at + SEGMENT_BYTES],
        )
        identification = whole.id + at // SEGMENT_BYTES
        ip = dpkt.ip.IP(
            id=identification,
            df=1,
            ttl=whole.ttl,
            p=whole.p,
            src=whole.src,
            dst=whole.dst,
            data=tcp,
        )
        headers.append(bytes(ip)[:TCP_HEADER_BYTES])
    return headers


def coalesce(packets: list[bytes]) -> object:
    firsts: list[int] = []
    counts: list[int] = []
    before = None
    passed = 0
    for number, packet in enumerate(packets):
        ip = dpkt.ip.IP(packet)
        right = checksums_hold(packet)
        if (
            before is not None
            and right
            and counts[-1] < CHAIN_MAX
            and passed + len(ip.tcp.data) <= IP_PACKET_MAX
            and continues(before, ip)
        ):
            counts[-1] += 1
            passed += len(ip.tcp.data)
        else:
            firsts.append(number)
            counts.append(1)
            passed = len(packet)
        before = ip if right else None
    return [firsts, counts]


def checksums_hold(packet: bytes) -> bool:
    pseudo = packet[12:20] + struct.pack("!HH", L4_TCP, len(packet) - IPV4_BYTES)
    header, transport = packet[:IPV4_BYTES], packet[IPV4_BYTES:]
    return dpkt.dpkt.in_cksum(header) == 0 and dpkt.dpkt.in_cksum(pseudo + transport) == 0


def continues(before: Any, ip: Any) -> bool:
    a, b = before.tcp, ip.tcp
    return (
        (before.src, before.dst, before.ttl, before.tos, before._flags_offset)
        == (ip.src, ip.dst, ip.ttl, ip.tos, ip._flags_offset)
        and (a.sport, a.dport, a.ack, a.win, a.opts) == (b.sport, b.dport, b.ack, b.win, b.opts)
        and a.flags == b.flags == TCP_ACK
        and a.seq + len(a.data) == b.seq
        and len(b.data) <= len(a.data)
    )
