"""What a watch may tell of our own lease, and what is made of it."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Network, ip_network

from control.etcd_types import Deletion, Entry
from control.lease import Lease, NodeSubnet
from control.own_lease import is_among, is_touched, with_it, without_its_end
from control.rib import Kind, Own, Rib
from tests.control.nodes import node

PREFIX = "/test/network"
KEY = f"{PREFIX}/subnets/10.7.1.0-24"
LEASE = Lease(KEY, NodeSubnet(IPv4Network("10.7.1.0/24")), node(1), 7, 3, 3)
OURS = Entry(KEY, node(1).to_json().encode(), 3, 3, 7)
OTHERS = Entry(f"{PREFIX}/subnets/10.7.2.0-24", node(2).to_json().encode(), 4, 4)


def test_only_a_change_of_our_own_key_touches_it() -> None:
    assert not is_touched(LEASE, [OURS, OTHERS, Deletion(OTHERS.key, 9)])
    assert is_touched(LEASE, [OTHERS, Deletion(KEY, 9)])
    assert is_touched(LEASE, [Entry(KEY, OTHERS.value, 9, 9)])


def test_a_cluster_that_has_lost_it_or_holds_something_else_is_known() -> None:
    assert is_among(LEASE, [OTHERS, OURS])
    assert not is_among(LEASE, [OTHERS])
    assert not is_among(LEASE, [OTHERS, dataclasses.replace(OURS, value=OTHERS.value)])
    assert not is_among(LEASE, [OTHERS, dataclasses.replace(OURS, mod_revision=0)])


def test_our_subnet_stays_ours_until_the_keeper_has_looked() -> None:
    rib = Rib(PREFIX, 1, Own(KEY, node(1).public_ip))
    rib.apply_snapshot([OURS, OTHERS], 5)
    changes = rib.apply_events(without_its_end(LEASE, [Deletion(KEY, 6), Deletion(OTHERS.key, 7)]))
    assert list(changes.routes) == [ip_network("10.7.2.0/24")]
    rib.apply_snapshot(with_it(LEASE, []), 8)
    assert rib.routes[ip_network("10.7.1.0/24")].kind is Kind.LOCAL
    rib.apply_events([dataclasses.replace(OURS, create_revision=9, mod_revision=9)])
    assert rib.routes[ip_network("10.7.1.0/24")].kind is Kind.LOCAL


def test_a_lease_that_is_there_is_not_added_again() -> None:
    assert with_it(LEASE, [OTHERS, OURS]) == [OTHERS, OURS]
