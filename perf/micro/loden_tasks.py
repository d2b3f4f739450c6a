"""The forwarder's own kernels, compiled as the workers run them.

Each is called again and again from a compiled loop: going from Python into compiled code with the
columns of a whole batch takes longer than most kernels do, and a worker does it once in its life.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from forwarder.arrays import Bytes, Int, Longs, Words
from forwarder.batch import HEADROOM, Inbound, Outbound, allocate_inbound, allocate_outbound
from forwarder.coalesce import coalesce
from forwarder.counters import Drop
from forwarder.fib.layout import ADJACENCY_BYTES, TBL24_ENTRIES, FibView
from forwarder.fib.lookup import lookup_ipv4
from forwarder.jit import kernel
from forwarder.outbound import encapsulate, parse
from forwarder.tunnel import Tunnel
from forwarder.wire.checksum import ones_sum
from forwarder.wire.ip import IPV4_BYTES, L4_TCP
from forwarder.wire.split import split
from forwarder.wire.vxlan import ENCAP_BYTES, build_rewrite
from forwarder.worker import closed_tunnel, empty_fib
from perf.micro.inputs import (
    FIRST_LEASE,
    FIRST_ROW,
    LEASES,
    OWN_MAC,
    SEGMENT_BYTES,
    SEGMENTS,
    TCP_HEADER_BYTES,
    VNI,
    Inputs,
    node_of,
)
from perf.micro.task import Task

LANES = 2


def tasks(inputs: Inputs) -> dict[str, Task]:
    return {
        "parse": parsing(inputs),
        "lookup-leases": looking_up(lease_table(), inputs.leased),
        "lookup-random": looking_up(random_table(inputs), inputs.anywhere),
        "encap": encapsulating(inputs),
        "split": splitting(inputs),
        "coalesce": coalescing(inputs),
        "checksum": summing(inputs),
    }


def parsing(inputs: Inputs) -> Task:
    batch = read_batch(inputs.packets)
    count = len(inputs.packets)

    def result() -> object:
        parse(batch, count)
        assert not batch.reason[:count].any()
        columns = (batch.length, batch.kind, batch.transport)
        return [column[:count].tolist() for column in columns]

    return Task(partial(parse_again, batch, count), result)


@kernel
def parse_again(batch: Outbound, packets: Int, times: Int) -> None:
    for _ in range(times):
        parse(batch, packets)


def looking_up(fib: FibView, addresses: Words) -> Task:
    found = np.zeros_like(addresses)

    def result() -> object:
        look_up_all(fib, addresses, found, 1)
        return found.tobytes()

    return Task(partial(look_up_all, fib, addresses, found), result)


@kernel
def look_up_all(fib: FibView, addresses: Words, found: Words, times: Int) -> None:
    """The adjacency of each address."""
    for _ in range(times):
        for index in range(len(addresses)):
            found[index] = lookup_ipv4(fib, np.int64(addresses[index]))


def encapsulating(inputs: Inputs) -> Task:
    tunnel, batch, fib = closed_tunnel(), read_batch(inputs.packets), node_table(inputs.macs)
    count = len(inputs.packets)
    parse(batch, count)
    batch.adjacency[:count] = [FIRST_ROW + node_of(number) for number in range(count)]

    def result() -> object:
        encapsulate_again(tunnel, batch, count, fib, 1)
        starts = batch.head_address[:count] - batch.data.ctypes.data
        ends = starts + batch.head_bytes[:count]
        return [batch.data[a:b].tobytes() for a, b in zip(starts, ends, strict=True)]

    return Task(partial(encapsulate_again, tunnel, batch, count, fib), result)


@kernel
def encapsulate_again(
    tunnel: Tunnel, batch: Outbound, packets: Int, fib: FibView, times: Int
) -> None:
    for _ in range(times):
        encapsulate(tunnel, batch, np.int64(0), packets, fib)


def splitting(inputs: Inputs) -> Task:
    batch = read_batch([inputs.superpacket])
    rows = batch.headers[:SEGMENTS, ENCAP_BYTES:]
    length = len(inputs.superpacket)
    again = partial(split_again, batch.data, HEADROOM, length, L4_TCP, IPV4_BYTES)

    def result() -> object:
        again(SEGMENT_BYTES, rows, 1)
        return [row[:TCP_HEADER_BYTES].tobytes() for row in rows]

    return Task(partial(again, SEGMENT_BYTES, rows), result)


@kernel
def split_again(
    data: Bytes,
    start: Int,
    length: Int,
    kind: Int,
    transport: Int,
    size: Int,
    rows: Bytes,
    times: Int,
) -> None:
    for _ in range(times):
        split(data, start, length, kind, transport, size, len(rows), rows)


def coalescing(inputs: Inputs) -> Task:
    tunnel, batch, count = closed_tunnel(), cut_batch(inputs.frames), len(inputs.frames)

    def result() -> object:
        chains = coalesce(batch, count, tunnel)
        return [column[:chains].tolist() for column in (batch.chain_first, batch.chain_count)]

    return Task(partial(coalesce_again, batch, count, tunnel), result)


@kernel
def coalesce_again(batch: Inbound, frames: Int, tunnel: Tunnel, times: Int) -> None:
    for _ in range(times):
        coalesce(batch, frames, tunnel)


def summing(inputs: Inputs) -> Task:
    packets = [packet for _, packet in inputs.frames]
    data = np.frombuffer(b"".join(packets), np.uint8).copy()
    length = len(packets[0])
    sums = np.zeros(len(packets), np.int64)

    def result() -> object:
        sum_each(data, length, sums, 1)
        return sums.tolist()

    return Task(partial(sum_each, data, length, sums), result)


@kernel
def sum_each(data: Bytes, length: Int, sums: Longs, times: Int) -> None:
    """The checksum of each `length` bytes."""
    for _ in range(times):
        for index in range(len(sums)):
            sums[index] = ~ones_sum(data, index * length, length) & 0xFFFF


# ---- batches and tables -------------------------------------------------------------------------


def read_batch(packets: Sequence[bytes]) -> Outbound:
    """As after a read from the TUN."""
    batch = allocate_outbound(LANES)
    at = HEADROOM
    for number, packet in enumerate(packets):
        batch.data[at : at + len(packet)] = np.frombuffer(packet, np.uint8)
        batch.start[number], batch.length[number] = at, len(packet)
        batch.csum_start[number] = -1
        batch.reason[number] = Drop.NONE
        at += HEADROOM + len(packet)
    return batch


def cut_batch(frames: Sequence[tuple[int, bytes]]) -> Inbound:
    """As after decapsulation."""
    batch = allocate_inbound()
    at = 0
    for number, (flow, packet) in enumerate(frames):
        at += ENCAP_BYTES
        batch.data[at : at + len(packet)] = np.frombuffer(packet, np.uint8)
        batch.start[number], batch.length[number] = at, len(packet)
        batch.kind[number], batch.transport[number] = L4_TCP, IPV4_BYTES
        batch.protocol[number] = L4_TCP
        batch.flow[number] = flow
        batch.reason[number] = Drop.NONE
        at += len(packet)
    return batch


def lease_table() -> FibView:
    """A route for each lease, each to an adjacency of its own."""
    tbl24 = np.zeros(TBL24_ENTRIES, np.uint32)
    first = FIRST_LEASE >> 8
    tbl24[first : first + LEASES] = FIRST_ROW + np.arange(LEASES)
    return table_of(tbl24=tbl24)


def random_table(inputs: Inputs) -> FibView:
    tbl24, groups = inputs.random_table
    return table_of(tbl24=tbl24, groups=groups)


def node_table(macs: Sequence[bytes]) -> FibView:
    """Only adjacencies: what leads to them has been looked up already."""
    rows = np.zeros((FIRST_ROW + len(macs), ADJACENCY_BYTES), np.uint8)
    for row, mac in zip(rows[FIRST_ROW:], macs, strict=True):
        row[:ENCAP_BYTES] = np.frombuffer(build_rewrite(VNI, mac, OWN_MAC), np.uint8)
    return table_of(adjacencies=rows)


def table_of(**parts: Any) -> FibView:
    """With these parts, read-only as all of a FIB is for a worker."""
    readable = {name: part.view() for name, part in parts.items()}
    for part in readable.values():
        part.flags.writeable = False
    return empty_fib()._replace(**readable)
