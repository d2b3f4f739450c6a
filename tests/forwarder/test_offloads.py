"""What is in use, what is not, and what people are told about it."""

from dataclasses import replace
from typing import Any

import pytest

from forwarder.config import ForwarderOptions
from forwarder.offloads import Offloads
from forwarder.selftest import TESTS, Findings


def offloads(**options: Any) -> Offloads:
    return Offloads(replace(ForwarderOptions(run_dir="unused", cpus=(0,)), **options))


def test_everything_is_used_until_something_speaks_against_it() -> None:
    states = offloads().states()
    assert states.pop("tunnel_gso") == "not tried yet"
    assert set(states.values()) == {"on"}
    assert states.keys() == TESTS.keys()


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("tso", {"tun_tso"}),
        ("uso", {"tun_uso"}),
        ("coalesce", {"coalesce_tcp", "coalesce_udp"}),
        ("udp_gso", {"udp_gso"}),
        ("udp_gro", {"udp_gro"}),
        ("tunnel_gso", {"tunnel_gso"}),
    ],
)
def test_switch_turns_off_what_it_names_alone(option: str, names: set[str]) -> None:
    states = offloads(**{option: False}).states()
    assert {name for name, state in states.items() if state == "switched off"} == names


@pytest.mark.parametrize("name", TESTS)
def test_failed_test_switches_off_says_so_once_and_shows(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = offloads()
    for _ in range(2):
        found.heed(Findings({name: "it lost a packet"}))
    assert not found[name]
    assert found.states()[name] == "failed its test: it lost a packet"
    assert [r.getMessage() for r in caplog.records] == [
        f"{name} is not used any more: failed its test: it lost a packet"
    ]
    assert all(found[other] for other in TESTS if other != name)


def test_what_is_switched_off_stays_so_whatever_its_test_says() -> None:
    found = offloads(udp_gso=False)
    found.heed(Findings({"udp_gso": "it lost a packet"}))
    assert found.states()["udp_gso"] == "switched off"


def test_untested_offloads_are_used(caplog: pytest.LogCaptureFixture) -> None:
    found = offloads()
    with caplog.at_level("INFO"):
        found.heed(Findings(untested="no private network namespace"))
    assert "without a test: no private network namespace" in caplog.text
    assert all(found[name] for name in TESTS)
