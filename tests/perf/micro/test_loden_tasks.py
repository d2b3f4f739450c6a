"""What is timed of the forwarder comes to the right thing, by the slow oracles.

The other contenders are held against it at each run, so this vouches for all.
"""

from __future__ import annotations

import numpy as np
import pytest

from forwarder.arrays import Words
from forwarder.fib.layout import GROUP_ENTRIES, IS_GROUP
from perf.micro.inputs import (
    FIRST_LEASE,
    FIRST_ROW,
    FLOWS,
    LEASES,
    OWN_MAC,
    SEGMENT_BYTES,
    SEGMENTS,
    TCP_HEADER_BYTES,
    VNI,
    Inputs,
    node_of,
)
from perf.micro.loden_tasks import tasks
from perf.micro.task import Task
from tests.forwarder.packets import encapsulated
from tests.reference.checksum import checksum
from tests.reference.coalescing import coalesce
from tests.reference.packet import find_transport
from tests.reference.segmentation import split


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs()


@pytest.fixture(scope="module")
def loden(inputs: Inputs) -> dict[str, Task]:
    return tasks(inputs)


def test_parse_finds_transport_headers(inputs: Inputs, loden: dict[str, Task]) -> None:
    found = [find_transport(packet) for packet in inputs.packets]
    assert loden["parse"].result() == [
        [len(packet) for packet in inputs.packets],
        [transport.kind for transport in found],
        [transport.offset for transport in found],
    ]


def test_lookup_finds_each_lease(inputs: Inputs, loden: dict[str, Task]) -> None:
    rows = FIRST_ROW + ((inputs.leased - np.uint32(FIRST_LEASE)) >> np.uint32(8))
    assert loden["lookup-leases"].result() == rows.tobytes()
    assert len(np.unique(rows)) > 0.99 * LEASES


def test_lookup_finds_routes_longer_than_24_bits(inputs: Inputs, loden: dict[str, Task]) -> None:
    tbl24, groups = inputs.random_table
    result = loden["lookup-random"].result()
    assert isinstance(result, bytes)
    found: Words = np.frombuffer(result, np.uint32)
    in_group = 0
    for address, row in zip(inputs.anywhere[:20000].tolist(), found.tolist(), strict=False):
        entry = int(tbl24[address >> 8])
        if entry & IS_GROUP:
            in_group += 1
            entry = int(groups[(entry & ~IS_GROUP) * GROUP_ENTRIES + (address & 0xFF)])
        assert row == entry
    assert in_group > 0


def test_encap_is_vxlan(inputs: Inputs, loden: dict[str, Task]) -> None:
    assert loden["encap"].result() == [
        encapsulated(packet, to=inputs.macs[node_of(number)], source=OWN_MAC, vni=VNI)
        for number, packet in enumerate(inputs.packets)
    ]


def test_split_makes_the_headers_of_segments(inputs: Inputs, loden: dict[str, Task]) -> None:
    segments = split(inputs.superpacket, SEGMENT_BYTES)
    assert loden["split"].result() == [segment[:TCP_HEADER_BYTES] for segment in segments]


def test_coalesce_joins_what_belongs_together(inputs: Inputs, loden: dict[str, Task]) -> None:
    two_flows = inputs.frames[: 2 * SEGMENTS]  # the oracle takes its time
    flows, packets = zip(*two_flows, strict=True)
    chains = coalesce(packets, flows, 1450)
    result = loden["coalesce"].result()
    assert isinstance(result, list)
    firsts, counts = result
    assert firsts[:2] == [chain[0] for chain in chains]
    assert counts[:2] == [len(chain) for chain in chains]
    assert counts == FLOWS * [SEGMENTS]


def test_checksum_is_that_of_rfc_1071(inputs: Inputs, loden: dict[str, Task]) -> None:
    sums = [checksum(packet) for _, packet in inputs.frames]
    assert loden["checksum"].result() == sums
