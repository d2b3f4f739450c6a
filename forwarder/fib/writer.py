"""Writing the FIB: route changes become stores that no reader can see half-done.

A batch of changes is applied in three steps: fresh adjacency rows and groups are filled where no
index leads; one barrier; then indices are stored, four aligned bytes each.  What is no longer led
to is retired and reused only after every worker has passed a later generation.

The writer keeps what readers do not need: the routes by prefix (to find what covers a deleted
one), and for every table entry the length of the route that put it there.
"""

import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from forwarder.fib.layout import (
    GROUP_ENTRIES,
    IS_GROUP,
    MAGIC,
    NO_ADJACENCY,
    ROUTE,
    SOCKADDR_BYTES,
    TBL24_ENTRIES,
    VERSION,
    FibMemory,
    Kind,
)
from forwarder.fib.ranges import RangeTable
from forwarder.fib.routes import IPAddress, Local, NextHop, Prefix, RemoteVtep
from forwarder.fib.vteps import VtepTable
from forwarder.wire.vxlan import build_rewrite

PACKED_ROUTE = struct.Struct("=16sIBB2x")
"""An element of ROUTE."""
assert PACKED_ROUTE.size == ROUTE.itemsize

IPV6_ANEW = 8
"""Where more than one IPv6 route in so many changes, flattening all is less work than each."""


class FibFull(Exception):
    """A part of the FIB has no room left.  Nothing of the batch was applied."""


@dataclass
class _Pool:
    """Numbered rows of one part: in use, retired until the workers have passed on, or free."""

    name: str
    capacity: int
    next_unused: int
    free: deque[int] = field(default_factory=deque)
    retired: deque[tuple[int, int]] = field(default_factory=deque)  # (generation, row)

    def take(self) -> int:
        if self.free:
            return self.free.popleft()
        if self.next_unused >= self.capacity:
            raise FibFull(
                f"the FIB's {self.name} are full: all {self.capacity} are in use or awaiting reuse"
            )
        self.next_unused += 1
        return self.next_unused - 1

    def reclaim(self, is_past: Callable[[int], bool]) -> list[int]:
        """The rows that nobody can hold any more: they are free now."""
        reclaimed = []
        while self.retired and is_past(self.retired[0][0]):
            reclaimed.append(self.retired.popleft()[1])
        self.free += reclaimed
        return reclaimed


@dataclass
class _Adjacency:
    row: int
    references: int = 0


