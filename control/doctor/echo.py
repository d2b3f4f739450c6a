"""Pings of many sizes to many hosts at once, never fragmented: what gets through, and what not.

ICMP echo (RFC 792, RFC 4443) from a raw socket. IP_PMTUDISC_PROBE sets DF and passes over what
the kernel believes of the way, so that each size is really tried.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress

from forwarder.fib.routes import IPAddress

WAIT_S = 0.5
"""For the answers to a round; the way around the world takes 0.3 s."""
ATTEMPTS = 2
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23
PMTUDISC_PROBE = 3
ICMP_BYTES = 8
IP_BYTES = {4: 20, 6: 40}
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_SEARCH_STEPS = 48

Probe = tuple[IPAddress, int]
"""Where to, and bytes of the whole IP packet."""


def answered(
    probes: Iterable[Probe], source: IPAddress | None = None, attempts: int = ATTEMPTS
) -> set[Probe]:
    """Those that an answer came back to.  Raises OSError without CAP_NET_RAW."""
    left = set(probes)
    got: set[Probe] = set()
    for version in (4, 6):
        wanted = {probe for probe in left if probe[0].version == version}
        for _ in range(attempts):
            if wanted - got:
                # Small ones first: a tunnel must not join a small one to a full one before it.
                ordered = sorted(wanted - got, key=lambda probe: (probe[1], int(probe[0])))
                got |= _round(version, ordered, source)
    return got


def largest(address: IPAddress, low: int, high: int) -> int:
    """The largest packet that is answered, in bytes; `low` is, `high` is not."""
    while high - low > 1:
        step = max(1, (high - low) // _SEARCH_STEPS)
        sizes = range(low + step, high, step)
        passed = answered(((address, size) for size in sizes), attempts=1)
        best = max((size for _, size in passed), default=low)
        low, high = best, min((s for s in sizes if s > best), default=high)
    return low


def _round(version: int, probes: list[Probe], source: IPAddress | None) -> set[Probe]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    level, option = (
        (socket.IPPROTO_IP, IP_MTU_DISCOVER)
        if version == 4
        else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
    )
    got: set[Probe] = set()
    with socket.socket(family, socket.SOCK_RAW, protocol) as icmp:
        icmp.setsockopt(level, option, PMTUDISC_PROBE)
        icmp.setblocking(False)
        if source is not None:
            icmp.bind((str(source), 0))
        mark = os.urandom(2)
        for number, (address, size) in enumerate(probes):
            with suppress(OSError):  # too large for the first link, or no way at all
                icmp.sendto(_request(version, mark, number, size), (str(address), 0))
        deadline = time.monotonic() + WAIT_S
        while len(got) < len(probes) and (wait_s := deadline - time.monotonic()) > 0:
            if not select.select([icmp], [], [], wait_s)[0]:
                break
            with suppress(OSError):  # what routers on the way complain of comes as an error
                answered_one = _reply_number(version, mark, icmp.recv(1 << 16))
                if answered_one is not None and answered_one < len(probes):
                    got.add(probes[answered_one])
    return got


def _request(version: int, mark: bytes, number: int, size: int) -> bytes:
    payload = bytes(max(size - IP_BYTES[version] - ICMP_BYTES, 0))
    header = struct.pack("!BBH2sH", _REQUEST[version], 0, 0, mark, number)
    if version == 6:
        return header + payload  # the kernel sums it, with the addresses it chose
    words = sum(struct.unpack("!4H", header))
    total = (words & 0xFFFF) + (words >> 16)
    return struct.pack("!BBH2sH", _REQUEST[4], 0, ~total & 0xFFFF, mark, number) + payload


def _reply_number(version: int, mark: bytes, packet: bytes) -> int | None:
    """The number of the request that a packet answers; None: it is no answer to us."""
    icmp = packet[(packet[0] & 15) * 4 :] if version == 4 else packet
    if len(icmp) < ICMP_BYTES or icmp[0] != _REPLY[version] or icmp[4:6] != mark:
        return None
    return int.from_bytes(icmp[6:8], "big")
