"""Reading the FIB: what a worker does for every packet, without locks."""

import numpy as np

from forwarder.arrays import Bytes, Int
from forwarder.fib.layout import (
    GROUP_ENTRIES,
    IPV6_ACTIVE_WORD,
    IS_GROUP,
    NO_ADJACENCY,
    SOCKADDR_AT,
    SOCKADDR_IN6_ADDRESS_AT,
    SOCKADDR_IN_ADDRESS_AT,
    VTEP_TOMBSTONE,
    FibView,
    vtep_hash,
)
from forwarder.jit import kernel, step
from forwarder.wire.ip import load32

AF_INET = 2
AF_INET6 = 10
VTEP_PROBES_MAX = 128
"""Longest search in the VTEP table; the writer rebuilds it before a chain gets this long."""

_vtep_hash = kernel(vtep_hash)


@step
def lookup_ipv4(fib: FibView, address: Int) -> Int:
    """The adjacency of an IPv4 address (host byte order), NO_ADJACENCY when there is no route.

    DIR-24-8 (Gupta, Lin, McKeown 1998; DPDK's rte_lpm): one load, a second below /24.
    """
    entry = np.int64(fib.tbl24[address >> 8])
    if entry & IS_GROUP:
        entry = np.int64(fib.groups[(entry & ~IS_GROUP) * GROUP_ENTRIES + (address & 0xFF)])
    return entry


@kernel
def lookup_ipv6(fib: FibView, data: Bytes, at: Int) -> Int:
    """The adjacency of the IPv6 address at data[at : at + 16]: binary search over the ranges."""
    active = fib.header[IPV6_ACTIVE_WORD]
    count = np.int64(active & np.uint64(0xFFFFFFFF))
    copy = np.int64(active >> np.uint64(32)) * (len(fib.ipv6_adjacency) // 2)
    high = (np.uint64(load32(data, at)) << np.uint64(32)) | np.uint64(load32(data, at + 4))
    low = (np.uint64(load32(data, at + 8)) << np.uint64(32)) | np.uint64(load32(data, at + 12))
    below, above = np.int64(0), count  # the first range that begins after the address
    while below < above:
        middle = (below + above) >> 1
        first_high = fib.ipv6_first[copy + middle, 0]
        first_low = fib.ipv6_first[copy + middle, 1]
        if first_high < high or (first_high == high and first_low <= low):
            below = middle + 1
        else:
            above = middle
    if below == 0:
        return np.int64(NO_ADJACENCY)
    return np.int64(fib.ipv6_adjacency[copy + below - 1])


@step
def lookup_packet(fib: FibView, data: Bytes, address_at: Int, version: Int) -> Int:
    """The adjacency of the 4- or 16-byte address at data[address_at]."""
    if version == 4:
        return lookup_ipv4(fib, load32(data, address_at))
    return lookup_ipv6(fib, data, address_at)


@step
def is_address_of(fib: FibView, adjacency: Int, sockaddr: Bytes) -> bool:
    """Whether a sockaddr (as recvmmsg fills it) is the VTEP of this adjacency, port aside."""
    row = fib.adjacencies[adjacency]
    if row[SOCKADDR_AT] != sockaddr[0]:
        return False
    if sockaddr[0] == AF_INET:
        first, size = SOCKADDR_IN_ADDRESS_AT, 4
    else:
        first, size = SOCKADDR_IN6_ADDRESS_AT, 16
    for at in range(first, first + size):
        if row[SOCKADDR_AT + at] != sockaddr[at]:
            return False
    return True


@kernel
def find_vtep(fib: FibView, sockaddr: Bytes) -> Int:
    """An adjacency of the VTEP with this outer address; NO_ADJACENCY: nobody we know."""
    if sockaddr[0] == AF_INET:
        hashed = _vtep_hash(np.int64(0), load32(sockaddr, SOCKADDR_IN_ADDRESS_AT))
    else:
        at = SOCKADDR_IN6_ADDRESS_AT
        hashed = _vtep_hash(
            load32(sockaddr, at) ^ load32(sockaddr, at + 8),
            load32(sockaddr, at + 4) ^ load32(sockaddr, at + 12),
        )
    mask = len(fib.vteps) - 1
    for probe in range(VTEP_PROBES_MAX):
        adjacency = np.int64(fib.vteps[(hashed + probe) & mask])
        if adjacency == NO_ADJACENCY:
            break
        if adjacency != VTEP_TOMBSTONE and is_address_of(fib, adjacency, sockaddr):
            return adjacency
    return np.int64(NO_ADJACENCY)
