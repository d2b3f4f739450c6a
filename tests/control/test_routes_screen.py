"""`loden routes`: which routes concern a prefix."""

from __future__ import annotations

import pytest

from control.routes_screen import leads_to, overlaps
from forwarder.fib.routes import Local, Prefix
from tests.forwarder.fibs import vtep


@pytest.mark.parametrize(
    ("route", "asked", "concerns"),
    [
        ("10.5.7.0/24", "10.5.7.9/32", True),
        ("10.5.7.9/32", "10.5.7.0/24", True),
        ("10.5.7.0/24", "10.5.7.0/24", True),
        ("10.5.7.0/24", "10.5.8.0/24", False),
        ("10.5.7.0/25", "10.5.7.128/25", False),
        ("0.0.0.0/0", "10.5.7.9/32", True),
        ("::/0", "10.5.7.9/32", False),
        ("2001:db8::/32", "2001:db8:5::1/128", True),
    ],
)
def test_routes_that_lie_in_a_prefix_or_contain_it(route: str, asked: str, concerns: bool) -> None:
    assert overlaps(Prefix.parse(route), Prefix.parse(asked)) is concerns
    assert overlaps(Prefix.parse(asked), Prefix.parse(route)) is concerns


def test_routes_to_one_vtep() -> None:
    assert leads_to(vtep(1), vtep(1).address)
    assert not leads_to(vtep(2), vtep(1).address)
    assert not leads_to(Local(), vtep(1).address)
