"""The RIB: what makes a route, what does not, and that every path leads to the same routes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.etcd_types import Deletion, Entry, Event
from control.lease import IPNetwork, LeaseAttrs, Vtep
from control.rib import Changes, Kind, Own, Reason, Rib, Route

PREFIX = "/coreos.com/network"
OWN = Own(f"{PREFIX}/subnets/10.7.1.0-24", IPv4Address("192.0.2.1"), IPv6Address("fd77::1"))


def mac(node: int) -> str:
    return f"0e:00:00:00:00:{node:02x}"


def lease(node: int, vni: int = 1, **fields: Any) -> str:
    wanted: dict[str, Any] = {
        "public_ip": IPv4Address(f"192.0.2.{node}"),
        "public_ipv6": IPv6Address(f"fd77::{node}"),
        "vtep": Vtep(vni, mac(node)),
        "vtep_v6": Vtep(vni, mac(node + 100)),
    }
    return LeaseAttrs(**{**wanted, **fields}).to_json()


def entry(name: str, value: str, revision: int = 1, created: int | None = None) -> Entry:
    created = revision if created is None else created
    return Entry(f"{PREFIX}/{name}", value.encode(), created, revision)


def rib_of(*entries: Entry) -> Rib:
    rib = Rib(PREFIX, 1, OWN)
    rib.apply_snapshot(entries, max((e.mod_revision for e in entries), default=1))
    return rib


def route(rib: Rib, prefix: str) -> Route:
    return rib.routes[ip_network(prefix)]


def reasons(rib: Rib) -> list[Reason]:
    return [ignored.reason for ignored in rib.ignored]


def test_a_lease_is_a_route_to_its_nodes_vtep() -> None:
    rib = rib_of(entry("subnets/10.7.2.0-24", lease(2)))
    assert rib.routes == {
        ip_network("10.7.2.0/24"): Route(
            ip_network("10.7.2.0/24"),
            Kind.REMOTE,
            IPv4Address("192.0.2.2"),
            mac(2),
            1,
            f"{PREFIX}/subnets/10.7.2.0-24",
        )
    }


def test_our_own_lease_is_local() -> None:
    assert route(rib_of(entry("subnets/10.7.1.0-24", lease(1))), "10.7.1.0/24").kind is Kind.LOCAL


def test_a_dual_stack_lease_routes_each_family_to_its_own_vtep() -> None:
    rib = rib_of(entry("subnets/10.7.2.0-24&fd00:42:0:2::-64", lease(2)))
    assert route(rib, "10.7.2.0/24").vtep_mac == mac(2)
    ipv6 = route(rib, "fd00:42:0:2::/64")
    assert (ipv6.vtep_mac, ipv6.public_ip) == (mac(102), IPv6Address("fd77::2"))


def test_an_ipv6_only_lease_makes_one_route() -> None:
    rib = rib_of(entry("subnets/0.0.0.0-0&fd00:42:0:2::-64", lease(2, public_ip=None, vtep=None)))
    assert list(rib.routes) == [ip_network("fd00:42:0:2::/64")]
    assert rib.ignored == ()


def test_an_extension_route_takes_any_prefix_of_either_family() -> None:
    rib = rib_of(
        entry("routes/10.7.2.9-32", lease(3)),
        entry("routes/fd00:42::-56", lease(3)),
        entry("routes/10.7.1.7-32", lease(1)),
    )
    assert route(rib, "10.7.2.9/32").public_ip == IPv4Address("192.0.2.3")
    assert route(rib, "fd00:42::/56").vtep_mac == mac(103)
    assert route(rib, "10.7.1.7/32").kind is Kind.LOCAL


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("subnets/garbage", lease(2), Reason.BAD_KEY),
        ("subnets/10.7.2.1-24", lease(2), Reason.BAD_KEY),
        ("routes/10.7.2.9", lease(2), Reason.BAD_KEY),
        ("subnets/10.7.2.0-24", "garbage", Reason.BAD_VALUE),
        ("subnets/10.7.2.0-24", lease(2, backend_type="host-gw"), Reason.OTHER_BACKEND),
        ("subnets/10.7.2.0-24", lease(2, backend_type=""), Reason.OTHER_BACKEND),
        ("subnets/10.7.2.0-24", lease(2, vni=2), Reason.OTHER_VNI),
        ("subnets/10.7.2.0-24", lease(2, vtep=None), Reason.NO_VTEP),
        ("subnets/10.7.2.0-24", lease(2, public_ip=None), Reason.NO_VTEP),
        ("subnets/10.7.9.0-24", lease(1), Reason.OWN_ADDRESS),
    ],
)
def test_what_is_no_route_is_ignored_for_a_reason(name: str, value: str, reason: Reason) -> None:
    rib = rib_of(entry(name, value))
    assert rib.routes == {}
    (ignored,) = rib.ignored
    assert (ignored.key, ignored.reason) == (f"{PREFIX}/{name}", reason)
    assert reason.value in str(ignored)


def test_other_keys_below_the_prefix_are_nothing_to_us() -> None:
    rib = rib_of(entry("config", "{}"), entry("subnetsx/10.7.2.0-24", lease(2)))
    assert rib.routes == {}
    assert rib.ignored == ()


def test_garbage_is_reported_once_for_each_reason() -> None:
    rib = rib_of()
    bad = entry("subnets/10.7.2.0-24", "garbage", 2)
    assert [i.reason for i in rib.apply_events([bad]).ignored] == [Reason.BAD_VALUE]
    assert rib.apply_events([bad]).ignored == []
    assert rib.apply_snapshot([bad], 5).ignored == []
    assert rib.apply_events([entry("subnets/10.7.2.0-24", "garbage", 6)]).ignored == []
    other = rib.apply_events([entry("subnets/10.7.2.0-24", lease(2, vni=9), 7)])
    assert [i.reason for i in other.ignored] == [Reason.OTHER_VNI]


def test_the_oldest_of_two_leases_of_one_prefix_wins() -> None:
    older = entry("subnets/10.7.2.0-24&fd00:42:0:2::-64", lease(2), 9, created=3)
    younger = entry("subnets/10.7.2.0-24", lease(3), 4)
    rib = rib_of(younger, older)
    assert route(rib, "10.7.2.0/24").public_ip == IPv4Address("192.0.2.2")
    assert reasons(rib) == [Reason.DUPLICATE]
    changes = rib.apply_events([Deletion(older.key, 10)])
    assert changes.routes[ip_network("10.7.2.0/24")] == route(rib, "10.7.2.0/24")
    assert route(rib, "10.7.2.0/24").public_ip == IPv4Address("192.0.2.3")
    assert rib.ignored == ()


def test_a_lease_wins_over_an_extension_route_of_the_same_prefix() -> None:
    rib = rib_of(
        entry("routes/10.7.2.0-24", lease(3), 1), entry("subnets/10.7.2.0-24", lease(2), 2)
    )
    assert route(rib, "10.7.2.0/24").public_ip == IPv4Address("192.0.2.2")
    assert reasons(rib) == [Reason.DUPLICATE]


def test_our_own_lease_wins_over_any_other() -> None:
    rib = rib_of(
        entry("subnets/10.7.1.0-24&fd00:42:0:2::-64", lease(2), 1),
        entry("subnets/10.7.1.0-24", lease(1), 2),
    )
    assert route(rib, "10.7.1.0/24").kind is Kind.LOCAL


def test_a_changed_address_or_mac_changes_the_route() -> None:
    rib = rib_of(entry("subnets/10.7.2.0-24", lease(2)))
    changes = rib.apply_events([entry("subnets/10.7.2.0-24", lease(3), 2, created=1)])
    assert [r.vtep_mac for r in changes.routes.values() if r] == [mac(3)]


def test_a_change_missed_while_disconnected_comes_with_the_snapshot() -> None:
    rib = rib_of(entry("subnets/10.7.2.0-24", lease(2)), entry("subnets/10.7.4.0-24", lease(4)))
    changes = rib.apply_snapshot([entry("subnets/10.7.2.0-24", lease(3), 7, created=1)], 9)
    assert changes.routes == {
        ip_network("10.7.2.0/24"): route(rib, "10.7.2.0/24"),
        ip_network("10.7.4.0/24"): None,
    }
    assert rib.apply_snapshot([entry("subnets/10.7.2.0-24", lease(3), 7, created=1)], 9) == (
        Changes()
    )


def test_stale_and_repeated_events_change_nothing() -> None:
    put = entry("subnets/10.7.2.0-24", lease(2), 5)
    deletion = Deletion(put.key, 6)
    rib = rib_of()
    rib.apply_events([put, deletion])
    assert rib.apply_events([put]) == Changes()
    assert rib.routes == {}
    rib.apply_snapshot([], 8)
    assert rib.apply_events([put, deletion]) == Changes()


def test_another_vni_or_lease_of_ours_is_seen_at_once() -> None:
    rib = rib_of(entry("subnets/10.7.2.0-24", lease(2)), entry("subnets/10.7.3.0-24", lease(3, 7)))
    changes = rib.configure(7, OWN)
    assert list(rib.routes) == [ip_network("10.7.3.0/24")]
    assert changes.routes[ip_network("10.7.2.0/24")] is None
    as_node_3 = Own(f"{PREFIX}/subnets/10.7.3.0-24", IPv4Address("192.0.2.3"))
    assert rib.configure(7, as_node_3).routes == {
        ip_network("10.7.3.0/24"): route(rib, "10.7.3.0/24")
    }
    assert route(rib, "10.7.3.0/24").kind is Kind.LOCAL


def test_a_lease_kept_from_a_lost_cluster_gives_way_to_a_live_one() -> None:
    kept = entry("subnets/10.7.2.0-24", lease(2), 0)
    rib = rib_of(kept, entry("subnets/10.7.2.0-24&fd00:42:0:2::-64", lease(3), 5))
    assert route(rib, "10.7.2.0/24").public_ip == IPv4Address("192.0.2.3")
    rib.apply_snapshot([kept], 3)
    assert route(rib, "10.7.2.0/24").public_ip == IPv4Address("192.0.2.2")
    rib.apply_events([entry("subnets/10.7.2.0-24", lease(4), 4)])
    assert route(rib, "10.7.2.0/24").public_ip == IPv4Address("192.0.2.4")


NAMES = [
    "subnets/10.7.1.0-24",
    "subnets/10.7.2.0-24",
    "subnets/10.7.2.0-24&fd00:42:0:2::-64",
    "subnets/0.0.0.0-0&fd00:42:0:2::-64",
    "subnets/garbage",
    "routes/10.7.2.0-24",
    "routes/10.7.2.9-32",
    "config",
]
VALUES = [lease(1), lease(2), lease(3), lease(4, vni=2), lease(5, vtep=None), "garbage"]
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.none() | st.sampled_from(VALUES)), max_size=30
)


class History:
    """What an etcd went through: its state and the event at each revision."""

    def __init__(self, operations: list[tuple[str, str | None]]) -> None:
        self.states: list[dict[str, Entry]] = [{}]
        self.events: list[Event] = []
        for revision, (name, value) in enumerate(operations, start=1):
            state = dict(self.states[-1])
            key = f"{PREFIX}/{name}"
            if value is None:
                state.pop(key, None)
                self.events.append(Deletion(key, revision))
            else:
                created = state[key].create_revision if key in state else revision
                state[key] = entry(name, value, revision, created)
                self.events.append(state[key])
            self.states.append(state)

    def snapshot_at(self, revision: int) -> list[Entry]:
        return list(self.states[revision].values())


@settings(max_examples=300)
@given(operations=OPERATIONS, data=st.data())
def test_any_history_ends_like_a_fresh_list(
    operations: list[tuple[str, str | None]], data: st.DataObject
) -> None:
    history = History(operations)
    last = len(operations)
    rib = Rib(PREFIX, 1, OWN)
    mirror: dict[IPNetwork, Route] = {}
    known = 0  # the revision the RIB is at

    def mirror_changes(changes: Changes) -> None:
        for prefix, route in changes.routes.items():
            if route is None:
                del mirror[prefix]
            else:
                mirror[prefix] = route

    while known < last:
        known = data.draw(st.integers(known + 1, last), "reach")
        if data.draw(st.booleans(), "lost events, list again"):
            mirror_changes(rib.apply_snapshot(history.snapshot_at(known), known))
        else:
            repeated_from = data.draw(st.integers(0, rib_revision(rib)), "repeat from")
            events = data.draw(st.permutations(history.events[repeated_from:known]), "order")
            mirror_changes(rib.apply_events(events))
        assert mirror == rib.routes

    fresh = Rib(PREFIX, 1, OWN)
    fresh.apply_snapshot(history.snapshot_at(last), last)
    assert rib.routes == fresh.routes
    assert rib.ignored == fresh.ignored


def rib_revision(rib: Rib) -> int:
    """A revision from which on repeating events leaves no gap."""
    return rib._snapshot_revision
