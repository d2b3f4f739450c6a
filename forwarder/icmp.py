"""Answers to pods whose packets cannot be delivered: unreachable, or too big.

RFC 792, RFC 1191 (MTU of the next hop), RFC 1812 §4.3.2 (what must never be answered, how much
is quoted, rate limiting), RFC 4443 for IPv6.  The answer goes back through the overlay device,
with the packet's own destination as its source: an address the kernel expects from there.
"""

import numpy as np

from forwarder import tun
from forwarder.arrays import Bytes, Int, Longs
from forwarder.batch import Outbound
from forwarder.counters import Drop, Total
from forwarder.jit import kernel
from forwarder.libc import monotonic_ns
from forwarder.path_mtu import mtu_towards
from forwarder.tunnel import Tunnel
from forwarder.wire.checksum import ones_sum, pseudo_sum, set_ipv4_checksum
from forwarder.wire.ip import (
    IPV4_BYTES,
    IPV4_DESTINATION_AT,
    IPV4_FRAGMENT_AT,
    IPV4_FRAGMENT_OFFSET,
    IPV4_LENGTH_AT,
    IPV4_PROTOCOL_AT,
    IPV4_SOURCE_AT,
    IPV4_TTL_AT,
    IPV6_BYTES,
    IPV6_DESTINATION_AT,
    IPV6_LENGTH_AT,
    IPV6_NEXT_AT,
    IPV6_SOURCE_AT,
    PROTOCOL_FRAGMENT,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    find_transport,
    load16,
    load32,
    store16,
    store32,
)
from forwarder.wire.virtio_net import VNET_BYTES

UNREACHABLE, CODE_NET, CODE_TOO_BIG, CODE_PROHIBITED = 3, 0, 4, 13
UNREACHABLE_V6, TOO_BIG_V6, CODE_PROHIBITED_V6 = 1, 2, 1
ECHO_REPLY, ECHO_REQUEST = 0, 8
FIRST_INFORMATIONAL_V6 = 128
FRAGMENT_BYTES = 8
"""An IPv6 fragment header (RFC 8200 §4.5): next header, reserved, 13 bits of offset and 3 flags."""

ICMP_BYTES = 8
ANSWER_MAX = 576
"""RFC 1812 §4.3.2.3: quote as much as fits in 576 bytes."""
ANSWER_MAX_V6 = 1280
HOP_LIMIT = 64

ANSWERS_PER_S = 200
BURST = 50
"""Of each worker."""


@kernel
def answer(tunnel: Tunnel, batch: Outbound, packets: Int, row: Longs) -> None:
    """Tells the senders of packets that had no route, were forbidden, or were too big."""
    for i in range(packets):
        reason = batch.reason[i]
        if reason != Drop.NO_ROUTE and reason != Drop.BLACKHOLE and reason != Drop.TOO_BIG:
            continue
        data, start, length = batch.data, batch.start[i], batch.length[i]
        if not may_be_answered(data, start, length) or not take_token(batch.limiter):
            continue
        version = data[start] >> 4
        mtu_bytes = mtu_towards(tunnel, batch.adjacency[i], version)
        if version == 4:
            total = write_ipv4(batch.answer, data, start, length, reason, mtu_bytes)
        else:
            total = write_ipv6(batch.answer, data, start, length, reason, mtu_bytes)
        iovecs = batch.iovecs
        iovecs[0, 0] = np.int64(batch.answer.ctypes.data)
        iovecs[0, 1] = VNET_BYTES + total
        if tun.write_packet(tunnel.tun_fd, iovecs, 1) == Drop.NONE:
            row[Total.ICMP_SENT] += 1


@kernel
def may_be_answered(data: Bytes, start: Int, length: Int) -> bool:
    """Not ICMP errors, not later fragments, not what came from or went to no single host."""
    _, transport, protocol = find_transport(data, start, length)
    if data[start] >> 4 == 4:
        if load16(data, start + IPV4_FRAGMENT_AT) & IPV4_FRAGMENT_OFFSET != 0:
            return False
        if data[start + IPV4_DESTINATION_AT] >= 224 or data[start + IPV4_SOURCE_AT] >= 224:
            return False
        if load32(data, start + IPV4_SOURCE_AT) == 0 or data[start + IPV4_SOURCE_AT] == 127:
            return False
        if protocol == PROTOCOL_ICMP:
            kind = data[start + transport] if transport < length else UNREACHABLE
            return kind == ECHO_REQUEST or kind == ECHO_REPLY
        return True
    if data[start + IPV6_DESTINATION_AT] == 0xFF or data[start + IPV6_SOURCE_AT] == 0xFF:
        return False
    source = start + IPV6_SOURCE_AT
    if load32(data, source) | load32(data, source + 4) | load32(data, source + 8) == 0:
        return False  # unspecified, loopback
    if protocol == PROTOCOL_FRAGMENT:
        header = start + transport
        if transport + FRAGMENT_BYTES > length or load16(data, header + 2) >> 3 != 0:
            return False
        protocol = np.int64(data[header])
        transport += FRAGMENT_BYTES
    if protocol == PROTOCOL_ICMPV6:
        return bool(transport < length and data[start + transport] >= FIRST_INFORMATIONAL_V6)
    return True