class FibWriter:
    """The one writer of a FIB region.

    own_mac        our VTEP's MAC, the inner source MAC of every rewrite
    is_past        tells whether every worker has passed the given generation (QSBR)
    order_writes   the barrier between filling and publishing, see forwarder.shm
    clear_peer     clears the counters of an adjacency row that nobody holds, see Counters
    """

    def __init__(
        self,
        memory: FibMemory,
        own_mac: bytes,
        is_past: Callable[[int], bool],
        order_writes: Callable[[], None],
        clear_peer: Callable[[int], None] = lambda row: None,
    ) -> None:
        self.memory = memory
        self.own_mac = own_mac
        self.routes: dict[Prefix, NextHop] = {}
        self._view = memory.view
        self._is_past = is_past
        self._order_writes = order_writes
        self._clear_peer = clear_peer
        self._adjacencies: dict[NextHop, _Adjacency] = {}
        self._released: set[NextHop] = set()  # lost a reference in this batch
        self._adjacency_pool = _Pool("adjacencies", memory.capacity.adjacencies, 1)
        self._group_pool = _Pool("groups", memory.capacity.groups, 0)
        self._route_pool = _Pool("routes", memory.capacity.routes, 0)
        self._route_slots: dict[Prefix, int] = {}
        # Single elements are stored and read many times as fast as through NumPy.
        self._routes_bytes = memory.routes.view(np.uint8).data
        self._route_rows = memory.routes["adjacency"]
        self._vteps = VtepTable(memory.view.vteps)
        self._lengths = [dict.fromkeys(range(33), 0), dict.fromkeys(range(129), 0)]
        # Length + 1 of the route behind each entry, 0: none.  Sparse like the tables themselves.
        self._depth24 = np.zeros(TBL24_ENTRIES, np.uint8)
        self._entries24, self._depths24 = memory.view.tbl24.data, self._depth24.data
        self._group_depth = np.zeros(memory.capacity.groups * GROUP_ENTRIES, np.uint8)
        self._group_routes: dict[int, int] = {}  # group -> routes longer than /24 in it
        self._ipv6 = RangeTable()
        self._ipv6_unwritten = [0, 0]  # of each copy, the first range that is not in step
        self._ipv6_last_switch = 0
        self._format()

    def _format(self) -> None:
        header, capacity = self.memory.header, self.memory.capacity
        if header["magic"] != 0:
            raise ValueError("a FIB writer starts on fresh memory, this has been written to")
        header["version"] = VERSION
        for name in ("groups", "ipv6_ranges", "adjacencies", "routes"):
            header[name] = getattr(capacity, name)
        header["generation"] = 1
        header["magic"] = MAGIC

    @property
    def generation(self) -> int:
        return int(self.memory.header["generation"])

    def adjacency_rows(self) -> Iterator[tuple[NextHop, int]]:
        """Every next hop in use and its row, which is its index among the per-peer counters."""
        for hop, adjacency in self._adjacencies.items():
            yield hop, adjacency.row

    def apply(self, changes: Mapping[Prefix, NextHop | None]) -> int:
        """Makes the FIB hold `changes` (None: no route), and returns how many made a difference.

        Raises FibFull before anything changed when there is no room.
        """
        news = {p: hop for p, hop in changes.items() if self.routes.get(p) != hop}
        if not news:
            return 0
        self._reclaim()
        self._check_room(news)
        fresh = self._fresh_hops(news)
        for next_hop in fresh:
            self._fill_adjacency(next_hop)
        self._order_writes()
        for next_hop in fresh:
            if isinstance(next_hop, RemoteVtep):
                self._vteps.add(next_hop.address, self._adjacencies[next_hop].row)
        # Routes that go come last: a group that is still wanted is not dissolved meanwhile.
        for prefix, hop in sorted(news.items(), key=lambda change: change[1] is None):
            self._set_route(prefix, hop)
        if any(prefix.version == 6 for prefix in news):
            self._flatten_ipv6(news)
            self._publish_ipv6()
        self._finish_generation()
        return len(news)

    def _fresh_hops(self, news: Mapping[Prefix, NextHop | None]) -> list[NextHop]:
        """Those that have no adjacency row yet."""
        hops = dict.fromkeys(news.values())
        return [hop for hop in hops if hop is not None and hop not in self._adjacencies]

    # ---- room -----------------------------------------------------------------------------------

    def _reclaim(self) -> None:
        for row in self._adjacency_pool.reclaim(self._is_past):
            self._clear_peer(row)
        self._group_pool.reclaim(self._is_past)

    def _check_room(self, news: Mapping[Prefix, NextHop | None]) -> None:
        """Counts what the batch will take at most, so that it is applied whole or not at all."""
        added = [prefix for prefix in news if news[prefix] is not None]
        grouped = {p.address >> 8 for p in added if p.version == 4 and p.length > 24}
        wanted = (
            (self._adjacency_pool, len(self._fresh_hops(news))),
            (self._group_pool, sum(not self._view.tbl24[s] & IS_GROUP for s in grouped)),
            (self._route_pool, sum(prefix not in self.routes for prefix in added)),
        )
        for pool, count in wanted:
            room = len(pool.free) + pool.capacity - pool.next_unused
            if count > room:
                raise FibFull(
                    f"the FIB's {pool.name} are full: {count} more are needed, {room} of "
                    f"{pool.capacity} are free"
                )
        ipv6_added = sum(p.version == 6 and p not in self.routes for p in added)
        ipv6 = sum(self._lengths[1].values()) + ipv6_added
        if ipv6_added and 2 * ipv6 + 1 > self.memory.capacity.ipv6_ranges:
            raise FibFull(
                f"the FIB's IPv6 ranges are full: {ipv6} routes, room for "
                f"{self.memory.capacity.ipv6_ranges // 2}"
            )

    # ---- adjacencies ----------------------------------------------------------------------------

    def _fill_adjacency(self, hop: NextHop) -> None:
        row = self._adjacency_pool.take()
        entry = self.memory.adjacencies[row]
        entry["kind"] = _kind_of(hop)
        if isinstance(hop, RemoteVtep):
            rewrite = build_rewrite(hop.vni, hop.mac, self.own_mac)
            sockaddr = pack_sockaddr(hop.address, hop.port)
            entry["rewrite"] = np.frombuffer(rewrite, np.uint8)
            entry["sockaddr_bytes"] = len(sockaddr)
            entry["sockaddr"] = np.frombuffer(sockaddr.ljust(SOCKADDR_BYTES, b"\0"), np.uint8)
        self._adjacencies[hop] = _Adjacency(row)

    def _drop_adjacency(self, hop: NextHop) -> None:
        row = self._adjacencies.pop(hop).row
        if isinstance(hop, RemoteVtep):
            self._vteps.remove(hop.address, row)
        self._adjacency_pool.retired.append((self.generation + 1, row))

    # ---- routes ---------------------------------------------------------------------------------

    def _set_route(self, prefix: Prefix, hop: NextHop | None) -> None:
        old = self.routes.get(prefix)
        if hop is not None:
            adjacency = self._adjacencies[hop]
            adjacency.references += 1
            self.routes[prefix] = hop
            self._store_route(prefix, adjacency.row)
            if prefix.version == 4:
                self._insert_ipv4(prefix, adjacency.row, added=old is None)
        else:
            del self.routes[prefix]
            self._clear_route(prefix)
            if prefix.version == 4:
                self._delete_ipv4(prefix)
        if old is not None:
            self._adjacencies[old].references -= 1
            self._released.add(old)

    def _store_route(self, prefix: Prefix, row: int) -> None:
        slot = self._route_slots.get(prefix)
        if slot is None:
            slot = self._route_slots[prefix] = self._route_pool.take()
            self._lengths[prefix.version == 6][prefix.length] += 1
            address = prefix.address.to_bytes(prefix.bits // 8, "big")
            PACKED_ROUTE.pack_into(
                self._routes_bytes, slot * ROUTE.itemsize, address, 0, prefix.length, prefix.version
            )
        self._route_rows[slot] = row  # last: until then there is no route to be listed

    def _clear_route(self, prefix: Prefix) -> None:
        slot = self._route_slots.pop(prefix)
        self._lengths[prefix.version == 6][prefix.length] -= 1
        self._route_rows[slot] = NO_ADJACENCY
        self._route_pool.free.append(slot)  # no worker reads these

    def _row_of(self, hop: NextHop) -> int:
        return self._adjacencies[hop].row

    def _cover_of(self, prefix: Prefix) -> tuple[int, int]:
        """(adjacency row, depth) of the longest route that covers `prefix` and is shorter."""
        in_use = self._lengths[prefix.version == 6]
        for length in range(prefix.length - 1, -1, -1):
            if in_use[length] and (hop := self.routes.get(prefix.shortened(length))) is not None:
                return self._adjacencies[hop].row, length + 1
        return NO_ADJACENCY, 0

    # ---- IPv4: DIR-24-8 -------------------------------------------------------------------------

    def _insert_ipv4(self, prefix: Prefix, row: int, added: bool) -> None:
        depth = prefix.length + 1
        if prefix.length > 24:
            self._write_long(prefix, row, depth, self._group_for(prefix.address >> 8, added))
        else:
            self._write_short(prefix, row, depth, from_depth_at_most=depth)

    def _delete_ipv4(self, prefix: Prefix) -> None:
        row, depth = self._cover_of(prefix)
        if prefix.length > 24:
            slot = prefix.address >> 8
            group = int(self._view.tbl24[slot]) & ~IS_GROUP
            self._write_long(prefix, row, depth, group, only_depth=prefix.length + 1)
            self._group_routes[group] -= 1
            if self._group_routes[group] == 0:
                self._dissolve_group(slot, group)
        else:
            self._write_short(prefix, row, depth, only_depth=prefix.length + 1)

    def _write_short(
        self,
        prefix: Prefix,
        row: int,
        depth: int,
        from_depth_at_most: int = 0,
        only_depth: int = 0,
    ) -> None:
        """Stores `row` in the entries of a prefix of at most /24 that no longer route owns."""
        first = prefix.address >> 8
        if prefix.length == 24 and not self._entries24[first] & IS_GROUP:  # most routes are
            self._entries24[first] = row
            self._depths24[first] = depth
            return
        span = slice(first, first + (1 << (24 - prefix.length)))
        entries, depths = self._view.tbl24[span], self._depth24[span]
        mine = depths == only_depth if only_depth else depths <= from_depth_at_most
        is_group = (entries & np.uint32(IS_GROUP)) != 0
        entries[mine & ~is_group] = row
        depths[mine] = depth  # of a group too: what it falls back to when it dissolves
        for group in (entries[is_group & mine] & np.uint32(~IS_GROUP & 0xFFFFFFFF)).tolist():
            inner = slice(group * GROUP_ENTRIES, (group + 1) * GROUP_ENTRIES)
            inner_depths = self._group_depth[inner]
            limit = only_depth or from_depth_at_most
            below = inner_depths == limit if only_depth else inner_depths <= limit
            self._view.groups[inner][below] = row
            inner_depths[below] = depth

    def _write_long(
        self, prefix: Prefix, row: int, depth: int, group: int, only_depth: int = 0
    ) -> None:
        """Stores `row` in the entries of one group that no longer route owns."""
        first = group * GROUP_ENTRIES + (prefix.address & 0xFF)
        span = slice(first, first + (1 << (32 - prefix.length)))
        depths = self._group_depth[span]
        mine = depths == only_depth if only_depth else depths <= depth
        self._view.groups[span][mine] = row
        depths[mine] = depth

    def _group_for(self, slot: int, added: bool) -> int:
        """The group of one /24, made from its present entry when there is none yet."""
        entry = int(self._view.tbl24[slot])
        if entry & IS_GROUP:
            group = entry & ~IS_GROUP
            self._group_routes[group] += added
            return group
        group = self._group_pool.take()
        span = slice(group * GROUP_ENTRIES, (group + 1) * GROUP_ENTRIES)
        self._view.groups[span] = entry
        self._group_depth[span] = self._depth24[slot]
        self._group_routes[group] = 1
        self._order_writes()
        self._view.tbl24[slot] = IS_GROUP | group
        return group

    def _dissolve_group(self, slot: int, group: int) -> None:
        """The last long route has gone: every entry is now the /24's own."""
        self._view.tbl24[slot] = self._view.groups[group * GROUP_ENTRIES]
        del self._group_routes[group]
        self._group_pool.retired.append((self.generation + 1, group))

    # ---- IPv6: disjoint ranges ------------------------------------------------------------------

    def _flatten_ipv6(self, news: Mapping[Prefix, NextHop | None]) -> None:
        """Brings the ranges into step with the routes: one by one, or where many change, anew."""
        changed = sorted(p for p in news if p.version == 6)
        if IPV6_ANEW * len(changed) > sum(self._lengths[1].values()):
            routes = {p: self._row_of(hop) for p, hop in self.routes.items() if p.version == 6}
            self._ipv6.load(routes)
            first = 0
        else:
            first = min(self._flatten_route(prefix) for prefix in changed)
        self._ipv6_unwritten = [min(first, place) for place in self._ipv6_unwritten]

    def _flatten_route(self, prefix: Prefix) -> int:
        hop = self.routes.get(prefix)
        if hop is not None:
            return self._ipv6.set(prefix, self._row_of(hop))
        return self._ipv6.delete(prefix, self._cover_of(prefix)[0])

    def _publish_ipv6(self) -> None:
        """Brings the copy not in use into step, and switches to it."""
        header = self.memory.header
        copy = 1 - (int(header["ipv6_active"]) >> 32)
        while not self._is_past(self._ipv6_last_switch):
            time.sleep(0.0002)  # a turn of the slowest worker takes no longer
        at = copy * self.memory.capacity.ipv6_ranges
        first, count = self._ipv6_unwritten[copy], len(self._ipv6)
        self._view.ipv6_first[at + first : at + count] = self._ipv6.words[first:]
        self._view.ipv6_adjacency[at + first : at + count] = self._ipv6.rows[first:]
        self._order_writes()
        header["ipv6_active"] = copy << 32 | count
        self._ipv6_unwritten[copy] = count
        self._ipv6_last_switch = self.generation + 1

    # ---- generations ----------------------------------------------------------------------------

    def _finish_generation(self) -> None:
        for hop in self._released:
            if self._adjacencies[hop].references == 0:
                self._drop_adjacency(hop)
        self._released.clear()
        self.memory.header["adjacencies_used"] = self._adjacency_pool.next_unused
        self.memory.header["routes_used"] = self._route_pool.next_unused
        self._order_writes()
        self.memory.header["generation"] = self.generation + 1


def _kind_of(hop: NextHop) -> Kind:
    if isinstance(hop, RemoteVtep):
        return Kind.REMOTE
    return Kind.LOCAL if isinstance(hop, Local) else Kind.BLACKHOLE


def pack_sockaddr(address: IPAddress, port: int) -> bytes:
    """struct sockaddr_in (16 bytes) or sockaddr_in6 (28), as sendmsg takes it."""
    if address.version == 4:
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, address.packed)
    family = struct.pack("=H", socket.AF_INET6)
    return family + struct.pack("!HI16s", port, 0, address.packed) + struct.pack("=I", 0)
