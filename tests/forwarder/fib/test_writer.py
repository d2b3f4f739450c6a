"""The FIB under random histories, against longest-prefix match by looking at every route."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder import shm
from forwarder.fib.layout import NO_ADJACENCY, Capacity, Kind
from forwarder.fib.lookup import find_vtep
from forwarder.fib.routes import Blackhole, IPAddress, Local, NextHop, Prefix, RemoteVtep
from forwarder.fib.writer import FibFull, FibWriter, pack_sockaddr
from tests.forwarder.fibs import OWN_MAC, Fib, Workers, lookup, make_fib, to_array, vtep
from tests.reference.routes import RouteTable

HOPS: list[NextHop | None] = [None, Local(), Blackhole(), *(vtep(n) for n in range(1, 6))]
# Few bits differ, so that prefixes nest and meet: in one /8 at both ends of a /24 and of a group.
IPV4_ADDRESSES = [
    0x0A000000 | a << 16 | b << 7 | c
    for a in (0, 1, 255)
    for b in (0, 1, 2, 511)
    for c in (0, 1, 2, 64, 127)
]
IPV6_ADDRESSES = [
    (0x20010DB8 << 96) | a << 64 | b << 32 | c
    for a in (0, 1, 0xFFFF)
    for b in (0, 1, 0xFFFFFFFF)
    for c in (0, 1, 0xFFFFFFFF)
] + [0, (1 << 128) - 1]


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    if draw(st.booleans()):
        length = draw(st.sampled_from([8, 15, 16, 17, 22, 23, 24, 25, 26, 30, 31, 32]))
        address = draw(st.sampled_from(IPV4_ADDRESSES))
        return Prefix(4, address, 32).shortened(length)
    length = draw(st.sampled_from([0, 1, 32, 48, 63, 64, 65, 96, 127, 128]))
    return Prefix(6, draw(st.sampled_from(IPV6_ADDRESSES)), 128).shortened(length)


batches_of_changes = st.lists(
    st.dictionaries(prefixes(), st.sampled_from(HOPS), max_size=8), max_size=12
)


def assert_agree(fib: Fib, table: RouteTable[NextHop]) -> None:
    """At the edges of every prefix, one beyond, and at addresses the prefixes are made of."""
    numbers = {4: set(IPV4_ADDRESSES), 6: set(IPV6_ADDRESSES)}
    for prefix in table.routes:
        edges = {prefix.address - 1, prefix.address, prefix.last, prefix.last + 1}
        numbers[prefix.version] |= {n for n in edges if 0 <= n < 1 << prefix.bits}
    rows = dict(fib.writer.adjacency_rows())
    for version, address_type in ((4, IPv4Address), (6, IPv6Address)):
        for number in numbers[version]:
            address: IPAddress = address_type(number)
            hop = table.lookup(address)
            expected = NO_ADJACENCY if hop is None else rows[hop]
            assert lookup(fib.view, address) == expected, (address, hop)


@settings(max_examples=60)
@given(batches_of_changes)
def test_every_history_ends_in_longest_prefix_match(
    history: list[dict[Prefix, NextHop | None]],
) -> None:
    fib, table = make_fib(), RouteTable[NextHop]()
    for changes in history:
        fib.writer.apply(changes)
        for prefix, hop in changes.items():
            table.set(prefix, hop)
        assert fib.writer.routes == table.routes
        assert_agree(fib, table)
    assert {hop for hop, _ in fib.writer.adjacency_rows()} == set(table.routes.values())


@settings(max_examples=20)
@given(batches_of_changes)
def test_removing_everything_leaves_nothing(history: list[dict[Prefix, NextHop | None]]) -> None:
    fib = make_fib()
    for changes in history:
        fib.writer.apply(changes)
    fib.writer.apply(dict.fromkeys(fib.writer.routes))
    assert not fib.view.tbl24[0x0A0000:0x0B0000].any()
    assert fib.writer.routes == {}
    assert list(fib.writer.adjacency_rows()) == []
    assert_agree(fib, RouteTable())


def test_default_route_covers_everything_but_what_is_longer() -> None:
    fib, table = make_fib(), RouteTable[NextHop]()
    changes: dict[Prefix, NextHop | None] = {
        Prefix.parse("0.0.0.0/0"): vtep(1),
        Prefix.parse("10.0.0.0/8"): vtep(2),
        Prefix.parse("10.0.0.7/32"): vtep(3),
        Prefix.parse("255.255.255.255/32"): vtep(4),
    }
    fib.writer.apply(changes)
    for prefix, hop in changes.items():
        table.set(prefix, hop)
    assert_agree(fib, table)
    fib.writer.apply({Prefix.parse("0.0.0.0/0"): None})
    table.set(Prefix.parse("0.0.0.0/0"), None)
    assert_agree(fib, table)


def test_apply_tells_how_much_it_changed() -> None:
    fib = make_fib()
    prefix, other = Prefix.parse("10.0.0.0/24"), Prefix.parse("10.0.1.0/24")
    assert fib.writer.apply({prefix: vtep(1), other: None}) == 1
    generation = fib.writer.generation
    assert fib.writer.apply({prefix: vtep(1), other: None}) == 0
    assert fib.writer.generation == generation


# ---- adjacency rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["192.0.2.9", "2001:db8::9"])
def test_row_holds_what_encapsulation_needs(address: str) -> None:
    fib = make_fib()
    hop = vtep(258, address)
    fib.route_to(("10.0.0.0/24", hop))
    row = fib.memory.adjacencies[lookup(fib.view, ip_address("10.0.0.1"))]
    rewrite = row["rewrite"].tobytes()
    assert rewrite[:8].hex() == "0800000000000700"
    assert rewrite[8:].hex(":") == "02:01:00:00:01:02:02:00:00:00:00:01:08:00"
    assert row["kind"] == Kind.REMOTE
    sockaddr = row["sockaddr"].tobytes()[: row["sockaddr_bytes"]]
    assert sockaddr == pack_sockaddr(hop.address, hop.port)
    assert len(sockaddr) == (16 if hop.address.version == 4 else 28)


def test_changed_next_hop_gets_a_fresh_row() -> None:
    fib = make_fib()
    fib.route_to(("10.0.0.0/24", vtep(1)))
    old = lookup(fib.view, ip_address("10.0.0.1"))
    contents = fib.view.adjacencies[old].tobytes()
    fib.route_to(("10.0.0.0/24", vtep(2)))
    assert lookup(fib.view, ip_address("10.0.0.1")) != old
    assert fib.view.adjacencies[old].tobytes() == contents  # a worker may still be reading it


@pytest.mark.parametrize("prefix", ["10.0.0.0/24", "10.0.0.0/25"])
def test_retired_rows_wait_for_the_slowest_worker(prefix: str) -> None:
    workers = Workers(seen=1)
    fib = make_fib(Capacity(groups=8, ipv6_ranges=8, adjacencies=8, routes=8), workers)
    used: list[int] = []
    for number in range(1, 7):
        fib.route_to((prefix, vtep(number)))
        used.append(dict(fib.writer.adjacency_rows())[vtep(number)])
    assert len(set(used)) == len(used)
    workers.seen = 3  # the generation in which the first row was retired, and no later one
    for number in (7, 8):
        fib.route_to((prefix, vtep(number)))
        used.append(dict(fib.writer.adjacency_rows())[vtep(number)])
    assert used[6] == used[0]
    assert used[7] not in used[:7]


def test_counters_of_a_row_are_cleared_when_no_worker_holds_it_any_more() -> None:
    workers, cleared = Workers(seen=1), list[int]()
    fib = make_fib(workers=workers, clear_peer=cleared.append)
    fib.route_to(("10.0.0.0/24", vtep(1)))
    first = dict(fib.writer.adjacency_rows())[vtep(1)]
    fib.route_to(("10.0.0.0/24", vtep(2)))
    fib.route_to(("10.0.1.0/24", vtep(3)))
    assert cleared == [], "a worker may still be counting there, and fresh rows are clear"
    workers.seen = 1 << 62
    fib.route_to(("10.0.2.0/24", vtep(4)))
    assert cleared == [first]
    assert dict(fib.writer.adjacency_rows())[vtep(4)] == first


def test_retired_groups_wait_for_the_slowest_worker() -> None:
    workers = Workers(seen=1)
    fib = make_fib(Capacity(groups=2, ipv6_ranges=8, adjacencies=8, routes=8), workers)
    for _ in range(2):
        fib.route_to(("10.0.0.1/32", vtep(1)))
        fib.route_to(("10.0.0.1/32", None))
    with pytest.raises(FibFull, match="groups are full: 1 more are needed, 0 of 2"):
        fib.route_to(("10.0.0.1/32", vtep(1)))
    workers.seen = fib.writer.generation
    fib.route_to(("10.0.0.1/32", vtep(1)))
    assert lookup(fib.view, ip_address("10.0.0.1")) != NO_ADJACENCY


# ---- room ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capacity", "prefixes", "part"),
    [
        (Capacity(1, 64, 64, 64), ["10.0.0.1/32", "10.0.1.1/32"], "groups"),
        (Capacity(64, 64, 4, 64), [f"10.0.{n}.0/24" for n in range(4)], "adjacencies"),
        (Capacity(64, 64, 64, 3), [f"10.0.{n}.0/24" for n in range(4)], "routes"),
        (Capacity(64, 8, 64, 64), [f"2001:db8:{n}::/64" for n in range(4)], "IPv6 ranges"),
    ],
)
def test_full_fib_applies_nothing(capacity: Capacity, prefixes: list[str], part: str) -> None:
    fib = make_fib(capacity)
    fib.route_to(("10.9.0.0/24", vtep(1)))
    before = fib.memory.memory[:]
    routes = dict(fib.writer.routes)
    with pytest.raises(FibFull, match=f"the FIB's {part} are full"):
        fib.route_to(("10.9.0.0/24", None), *((p, vtep(9 + i)) for i, p in enumerate(prefixes)))
    assert fib.memory.memory[:] == before
    assert fib.writer.routes == routes
    fib.route_to(("10.9.0.0/24", None))
    assert lookup(fib.view, ip_address("10.9.0.1")) == NO_ADJACENCY


def test_a_full_table_can_still_be_changed() -> None:
    fib = make_fib(Capacity(groups=1, ipv6_ranges=3, adjacencies=4, routes=2))
    fib.route_to(("10.0.0.1/32", vtep(1)), ("2001:db8::/64", vtep(1)))
    fib.route_to(("10.0.0.1/32", vtep(2)), ("2001:db8::/64", vtep(2)))
    # The group of a /24 whose only long route changes is kept, not dissolved and made anew.
    fib.route_to(("10.0.0.1/32", None))
    fib.route_to(("10.0.0.3/32", vtep(2)))
    fib.writer.apply({Prefix.parse("10.0.0.3/32"): None, Prefix.parse("2001:db8::/64"): None})
    fib.route_to(("10.0.0.5/32", vtep(2)))
    assert lookup(fib.view, ip_address("10.0.0.5")) != NO_ADJACENCY


def test_last_long_route_of_a_group_gives_way_to_another_without_a_second_group() -> None:
    fib = make_fib(Capacity(groups=1, ipv6_ranges=8, adjacencies=8, routes=8), Workers(seen=1))
    fib.route_to(("10.0.0.1/32", vtep(1)))
    fib.route_to(("10.0.0.1/32", None), ("10.0.0.2/32", vtep(1)))
    assert lookup(fib.view, ip_address("10.0.0.1")) == NO_ADJACENCY
    assert lookup(fib.view, ip_address("10.0.0.2")) != NO_ADJACENCY


# ---- who may send -------------------------------------------------------------------------------


def found_vtep(fib: Fib, address: IPAddress) -> int:
    sockaddr = pack_sockaddr(address, 4567).ljust(32, b"\0")
    return int(find_vtep(fib.view, to_array(sockaddr)))


@settings(max_examples=15)
@given(st.randoms(use_true_random=False))
def test_vteps_are_found_after_any_number_of_changes(random: Random) -> None:
    fib = make_fib()
    known: dict[Prefix, RemoteVtep] = {}
    for _ in range(40):
        changes: dict[Prefix, NextHop | None] = {}
        for _ in range(random.randrange(1, 6)):
            prefix = Prefix(4, 0x0A000000 | random.randrange(20) << 8, 24)
            number = random.randrange(1, 40)
            address = None if random.random() < 0.7 else f"2001:db8::{number:x}"
            changes[prefix] = None if random.random() < 0.4 else vtep(number, address)
        fib.writer.apply(changes)
        for prefix, hop in changes.items():
            if isinstance(hop, RemoteVtep):
                known[prefix] = hop
            else:
                known.pop(prefix, None)
        rows = dict(fib.writer.adjacency_rows())
        for number in range(1, 40):
            for hop in (vtep(number), vtep(number, f"2001:db8::{number:x}")):
                expected = rows[hop] if hop in known.values() else NO_ADJACENCY
                assert found_vtep(fib, hop.address) == expected


def test_vtep_shared_by_two_adjacencies_is_known_until_both_have_gone() -> None:
    fib = make_fib()
    first = vtep(1, "192.0.2.1")
    second = vtep(2, "192.0.2.1")
    fib.route_to(("10.0.1.0/24", first), ("10.0.2.0/24", second))
    assert found_vtep(fib, first.address) != NO_ADJACENCY
    fib.route_to(("10.0.1.0/24", None))
    assert found_vtep(fib, first.address) == dict(fib.writer.adjacency_rows())[second]
    fib.route_to(("10.0.2.0/24", None))
    assert found_vtep(fib, first.address) == NO_ADJACENCY


def test_writer_refuses_memory_that_was_written_to() -> None:
    fib = make_fib()
    with pytest.raises(ValueError, match="starts on fresh memory"):
        FibWriter(fib.writer.memory, OWN_MAC, fib.workers.all_past, shm.order_writes)


def test_many_ipv6_routes_change_one_by_one() -> None:
    """With more routes than are flattened anew, each change is written to either copy in turn."""
    fib = make_fib(Capacity(groups=1, ipv6_ranges=512, adjacencies=64, routes=512))
    table = RouteTable[NextHop]()
    random = Random(1)
    base = 0x20010DB8 << 96

    def change(prefix: Prefix, hop: NextHop | None) -> None:
        fib.writer.apply({prefix: hop})
        table.set(prefix, hop)

    fib.writer.apply({Prefix(6, base | n << 80, 48): vtep(n % 7) for n in range(100)})
    for n in range(100):
        table.set(Prefix(6, base | n << 80, 48), vtep(n % 7))
    for _ in range(60):
        length = random.choice([40, 47, 48, 48, 48, 56])
        prefix = Prefix(6, base | random.randrange(120) << 80, 128).shortened(length)
        change(prefix, random.choice([None, vtep(random.randrange(7))]))
        for n in range(120):
            for number in (base | n << 80, base | n << 80 | 1 << 79):
                hop = table.lookup(IPv6Address(number))
                rows = dict(fib.writer.adjacency_rows())
                expected = NO_ADJACENCY if hop is None else rows[hop]
                assert lookup(fib.view, IPv6Address(number)) == expected
