"""The FIB in shared memory: one writer (control), readers without locks (the workers).

    header      4 KiB     magic, version, capacities, generation
    tbl24       64 MiB    uint32 per IPv4 /24: an adjacency, or a group of 256   (DIR-24-8)
    groups                uint32[256] each: the /32s of one /24
    ipv6 x 2              disjoint ranges sorted by first address; one of two copies is active
    adjacencies           64 bytes each: the ready-made headers and the socket address of a VTEP
    vteps                 hash table, outer address -> adjacency: who may send to us
    routes                the routes as they were given, for `loden routes`

The memory is sparse: what is never written costs nothing.

Who may move what, and how (one writer; readers keep indices only within one turn):

    adjacency row   FREE     -> LIVE     writer fills it, membarrier, then publishes its index
                    LIVE     -> RETIRED  writer has replaced the last index that led to it
                    RETIRED  -> FREE     every worker has published a later generation, or idles;
                                         the writer clears its per-peer counters
                    never:   LIVE -> LIVE with other contents; RETIRED -> LIVE
    group           as an adjacency row
    table entry     any      -> any      one aligned 4-byte store
    ipv6 copy       inactive -> active   writer fills it, membarrier, then stores `ipv6_active`
                    active   -> inactive writer waits for all workers before it writes to it again
    generation      n        -> n + 1    writer, after each batch of changes is visible

A new writer never continues a region whose writer may have died half-way: it asks the forwarder
for an empty one, fills it, and has the workers moved over to it.
"""

import mmap
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from forwarder.arrays import Bytes, Int, ULongs, Words
from forwarder.wire.vxlan import ENCAP_BYTES

MAGIC = 0x4942_4E45_444F_4C01
VERSION = 1

HEADER = np.dtype(
    [
        ("magic", "<u8"),
        ("generation", "<u8"),
        ("ipv6_active", "<u8"),  # copy (bit 32) and number of ranges (bits 0-31) in one store
        ("version", "<u4"),
        ("groups", "<u4"),
        ("ipv6_ranges", "<u4"),
        ("adjacencies", "<u4"),
        ("routes", "<u4"),
        ("adjacencies_used", "<u4"),  # rows below this have been used: the rest is untouched
        ("routes_used", "<u4"),
    ]
)
HEADER_BYTES = mmap.PAGESIZE
# Indices of the two words that readers look at, in the header seen as uint64.
GENERATION_WORD = 1
IPV6_ACTIVE_WORD = 2


class Kind(IntEnum):
    """What an adjacency does with a packet that is routed to it."""

    NONE = 0
    REMOTE = 1
    """Encapsulate and send to another node's VTEP."""
    LOCAL = 2
    """Ours: inbound packets are delivered, outbound ones should never have come here."""
    BLACKHOLE = 3
    """Drop, on purpose."""


SOCKADDR_BYTES = 28
"""sizeof(struct sockaddr_in6); a sockaddr_in uses the first 16."""

ADJACENCY = np.dtype(
    {
        "names": ["rewrite", "kind", "sockaddr_bytes", "sockaddr"],
        "formats": [("u1", ENCAP_BYTES), "u1", "u1", ("u1", SOCKADDR_BYTES)],
        "offsets": [0, 22, 23, 24],
        "itemsize": 64,
    }
)
ADJACENCY_BYTES = ADJACENCY.itemsize
KIND_AT = 22
SOCKADDR_LENGTH_AT = 23
SOCKADDR_AT = 24
# sockaddr_in: family 2, port 2, address 4.  sockaddr_in6: family 2, port 2, flow 4, address 16.
SOCKADDR_IN_BYTES = 16
SOCKADDR_IN_ADDRESS_AT = 4
SOCKADDR_IN6_ADDRESS_AT = 8

ROUTE = np.dtype(
    [
        ("address", "u1", 16),
        ("adjacency", "<u4"),
        ("prefix_length", "u1"),
        ("family", "u1"),
        ("padding", "u1", 2),
    ]
)
assert ROUTE.itemsize == 24

TBL24_ENTRIES = 1 << 24
GROUP_ENTRIES = 256
IS_GROUP = 0x8000_0000
"""In a tbl24 entry: the other bits are a group's number, not an adjacency's."""
NO_ADJACENCY = 0
VTEP_TOMBSTONE = 0xFFFF_FFFF


