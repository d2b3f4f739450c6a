"""The VTEP table: outer address -> adjacency row, a hash table with linear probing.

Readers search it without locks (lookup.find_vtep), so a row is stored here only once it is filled
and ordered, and every change of a slot is one aligned 4-byte store.
"""

import numpy as np

from forwarder.arrays import Words
from forwarder.fib.layout import NO_ADJACENCY, VTEP_TOMBSTONE, vtep_hash
from forwarder.fib.routes import IPAddress

LONGEST_PROBE = 96
"""The table is rebuilt when a chain of slots gets this long (readers search 128)."""


class VtepTable:
    """The writer's side of the table.  Several adjacencies may share a VTEP: one is listed."""

    def __init__(self, slots: Words) -> None:
        """`slots`: the shared table, all zero; their number is a power of two."""
        self._slots = slots
        self._rows: dict[IPAddress, list[int]] = {}  # by outer address, the first is listed

    def add(self, address: IPAddress, row: int) -> None:
        rows = self._rows.setdefault(address, [])
        rows.append(row)
        if len(rows) == 1 and not _insert(self._slots, address, row):
            self._rebuild()

    def remove(self, address: IPAddress, row: int) -> None:
        rows = self._rows[address]
        was_listed = rows[0] == row
        rows.remove(row)
        if was_listed:
            slot = _find(self._slots, address, row)
            self._slots[slot] = rows[0] if rows else VTEP_TOMBSTONE
        if not rows:
            del self._rows[address]

    def _rebuild(self) -> None:
        """Clears tombstones.  A reader that misses a VTEP meanwhile looks up its route anyway."""
        fresh = np.zeros_like(self._slots)
        for address, rows in self._rows.items():
            found = _insert(fresh, address, rows[0])
            assert found, "at most half of the slots are in use: no chain gets this long"
        self._slots[:] = fresh


def _start(address: IPAddress, slots: int) -> int:
    value = int(address)
    if address.version == 4:
        high, low = 0, value
    else:
        word = [value >> shift & 0xFFFFFFFF for shift in (96, 64, 32, 0)]
        high, low = word[0] ^ word[2], word[1] ^ word[3]
    return int(vtep_hash(high, low)) & (slots - 1)


def _insert(slots: Words, address: IPAddress, row: int) -> bool:
    """Stores `row` in the first slot that is empty or a tombstone; False: the chain is too long."""
    start = _start(address, len(slots))
    for probe in range(LONGEST_PROBE):
        slot = (start + probe) & (len(slots) - 1)
        if slots[slot] in (NO_ADJACENCY, VTEP_TOMBSTONE):
            slots[slot] = row
            return True
    return False


def _find(slots: Words, address: IPAddress, row: int) -> int:
    start = _start(address, len(slots))
    for probe in range(LONGEST_PROBE):
        slot = (start + probe) & (len(slots) - 1)
        if slots[slot] == row:
            return slot
    raise AssertionError(f"VTEP {address} is not in the table it was put in")
