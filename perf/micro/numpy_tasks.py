"""The same in plain NumPy, a whole batch in each call: how one would write it without a compiler.

Less general than the forwarder's kernels where that makes it faster: only IPv4, and one length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from forwarder.arrays import Bytes, Longs, Words
from forwarder.batch import CHAIN_MAX, HEADROOM
from forwarder.coalesce import IP_PACKET_MAX
from forwarder.fib.layout import GROUP_ENTRIES, IS_GROUP
from forwarder.wire.ip import IPV4_BYTES, L4_OPAQUE, L4_TCP, L4_UDP, TCP_FLAGS_AT
from forwarder.wire.vxlan import ENCAP_BYTES, build_rewrite
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
from perf.micro.task import Task, repeated

Matrix = npt.NDArray[np.uint8]
TCP = IPV4_BYTES // 2
"""The 16-bit word that the TCP header begins with."""


def tasks(inputs: Inputs) -> dict[str, Task]:
    return {
        "parse": parsing(inputs),
        "lookup-leases": searching(inputs),
        "lookup-random": indexing(inputs),
        "encap": encapsulating(inputs),
        "split": splitting(inputs),
        "coalesce": coalescing(inputs),
        "checksum": summing(inputs),
    }


def parsing(inputs: Inputs) -> Task:
    data, starts, _ = one_after_another(inputs.packets)
    available = np.array([len(packet) for packet in inputs.packets])

    def parse() -> list[Longs]:
        version_ihl = data[starts]
        transport = (version_ihl & 15).astype(np.int64) * 4
        length = data[starts + 2].astype(np.int64) << 8 | data[starts + 3]
        sound = (version_ihl >> 4 == 4) & (transport >= 20) & (transport <= length)
        sound &= length <= available
        whole = (data[starts + 6] & 0x3F | data[starts + 7]) == 0
        protocol = data[starts + 9].astype(np.int64)
        known = (protocol == L4_TCP) | (protocol == L4_UDP)
        kind = np.where(sound & whole & known, protocol, L4_OPAQUE)
        return [length, kind, transport]

    return Task(repeated(parse), lambda: [column.tolist() for column in parse()])


def searching(inputs: Inputs) -> Task:
    """Binary search among the first addresses of the leases."""
    firsts = (FIRST_LEASE + (np.arange(LEASES + 1) << 8)).astype(np.uint32)
    rows = FIRST_ROW + np.arange(LEASES, dtype=np.uint32)

    def look_up() -> Words:
        return rows[np.searchsorted(firsts, inputs.leased, side="right") - 1]

    return Task(repeated(look_up), lambda: look_up().tobytes())


def indexing(inputs: Inputs) -> Task:
    """The forwarder's table, by NumPy's indexing."""
    tbl24, groups = inputs.random_table
    addresses = inputs.anywhere

    def look_up() -> Words:
        entries = tbl24[addresses >> np.uint32(8)]
        (inner,) = np.nonzero(entries & np.uint32(IS_GROUP))
        group = (entries[inner] & np.uint32(IS_GROUP - 1)) * np.uint32(GROUP_ENTRIES)
        entries[inner] = groups[group + (addresses[inner] & np.uint32(0xFF))]
        return entries

    return Task(repeated(look_up), lambda: look_up().tobytes())


def encapsulating(inputs: Inputs) -> Task:
    """One gather from a table of headers, one scatter to before the packets."""
    data, starts, ends = one_after_another(inputs.packets)
    headers = b"".join(build_rewrite(VNI, mac, OWN_MAC) for mac in inputs.macs)
    table = np.frombuffer(headers, np.uint8).reshape(-1, ENCAP_BYTES)
    nodes = np.array([node_of(number) for number in range(len(starts))])
    before = np.arange(-ENCAP_BYTES, 0)

    def encapsulate() -> None:
        data[starts[:, None] + before] = table[nodes]

    def result() -> object:
        encapsulate()
        begins = starts - ENCAP_BYTES
        return [data[a:b].tobytes() for a, b in zip(begins, ends, strict=True)]

    return Task(repeated(encapsulate), result)


def splitting(inputs: Inputs) -> Task:
    """Headers of all segments as one matrix of 16-bit words."""
    packet = np.frombuffer(inputs.superpacket, np.uint8)

    def split() -> Matrix:
        payload = packet[TCP_HEADER_BYTES:].reshape(SEGMENTS, SEGMENT_BYTES)
        k = np.arange(SEGMENTS, dtype=np.uint32)
        headers = np.tile(packet[:TCP_HEADER_BYTES], (SEGMENTS, 1))
        words = headers.view(">u2")
        words[:, 1] = TCP_HEADER_BYTES + SEGMENT_BYTES
        words[:, 2] += k.astype(np.uint16)
        words[:, 5] = 0
        words[:, 5] = ~folded_sum(words[:, :TCP])
        sequence = words[:, TCP + 2].astype(np.uint32) << 16 | words[:, TCP + 3]
        sequence += k * np.uint32(SEGMENT_BYTES)
        words[:, TCP + 2], words[:, TCP + 3] = sequence >> 16, sequence & 0xFFFF
        words[:, TCP + 8] = 0
        sums = folded_sum(words[:, TCP:]).astype(np.uint32) + folded_sum(payload.view(">u2"))
        sums += folded_sum(words[:, 6:TCP]).astype(np.uint32)  # the addresses
        sums += L4_TCP + TCP_HEADER_BYTES - IPV4_BYTES + SEGMENT_BYTES
        words[:, TCP + 8] = ~folded(sums)
        return headers

    return Task(repeated(split), lambda: [row.tobytes() for row in split()])


def coalescing(inputs: Inputs) -> Task:
    """All frames as one matrix: compared with the row before, sums over rows."""
    frames = np.frombuffer(b"".join(packet for _, packet in inputs.frames), np.uint8)
    matrix = frames.reshape(len(inputs.frames), -1)
    most = min(CHAIN_MAX, (IP_PACKET_MAX - TCP_HEADER_BYTES) // SEGMENT_BYTES)
    vary = np.zeros(TCP_HEADER_BYTES, bool)
    vary[[4, 5, 10, 11, 24, 25, 26, 27, 36, 37]] = True  # id, checksums, sequence number

    def coalesce() -> tuple[Longs, Longs]:
        headers = matrix[:, :TCP_HEADER_BYTES]
        words = matrix.view(">u2")
        same = ((headers[1:] == headers[:-1]) | vary).all(axis=1)
        sequence = words[:, TCP + 2].astype(np.uint32) << 16 | words[:, TCP + 3]
        follows = sequence[1:] == sequence[:-1] + np.uint32(SEGMENT_BYTES)
        sums = folded_sum(words[:, 6:]).astype(np.uint32)
        sums += L4_TCP + matrix.shape[1] - IPV4_BYTES
        right = (folded(sums) == 0xFFFF) & (folded_sum(words[:, :TCP]) == 0xFFFF)
        joins = same & follows & right[1:] & right[:-1]
        joins &= headers[1:, IPV4_BYTES + TCP_FLAGS_AT] == 0x10
        (firsts,) = np.nonzero(np.concatenate(([True], ~joins)))
        counts = np.diff(firsts, append=len(matrix))
        assert counts.max() <= most  # else they would have to be cut
        return firsts, counts

    return Task(repeated(coalesce), lambda: [column.tolist() for column in coalesce()])


def summing(inputs: Inputs) -> Task:
    data = np.frombuffer(b"".join(packet for _, packet in inputs.frames), ">u2")
    words = data.reshape(len(inputs.frames), -1)

    def sum_each() -> npt.NDArray[np.uint16]:
        return ~folded_sum(words)

    return Task(repeated(sum_each), lambda: sum_each().tolist())


def folded_sum(words: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """The one's-complement sum of each row of big-endian words (RFC 1071)."""
    return folded(words.sum(axis=1, dtype=np.uint32))


def folded(sums: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
    sums = (sums & 0xFFFF) + (sums >> 16)
    return ((sums & 0xFFFF) + (sums >> 16)).astype(np.uint16)


def one_after_another(packets: Sequence[bytes]) -> tuple[Bytes, Longs, Longs]:
    """(the packets with free bytes before each, where they start, where they end)."""
    data = bytearray()
    starts, ends = [], []
    for packet in packets:
        data += bytes(HEADROOM)
        starts.append(len(data))
        data += packet
        ends.append(len(data))
    return np.frombuffer(data, np.uint8), np.array(starts), np.array(ends)
