"""FIBs for tests: in shared memory like real ones, with workers whose progress the test decides."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

import numpy as np

from forwarder import shm
from forwarder.arrays import Bytes
from forwarder.fib.layout import Capacity, FibMemory, FibView
from forwarder.fib.lookup import lookup_ipv4, lookup_ipv6
from forwarder.fib.routes import IPAddress, NextHop, Prefix, RemoteVtep
from forwarder.fib.writer import FibWriter

SMALL = Capacity(groups=64, ipv6_ranges=512, adjacencies=64, routes=512)
OWN_MAC = bytes.fromhex("020000000001")
VNI = 7
PORT = 8472


class Fib:
    """A writer, and what a worker maps: the same memory, read-only."""

    def __init__(self, writer: FibWriter, memory: FibMemory, workers: "Workers") -> None:
        self.writer = writer
        self.memory = memory
        self.view: FibView = memory.view
        self.workers = workers

    def route_to(self, *routes: tuple[str, NextHop | None]) -> None:
        self.writer.apply({Prefix.parse(prefix): hop for prefix, hop in routes})


@dataclass
class Workers:
    """Stands for the workers' counters: the generation that the slowest one has published."""

    seen: int = 1 << 62

    def all_past(self, generation: int) -> bool:
        return self.seen >= generation


def make_fib(
    capacity: Capacity = SMALL,
    workers: Workers | None = None,
    own_mac: bytes = OWN_MAC,
    clear_peer: Callable[[int], None] = lambda row: None,
) -> Fib:
    workers = workers or Workers()
    fd = shm.create("fib-under-test", capacity.total_bytes)
    try:
        memory = FibMemory(shm.map_writable(fd), capacity)
        readonly = FibMemory(shm.map_readonly(fd), capacity)
    finally:
        os.close(fd)
    writer = FibWriter(memory, own_mac, workers.all_past, shm.order_writes, clear_peer)
    return Fib(writer, readonly, workers)


def vtep(number: int, address: str | None = None) -> RemoteVtep:
    """A remote node of which everything follows from its number."""
    mac = b"\x02\x01" + number.to_bytes(4, "big")
    outer = ip_address(address) if address else IPv4Address("192.0.0.0") + number
    return RemoteVtep(outer, mac, VNI, PORT)


def lookup(view: FibView, address: IPAddress) -> int:
    """The adjacency row of an inner address, by the compiled lookups."""
    if address.version == 4:
        return int(lookup_ipv4(view, int(address)))
    return int(lookup_ipv6(view, to_array(address.packed), 0))


def to_array(data: bytes | bytearray) -> Bytes:
    return np.frombuffer(bytearray(data), np.uint8)