@dataclass(frozen=True)
class Capacity:
    """How much a FIB can hold.  The defaults serve 50,000 nodes and a million routes."""

    groups: int = 1 << 16
    """IPv4 /24s that contain routes longer than /24."""
    ipv6_ranges: int = 1 << 18
    adjacencies: int = 1 << 17
    """Remote VTEPs, and those of the recent past not yet reused."""
    routes: int = 1 << 21

    @property
    def vtep_slots(self) -> int:
        """Slots of the VTEP hash table, a power of two: at most half of them are ever in use."""
        return 1 << (2 * self.adjacencies - 1).bit_length()

    def offsets(self) -> dict[str, tuple[int, int]]:
        """Name of each part -> (offset, length) in bytes, page-aligned."""
        sizes = {
            "header": HEADER_BYTES,
            "tbl24": 4 * TBL24_ENTRIES,
            "groups": 4 * GROUP_ENTRIES * self.groups,
            "ipv6_first": 2 * 16 * self.ipv6_ranges,
            "ipv6_adjacency": 2 * 4 * self.ipv6_ranges,
            "adjacencies": ADJACENCY_BYTES * self.adjacencies,
            "vteps": 4 * self.vtep_slots,
            "routes": ROUTE.itemsize * self.routes,
        }
        parts = {}
        at = 0
        for name, size in sizes.items():
            parts[name] = (at, size)
            at += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        return parts

    @property
    def total_bytes(self) -> int:
        """Size of the whole region."""
        at, size = list(self.offsets().values())[-1]
        return -(-(at + size) // mmap.PAGESIZE) * mmap.PAGESIZE


class FibView(NamedTuple):
    """The parts of the FIB a worker reads, as arrays over the shared memory.

    header          uint64[512]
    tbl24           uint32[2**24]
    groups          uint32[groups * 256]
    ipv6_first      uint64[2 * ranges, 2], first address of a range as (high, low) 64 bits
    ipv6_adjacency  uint32[2 * ranges]
    adjacencies     uint8[adjacencies, 64], see ADJACENCY
    vteps           uint32[slots], a power of two
    """

    header: ULongs
    tbl24: Words
    groups: Words
    ipv6_first: ULongs
    ipv6_adjacency: Words
    adjacencies: Bytes
    vteps: Words


def vtep_hash(high: Int, low: Int) -> Int:
    """Hash of a VTEP's outer address for `vteps`, 0 to 2**32 - 1; the writer's and the readers'.

    An IPv4 address counts as (0, address), an IPv6 address as the XOR of its 32-bit words 0 and 2
    and that of its words 1 and 3.  (Compiled, products wrap at 64 bits; the low 32 are the same.)
    """
    mixed = ((high * 0x9E3779B1) ^ (low * 0x85EBCA6B)) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 15)) * 0xC2B2AE35 & 0xFFFFFFFF


class FibMemory:
    """The shared region of a FIB, mapped: arrays over every part of it."""

    def __init__(self, memory: mmap.mmap, capacity: Capacity) -> None:
        self.memory = memory
        self.capacity = capacity
        self.header = self._part("header", HEADER)[0]
        self.adjacencies = self._part("adjacencies", ADJACENCY)
        self.routes = self._part("routes", ROUTE)
        self.view = FibView(
            header=self._part("header", np.dtype(np.uint64)),
            tbl24=self._part("tbl24", np.dtype(np.uint32)),
            groups=self._part("groups", np.dtype(np.uint32)),
            ipv6_first=self._part("ipv6_first", np.dtype(np.uint64)).reshape(-1, 2),
            ipv6_adjacency=self._part("ipv6_adjacency", np.dtype(np.uint32)),
            adjacencies=self._part("adjacencies", np.dtype(np.uint8)).reshape(-1, ADJACENCY_BYTES),
            vteps=self._part("vteps", np.dtype(np.uint32)),
        )

    def _part(self, name: str, item: np.dtype[Any]) -> npt.NDArray[Any]:
        start, size = self.capacity.offsets()[name]
        return np.frombuffer(self.memory, item, size // item.itemsize, start)