@kernel
def take_token(limiter: Longs) -> bool:
    """A token bucket: limiter[0] thousandths of a token, filled up to limiter[1] (ns).

    limiter[2:4] is scratch.
    """
    now = monotonic_ns(limiter[2:])
    gained = (now - limiter[1]) * ANSWERS_PER_S // 1_000_000
    if gained > 0:
        limiter[0] = min(limiter[0] + gained, BURST * 1000)
        limiter[1] = now
    if limiter[0] < 1000:
        return False
    limiter[0] -= 1000
    return True


@kernel
def write_ipv4(
    out: Bytes, data: Bytes, start: Int, length: Int, reason: Int, mtu_bytes: Int
) -> Int:
    """Writes the answer to an IPv4 packet after a plain vnet header; returns its length."""
    quoted = min(length, ANSWER_MAX - IPV4_BYTES - ICMP_BYTES)
    total = IPV4_BYTES + ICMP_BYTES + quoted
    out[: VNET_BYTES + IPV4_BYTES + ICMP_BYTES] = 0
    ip = VNET_BYTES
    out[ip] = 0x45
    store16(out, ip + IPV4_LENGTH_AT, total)
    out[ip + IPV4_TTL_AT] = HOP_LIMIT
    out[ip + IPV4_PROTOCOL_AT] = PROTOCOL_ICMP
    store32(out, ip + IPV4_SOURCE_AT, load32(data, start + IPV4_DESTINATION_AT))
    store32(out, ip + IPV4_DESTINATION_AT, load32(data, start + IPV4_SOURCE_AT))
    set_ipv4_checksum(out, ip, IPV4_BYTES)
    icmp = ip + IPV4_BYTES
    out[icmp] = UNREACHABLE
    out[icmp + 1] = CODE_NET
    if reason == Drop.TOO_BIG:
        out[icmp + 1] = CODE_TOO_BIG
        store16(out, icmp + 6, mtu_bytes)
    elif reason == Drop.BLACKHOLE:
        out[icmp + 1] = CODE_PROHIBITED
    for k in range(quoted):
        out[icmp + ICMP_BYTES + k] = data[start + k]
    store16(out, icmp + 2, ~ones_sum(out, icmp, ICMP_BYTES + quoted) & 0xFFFF)
    return np.int64(total)


@kernel
def write_ipv6(
    out: Bytes, data: Bytes, start: Int, length: Int, reason: Int, mtu_bytes: Int
) -> Int:
    """Writes the answer to an IPv6 packet after a plain vnet header; returns its length."""
    quoted = min(length, ANSWER_MAX_V6 - IPV6_BYTES - ICMP_BYTES)
    total = IPV6_BYTES + ICMP_BYTES + quoted
    out[: VNET_BYTES + IPV6_BYTES + ICMP_BYTES] = 0
    ip = VNET_BYTES
    out[ip] = 0x60
    store16(out, ip + IPV6_LENGTH_AT, ICMP_BYTES + quoted)
    out[ip + IPV6_NEXT_AT] = PROTOCOL_ICMPV6
    out[ip + IPV6_NEXT_AT + 1] = HOP_LIMIT
    for k in range(16):
        out[ip + IPV6_SOURCE_AT + k] = data[start + IPV6_DESTINATION_AT + k]
        out[ip + IPV6_DESTINATION_AT + k] = data[start + IPV6_SOURCE_AT + k]
    icmp = ip + IPV6_BYTES
    out[icmp] = UNREACHABLE_V6
    if reason == Drop.TOO_BIG:
        out[icmp] = TOO_BIG_V6
        store32(out, icmp + 4, mtu_bytes)
    elif reason == Drop.BLACKHOLE:
        out[icmp + 1] = CODE_PROHIBITED_V6
    for k in range(quoted):
        out[icmp + ICMP_BYTES + k] = data[start + k]
    summed = pseudo_sum(out, ip, PROTOCOL_ICMPV6, ICMP_BYTES + quoted)
    summed += ones_sum(out, icmp, ICMP_BYTES + quoted)
    while summed >> 16:
        summed = (summed & 0xFFFF) + (summed >> 16)
    store16(out, icmp + 2, ~summed & 0xFFFF)
    return np.int64(total)
