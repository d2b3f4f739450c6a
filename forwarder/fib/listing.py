"""Reading the routes back out of a FIB, as they were given: for `loden routes`."""

import ipaddress

from forwarder.fib.layout import SOCKADDR_IN6_ADDRESS_AT, SOCKADDR_IN_ADDRESS_AT, FibMemory, Kind
from forwarder.fib.routes import Blackhole, Local, NextHop, Prefix, RemoteVtep


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
        entry = memory.routes[slot].copy()
        row = int(entry["adjacency"])
        if row == 0:
            continue
        version = int(entry["family"])
        address = int.from_bytes(entry["address"].tobytes()[: 4 if version == 4 else 16], "big")
        hop = _read_next_hop(memory, row)
        # Still the same route on the same row: then the row was live all the time.
        if hop is not None and memory.routes[slot] == entry:
            page.append((Prefix(version, address, int(entry["prefix_length"])), hop, row))
    return page, None


def _read_next_hop(memory: FibMemory, row: int) -> NextHop | None:
    entry = memory.adjacencies[row].copy()
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
