"""Reading a FIB back, as it was given: its routes, its peers and how full it is."""

import ipaddress
from typing import Any

import numpy as np

from forwarder.arrays import Longs
from forwarder.fib.layout import (
    NO_ADJACENCY,
    SOCKADDR_IN6_ADDRESS_AT,
    SOCKADDR_IN_ADDRESS_AT,
    FibMemory,
    Kind,
)
from forwarder.fib.routes import Blackhole, IPAddress, Local, NextHop, Prefix, RemoteVtep


def list_routes(
    memory: FibMemory, after: int, limit: int
) -> tuple[list[tuple[Prefix, NextHop, int]], int | None]:
    """One page of at most `limit` routes from slot `after` on, with their adjacency rows.

    Returns the page and the slot the next one begins at, None at the end.  A route that its writer
    is changing may be missing from the page; it is never a mixture.
    """
    used = int(memory.header["routes_used"])
    page: list[tuple[Prefix, NextHop, int]] = []
    for slot in range(after, used):
        if len(page) == limit:
            return page, slot
        if (route := _read_route(memory, slot)) is not None:
            page.append(route)
    return page, None


def find_route(memory: FibMemory, address: IPAddress) -> tuple[Prefix, NextHop] | None:
    """The longest prefix that holds `address`, and its next hop: why it is routed as it is."""
    routes = memory.routes[: int(memory.header["routes_used"])]
    packed = np.frombuffer(address.packed.ljust(16, b"\0"), np.uint8)
    masks = np.array([_mask(length) for length in range(129)], np.uint8)
    differs = ((routes["address"] ^ packed) & masks[routes["prefix_length"]]).any(axis=1)
    holding = np.flatnonzero(~differs & (routes["family"] == address.version))
    for slot in holding[np.argsort(-routes["prefix_length"][holding].astype(int))]:
        if (route := _read_route(memory, int(slot))) is not None:
            return route[:2]
    return None


def _mask(length: int) -> list[int]:
    """The first `length` of 128 bits, as 16 bytes."""
    return list(((1 << 128) - (1 << (128 - length))).to_bytes(16, "big"))


def _read_route(memory: FibMemory, slot: int) -> tuple[Prefix, NextHop, int] | None:
    """What is in a slot of the routes; None: nothing, or it is being changed."""
    entry = memory.routes[slot].copy()
    row = int(entry["adjacency"])
    if row == 0:
        return None
    version = int(entry["family"])
    address = int.from_bytes(entry["address"].tobytes()[: 4 if version == 4 else 16], "big")
    hop = _to_next_hop(memory.adjacencies[row].copy())
    # Still the same route on the same row: then the row was live all the time.
    if hop is None or memory.routes[slot] != entry:
        return None
    return Prefix(version, address, int(entry["prefix_length"])), hop, row


def list_peers(memory: FibMemory, per_peer: Longs) -> list[tuple[RemoteVtep, list[int]]]:
    """Every remote VTEP that routes lead to, and its counters (see Counters), summed over workers.

    A peer that comes or goes meanwhile may be missing; no other's counters are taken for its own.
    """
    rows = _rows_led_to(memory)
    entries = memory.adjacencies[rows]
    counts = per_peer[:, rows].sum(axis=0)
    # Still the same, and led to: then each row was its peer's while its counters were read.
    same = (memory.adjacencies[rows] == entries) & np.isin(rows, _rows_led_to(memory))
    listed = zip(map(_to_next_hop, entries[same]), counts[same].tolist(), strict=True)
    return [(hop, count) for hop, count in listed if isinstance(hop, RemoteVtep)]


def _rows_led_to(memory: FibMemory) -> Longs:
    """The adjacency rows of all routes, ascending."""
    led_to = np.zeros(memory.capacity.adjacencies, bool)
    led_to[memory.routes["adjacency"][: int(memory.header["routes_used"])]] = True
    led_to[NO_ADJACENCY] = False
    return np.flatnonzero(led_to)


def usage(memory: FibMemory) -> dict[str, int]:
    """How many routes and adjacencies there are, of how many."""
    used = memory.routes["adjacency"][: int(memory.header["routes_used"])]
    return {
        "routes": int(np.count_nonzero(used)),
        "routes_capacity": memory.capacity.routes,
        "adjacencies": len(_rows_led_to(memory)),
        "adjacencies_capacity": memory.capacity.adjacencies,
    }


def _to_next_hop(entry: Any) -> NextHop | None:
    """Of one item of ADJACENCY; None: a row in no use."""
    kind = entry["kind"]
    if kind == Kind.LOCAL:
        return Local()
    if kind == Kind.BLACKHOLE:
        return Blackhole()
    if kind != Kind.REMOTE:
        return None
    rewrite, sockaddr = entry["rewrite"].tobytes(), entry["sockaddr"].tobytes()
    if entry["sockaddr_bytes"] == 16:
        packed = sockaddr[SOCKADDR_IN_ADDRESS_AT : SOCKADDR_IN_ADDRESS_AT + 4]
    else:
        packed = sockaddr[SOCKADDR_IN6_ADDRESS_AT : SOCKADDR_IN6_ADDRESS_AT + 16]
    return RemoteVtep(
        address=ipaddress.ip_address(packed),
        mac=rewrite[8:14],
        vni=int.from_bytes(rewrite[4:7], "big"),
        port=int.from_bytes(sockaddr[2:4], "big"),
    )
