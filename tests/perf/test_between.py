"""Two machines are measured as they are; here, two namespaces stand in for them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from perf.between import MEASURES, command, measure_between, named_addresses
from perf.topology import Topology


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with Topology() as topology:
        yield topology


def measure(topology: Topology, folder: Path, *options: str, far: str = "") -> Result:
    near, there = (f"ip netns exec {host.name}" for host in topology.hosts)
    argv = ["--near", near, "--far", far or there, "--output", str(folder), *options]
    return CliRunner().invoke(command, [*argv, "--quick"])


@pytest.mark.netns
def test_contenders_are_addresses_of_the_far_end(topology: Topology, tmp_path: Path) -> None:
    far = topology.hosts[1]
    far.ip("address add 10.9.9.9/32 dev lo")
    topology.hosts[0].ip(f"route add 10.9.9.9 via {far.address}")
    names = ("--to", f"wire={far.address}", "--to", "loop=10.9.9.9")
    only = ("--only", "tcp1", "--only", "overload25", "--only", "latency")
    result = measure(topology, tmp_path / "results", *names, *only)

    assert result.exit_code == 0, result.output
    assert "## Between two machines" in result.output
    kept = json.loads((tmp_path / "results" / "results.json").read_text())
    assert {(o["contender"], o["measure"], o["status"]) for o in kept["outcomes"]} == {
        (contender, name, "measured")
        for contender in ("wire", "loop")
        for name in ("tcp1", "overload25", "latency")
    }
    assert kept["contenders"]["loop"] == "by way of 10.9.9.9"
    assert kept["sites"]["between"]["wire"]["far machine"]["kernel"]
    assert [pid for host in topology.hosts for pid in host.pids()] == []


@pytest.mark.netns
@pytest.mark.parametrize(
    ("far", "address", "said"),
    [
        ("false", "192.168.77.11", "the agent in the far end has ended"),
        ("", "192.168.77.99", "no ping gets through to 192.168.77.99"),
    ],
)
def test_far_end_that_is_not_there_is_a_failure_with_a_reason(
    topology: Topology, tmp_path: Path, far: str, address: str, said: str
) -> None:
    options = ("--to", f"wire={address}", "--only", "latency")
    result = measure(topology, tmp_path / "results", *options, far=far)

    assert result.exit_code == 1
    (outcome,) = json.loads((tmp_path / "results" / "results.json").read_text())["outcomes"]
    assert outcome["status"] == "failed"
    assert said in outcome["why_not"]


def test_all_that_needs_no_second_look_at_one_machine_is_measured() -> None:
    names = {measure.name for measure in MEASURES}
    assert {"tcp1", "tcp4-reverse", "udp64", "udp-imix", "overload600", "latency-full"} <= names
    assert not names & {"cpu-tcp", "cpu-udp"}
    measure = measure_between(MEASURES[0], ("wire", "loden"))
    assert (measure.contenders, measure.reference) == (("wire", "loden"), "wire")


@pytest.mark.parametrize(
    ("value", "said"),
    [("loden", "'loden' is not NAME=ADDRESS"), ("loden=there", "'there' does not appear to be")],
)
def test_contender_without_an_address_is_refused(value: str, said: str) -> None:
    context, option = click.Context(command), command.params[0]
    with pytest.raises(click.BadParameter, match=said):
        named_addresses(context, option, (value,))
    assert named_addresses(context, option, ("a=10.0.0.1",)) == {"a": IPv4Address("10.0.0.1")}
    assert sys.executable in {option.default for option in command.params}
