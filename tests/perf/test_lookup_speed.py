"""What is timed is the forwarder's lookup, and it finds what is in the tables."""

from __future__ import annotations

import numpy as np
import pytest

from forwarder.fib.layout import GROUP_ENTRIES, IS_GROUP
from perf.lookup_speed import FIRST_LEASE, LEASES, look_up_all, measure_leases, tables
from perf.measure import Effort

EFFORT = Effort(lookups=1)


def test_batch_finds_every_adjacency() -> None:
    with tables(EFFORT) as site:
        found = np.zeros_like(site.leased)
        look_up_all(site.leases.view, site.leased, found)
        rows = site.leases.view.tbl24[site.leased >> 8]
        assert np.array_equal(found, rows)
        assert len(np.unique(found)) == LEASES
        assert site.leased.min() >= FIRST_LEASE

        look_up_all(site.random.view, site.anywhere, found)
        view = site.random.view
        entries = view.tbl24[site.anywhere >> 8]
        in_group = (entries & np.uint32(IS_GROUP)) != 0
        inner = (entries & np.uint32(IS_GROUP - 1)) * GROUP_ENTRIES + (site.anywhere & 0xFF)
        assert in_group.any()
        assert np.array_equal(found[~in_group], entries[~in_group])
        assert np.array_equal(found[in_group], view.groups[inner[in_group]])


def test_table_without_a_route_is_no_measurement() -> None:
    with tables(EFFORT) as site:
        site.leases.view.tbl24[int(site.leased[0]) >> 8] = 0
        with pytest.raises(ValueError, match="an address was not found"):
            measure_leases(site, EFFORT)
