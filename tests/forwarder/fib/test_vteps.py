"""The hash table of VTEPs when it fills up with what has been."""

from ipaddress import IPv4Address
from random import Random

import numpy as np

from forwarder.fib.layout import VTEP_TOMBSTONE
from forwarder.fib.vteps import LONGEST_PROBE, VtepTable

SLOTS = 256


def test_chain_of_tombstones_is_used_again_or_cleared() -> None:
    slots = np.zeros(SLOTS, np.uint32)
    table = VtepTable(slots)
    random = Random(1)
    live: dict[IPv4Address, int] = {}
    for row in range(1, 5000):
        if len(live) == SLOTS // 2:
            gone = random.choice(list(live))
            table.remove(gone, live.pop(gone))
        address = IPv4Address(random.randrange(1, 1 << 32))
        if address not in live:
            table.add(address, row)
            live[address] = row
        stored = slots[(slots != 0) & (slots != VTEP_TOMBSTONE)].tolist()
        assert sorted(stored) == sorted(live.values())


def test_full_chain_rebuilds_the_table_without_tombstones() -> None:
    slots = np.zeros(SLOTS, np.uint32)
    table = VtepTable(slots)
    kept = IPv4Address("192.0.2.1")
    table.add(kept, 1)
    # Every other slot is taken, as after a long history in a table of the largest size.
    slots[slots == 0] = np.arange(1000, 1000 + SLOTS - 1)
    table.add(IPv4Address("192.0.2.2"), 2)
    assert sorted(slots[slots != 0].tolist()) == [1, 2]
    assert LONGEST_PROBE < SLOTS
