"""`loden lookup` on whole nodes: the verdict, what it rests on, and that packets agree with it."""

from __future__ import annotations

import json
from ipaddress import IPv4Network, ip_network
from typing import Any

import pytest
from click.testing import CliRunner, Result

from control.lookup import lookup_command
from tests.netns.nodes import PREFIX, Cluster, LodenNode, reaches, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


def run_lookup(node: LodenNode, *words: str) -> Result:
    with node.host.entered():
        return CliRunner().invoke(lookup_command, ["--run-dir", str(node.run_dir), *words])


def look_up(node: LodenNode, *words: str) -> dict[str, Any]:
    """The answer, and its exit status as "status"."""
    done = run_lookup(node, "--json", *words)
    return {**json.loads(done.output), "status": done.exit_code}


def network_of(node: LodenNode) -> IPv4Network:
    network = ip_network(node.subnet)
    assert isinstance(network, IPv4Network)
    return network


@pytest.fixture
def near(cluster: Cluster) -> LodenNode:
    return cluster.nodes[0]


@pytest.fixture
def far(cluster: Cluster) -> LodenNode:
    return cluster.nodes[1]


@pytest.fixture
def neighbour(near: LodenNode, far: LodenNode) -> str:
    """A pod's address on the far node."""
    near.pod()
    return str(far.pod().address)


def test_packet_to_another_nodes_pod_is_followed_to_the_wire(
    near: LodenNode, far: LodenNode, neighbour: str
) -> None:
    told = look_up(near, neighbour)
    assert (told["arrives"], told["status"], told["reason"]) == (True, 0, None)
    assert told["verdict"] == f"it is sent to the node {far.host.address}, by eth0"
    assert told["kernel"] == "by loden0"
    network = network_of(far)
    key = f"{PREFIX}/subnets/{network.network_address}-{network.prefixlen}"
    expected = {"prefix": str(network), "kind": "remote", "address": str(far.host.address)}
    assert told["route"].items() >= {**expected, "mac": far.mac, "vni": 1, "key": key}.items()
    assert told["mtu_bytes"] == 1450
    wait_for(lambda: "whole" in look_up(near, neighbour)["tcp_superpackets"], "tunnel GSO is on")
    assert reaches(near.pod(), far.pod())


def test_packet_that_stays_or_leads_nowhere_is_told_so(near: LodenNode, neighbour: str) -> None:
    own = look_up(near, str(near.pod().address))
    assert (own["arrives"], own["verdict"]) == (True, "it stays on this node, by docker0")
    nowhere = look_up(near, "10.5.255.77")
    assert (nowhere["status"], nowhere["reason"]) == (1, "no_route")
    assert nowhere["verdict"] == "it is dropped: no route for the inner destination"
    elsewhere = look_up(near, "192.168.77.11")
    assert elsewhere["verdict"] == "it does not reach loden: the kernel sends it by eth0"


def test_route_of_somebody_else_that_is_in_the_way_is_found(
    near: LodenNode, far: LodenNode, neighbour: str
) -> None:
    near.host.ip(f"route add {far.subnet} via {far.host.address} dev eth0 onlink proto 99")
    near.host.ip(f"route change {far.subnet} dev eth0")
    try:
        told = look_up(near, neighbour)
        assert (told["arrives"], told["reaches_overlay"]) == (False, False)
        assert told["verdict"] == "it does not reach loden: the kernel sends it by eth0"
    finally:
        near.host.ip(f"route del {far.subnet}")


def test_extension_route_and_ignored_entries_are_named(
    cluster: Cluster, near: LodenNode, far: LodenNode, neighbour: str
) -> None:
    value = cluster.etcd.list("/subnets/")[f"/subnets/{far.subnet.replace('/', '-')}"]
    cluster.etcd.put("/routes/10.5.250.9-32", value)
    cluster.etcd.put("/routes/10.5.250.8-32", value.replace('"VNI":1', '"VNI":9'))
    wait_for(lambda: "10.5.250.9/32" in near.routes(), "the route is followed")
    assert look_up(near, "10.5.250.9")["route"]["key"] == f"{PREFIX}/routes/10.5.250.9-32"
    ignored = wait_for(lambda: look_up(near, "10.5.250.8")["route"]["ignored"], "it is ignored")
    assert "the lease is of another VNI" in ignored[0]
    for name in ("10.5.250.9-32", "10.5.250.8-32"):
        cluster.etcd.delete(f"/routes/{name}")


def test_arriving_packet_passes_the_checks_or_is_told_which_it_fails(
    near: LodenNode, far: LodenNode, neighbour: str
) -> None:
    own = str(near.pod().address)
    passed = look_up(near, own, "--from", neighbour)
    assert (passed["status"], passed["verdict"]) == (0, "it is delivered, by docker0")
    assert passed["vtep"] == str(far.host.address)
    for words, reason in (
        ([own, "--from", neighbour, "--vtep", "192.168.77.99"], "unknown_vtep"),
        ([own, "--from", "10.5.255.77", "--vtep", str(far.host.address)], "spoofed_source"),
        (["10.5.255.77", "--from", neighbour], "not_our_destination"),
    ):
        told = look_up(near, *words)
        assert (told["status"], told["reason"]) == (1, reason)


def test_kernel_that_does_not_deliver_is_told(near: LodenNode, neighbour: str) -> None:
    near.host.set_sysctl("net/ipv4/ip_forward", 0)
    try:
        told = look_up(near, str(near.pod().address), "--from", neighbour)
    finally:
        near.host.set_sysctl("net/ipv4/ip_forward", 1)
    assert not told["arrives"]
    assert "the kernel does not: it is not forwarded" in told["verdict"]


def test_person_is_shown_the_verdict_first(near: LodenNode, neighbour: str) -> None:
    shown = run_lookup(near, neighbour).output.split()
    assert shown[:6] == ["verdict", "it", "is", "sent", "to", "the"]
    assert "a node's lease: /coreos.com/network/subnets/" in " ".join(shown)
    refused = run_lookup(near, neighbour, "--vtep", "192.0.2.1")
    assert (refused.exit_code, "give --from, too" in refused.output) == (2, True)
