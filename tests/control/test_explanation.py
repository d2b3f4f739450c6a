"""Why an address is routed as it is."""

from ipaddress import ip_address

import pytest

from control.explanation import explain
from tests.control.test_rib import PREFIX, entry, lease, rib_of


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("10.7.1.9", "subnets/10.7.1.0-24"),
        ("10.7.2.8", "subnets/10.7.2.0-24"),
        ("10.7.2.9", "routes/10.7.2.9-32"),
        ("fd07::9", "subnets/10.7.3.0-24&fd07::-64"),
    ],
)
def test_key_is_that_of_the_longest_prefix(address: str, key: str) -> None:
    rib = rib_of(
        entry("subnets/10.7.1.0-24", lease(1)),
        entry("subnets/10.7.2.0-24", lease(2)),
        entry("subnets/10.7.3.0-24&fd07::-64", lease(3)),
        entry("routes/10.7.2.9-32", lease(3)),
    )
    assert explain(rib, ip_address(address)) == {"key": f"{PREFIX}/{key}", "ignored": []}


def test_entries_that_would_route_it_are_told_with_the_reason() -> None:
    rib = rib_of(
        entry("subnets/10.7.2.0-24", lease(2, vni=9)),
        entry("routes/10.7.2.9-32", "{}"),
        entry("subnets/10.7.4.0-24", "not JSON"),
        entry("subnets/nonsense", lease(5)),
    )
    told = explain(rib, ip_address("10.7.2.9"))
    assert told["key"] is None
    assert [text.split(":")[0] for text in told["ignored"]] == [
        f"{PREFIX}/routes/10.7.2.9-32",
        f"{PREFIX}/subnets/10.7.2.0-24",
    ]
    assert "the lease is of another VNI (9, not 1)" in told["ignored"][1]
    assert explain(rib, ip_address("10.7.9.9")) == {"key": None, "ignored": []}


def test_nothing_is_known_before_etcd_was_read() -> None:
    assert explain(None, ip_address("10.7.9.9")) == {"key": None, "ignored": []}
