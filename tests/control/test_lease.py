"""The lease formats, held against flannel's own keys and values."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.lease import (
    LeaseAttrs,
    LeaseFormatError,
    NodeSubnet,
    Vtep,
    parse_network_name,
    route_key,
    subnet_key,
)
from control.network_config import NetworkConfig

IPV4 = IPv4Network("10.7.29.0/24")
IPV6 = IPv6Network("2001:cafe:42:4f::/64")


@pytest.mark.parametrize(
    ("name", "subnet"),
    [
        ("10.7.29.0-24", NodeSubnet(IPV4)),
        ("10.7.29.0-24&2001:cafe:42:4f::-64", NodeSubnet(IPV4, IPV6)),
        ("0.0.0.0-0&2001:cafe:42:4f::-64", NodeSubnet(None, IPV6)),
    ],
)
def test_keys_parse_and_emit(name: str, subnet: NodeSubnet) -> None:
    assert NodeSubnet.parse(name) == subnet
    assert subnet.name == name
    assert subnet_key("/coreos.com/network", subnet) == f"/coreos.com/network/subnets/{name}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "10.7.29.0",
        "10.7.29.0-",
        "10.7.29.0-33",
        "10.7.29.1-24",
        "10.7.29.0-٢٤",
        "10.7.29.0-255.255.255.0",
        "0.0.0.0-0",
        "10.7.29.0-24&",
        "10.7.29.0-24&10.8.0.0-24",
        "2001:cafe:42:4f::-64",
        "10.7.29.0-24&fe80::%1-64",
        "10.7.29.0-24/x",
    ],
)
def test_garbage_keys_are_refused(name: str) -> None:
    with pytest.raises(LeaseFormatError):
        NodeSubnet.parse(name)


def test_ipv4_value_is_flannels_byte_for_byte() -> None:
    attrs = LeaseAttrs(IPv4Address("192.168.77.12"), vtep=Vtep(1, "ee:2d:a9:5c:eb:08"))
    assert attrs.to_json() == (
        '{"PublicIP":"192.168.77.12","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"ee:2d:a9:5c:eb:08"}}'
    )


def test_dual_stack_value_is_flannels_byte_for_byte() -> None:
    attrs = LeaseAttrs(
        IPv4Address("192.168.77.11"),
        IPv6Address("fd77::11"),
        Vtep(7, "2e:1a:00:00:00:01"),
        Vtep(7, "2e:1a:00:00:00:02"),
    )
    assert attrs.to_json() == (
        '{"PublicIP":"192.168.77.11","PublicIPv6":"fd77::11","BackendType":"vxlan",'
        '"BackendData":{"VNI":7,"VtepMAC":"2e:1a:00:00:00:01"},'
        '"BackendV6Data":{"VNI":7,"VtepMAC":"2e:1a:00:00:00:02"}}'
    )


def test_ipv6_only_value_has_flannels_zero_address() -> None:
    attrs = LeaseAttrs(None, IPv6Address("fd77::11"), vtep_v6=Vtep(7, "2e:1a:00:00:00:02"))
    assert attrs.to_json() == (
        '{"PublicIP":"0.0.0.0","PublicIPv6":"fd77::11","BackendType":"vxlan",'
        '"BackendV6Data":{"VNI":7,"VtepMAC":"2e:1a:00:00:00:02"}}'
    )
    assert LeaseAttrs.parse(attrs.to_json()) == attrs


def test_a_reservation_may_hold_nothing_but_an_address() -> None:
    attrs = LeaseAttrs.parse('{"PublicIP":"192.168.77.12"}')
    assert attrs == LeaseAttrs(IPv4Address("192.168.77.12"), backend_type="")


def test_other_backends_data_is_not_read() -> None:
    attrs = LeaseAttrs.parse(
        '{"PublicIP":"192.0.2.1","BackendType":"wireguard","BackendData":{"PublicKey":"k"}}'
    )
    assert (attrs.backend_type, attrs.vtep) == ("wireguard", None)


@pytest.mark.parametrize("mac", ["EE:2D:A9:5C:EB:08", "ee-2d-a9-5c-eb-08"])
def test_macs_are_read_in_any_spelling(mac: str) -> None:
    attrs = LeaseAttrs.parse(value(f'"VNI":1,"VtepMAC":"{mac}"'))
    assert attrs.vtep == Vtep(1, "ee:2d:a9:5c:eb:08")


def value(backend_data: str) -> str:
    return '{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{' + backend_data + "}}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ('{"PublicIP":"x"}', "PublicIP"),
        ('{"PublicIP":7}', "PublicIP"),
        ('{"PublicIP":"fd77::11"}', "PublicIP"),
        ('{"PublicIP":"192.0.2.1","PublicIPv6":"192.0.2.1"}', "PublicIPv6"),
        ('{"PublicIP":"192.0.2.1","BackendType":3}', "BackendType"),
        ('{"BackendType":"vxlan","BackendData":[]}', "BackendData"),
        (value('"VNI":-1,"VtepMAC":"ee:2d:a9:5c:eb:08"'), "VNI"),
        (value('"VNI":16777216,"VtepMAC":"ee:2d:a9:5c:eb:08"'), "VNI"),
        (value('"VNI":true,"VtepMAC":"ee:2d:a9:5c:eb:08"'), "VNI"),
        (value('"VNI":1'), "VtepMAC"),
        (value('"VNI":1,"VtepMAC":"ee:2d:a9:5c:eb"'), "VtepMAC"),
        (value('"VNI":1,"VtepMAC":"01:2d:a9:5c:eb:08"'), "VtepMAC"),
        (value('"VNI":1,"VtepMAC":"00:00:00:00:00:00"'), "VtepMAC"),
    ],
)
def test_garbage_values_are_refused_with_the_reason(text: str | bytes, reason: str) -> None:
    with pytest.raises(LeaseFormatError, match=reason):
        LeaseAttrs.parse(text)


@given(st.text() | st.binary())
def test_no_value_raises_anything_else(text: str | bytes) -> None:
    try:
        attrs = LeaseAttrs.parse(text)
    except LeaseFormatError:
        return
    assert LeaseAttrs.parse(attrs.to_json()) == attrs


@given(st.text(alphabet="0123456789abcdef.:-&/% "))
def test_no_key_raises_anything_else(name: str) -> None:
    try:
        subnet = NodeSubnet.parse(name)
    except LeaseFormatError:
        return
    assert NodeSubnet.parse(subnet.name) == subnet


@pytest.mark.parametrize("name", ["10.5.7.9-32", "10.5.0.0-16", "2001:db8::1-128", "0.0.0.0-0"])
def test_route_keys_take_any_prefix_length(name: str) -> None:
    assert route_key("/net", parse_network_name(name)) == f"/net/routes/{name}"


def test_overlap_is_found_across_families_and_lengths() -> None:
    dual = NodeSubnet(IPV4, IPV6)
    assert dual.overlaps(NodeSubnet(None, IPV6))
    assert dual.overlaps(NodeSubnet(IPv4Network("10.7.28.0/22")))
    assert not dual.overlaps(NodeSubnet(IPv4Network("10.7.30.0/24")))
    assert str(dual) == "10.7.29.0/24 and 2001:cafe:42:4f::/64"


def test_a_subnet_fits_only_a_config_of_the_same_families() -> None:
    config = NetworkConfig.build("10.7.0.0/16")
    assert NodeSubnet(IPV4).fits(config)
    assert not NodeSubnet(IPV4, IPV6).fits(config)
    assert not NodeSubnet(None, IPV6).fits(config)
    assert not NodeSubnet(IPv4Network("10.7.0.0/24")).fits(config)
    assert not NodeSubnet(IPv4Network("10.8.1.0/24")).fits(config)


def test_the_same_node_is_the_same_underlay_address() -> None:
    node = LeaseAttrs(IPv4Address("192.0.2.1"), IPv6Address("fd77::1"))
    assert node.same_address(LeaseAttrs(IPv4Address("192.0.2.1")))
    assert not node.same_address(LeaseAttrs(IPv4Address("192.0.2.2"), IPv6Address("fd77::1")))
    assert node.same_address(LeaseAttrs(None, IPv6Address("fd77::1")))
    assert not LeaseAttrs(None).same_address(LeaseAttrs(None))
