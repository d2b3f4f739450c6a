"""The 22 bytes before an inner packet, as scapy reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from forwarder.wire.vxlan import ENCAP_BYTES, VNI_MAX, build_rewrite, format_mac, parse_mac

macs = st.binary(min_size=6, max_size=6)


@given(st.integers(0, VNI_MAX), macs, macs)
def test_rewrite_is_what_scapy_reads(vni: int, destination: bytes, source: bytes) -> None:
    rewrite = build_rewrite(vni, destination, source)
    assert len(rewrite) == ENCAP_BYTES
    frame = VXLAN(rewrite)
    assert (frame.flags, frame.vni, frame.reserved1, frame.reserved2) == ("Instance", vni, 0, 0)
    ethernet = frame[Ether]
    assert (ethernet.dst, ethernet.src) == (format_mac(destination), format_mac(source))
    assert ethernet.type == 0x0800


@given(macs)
def test_mac_reads_what_it_writes(mac: bytes) -> None:
    assert parse_mac(format_mac(mac)) == mac


@pytest.mark.parametrize("text", ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "02:0:0:0:0:zz"])
def test_text_that_is_no_mac_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"MAC address '{text}'"):
        parse_mac(text)


def test_rewrite_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="VNI 16777216: allowed are 0 to 16777215"):
        build_rewrite(VNI_MAX + 1, bytes(6), bytes(6))
    with pytest.raises(ValueError, match="a MAC address has 6 bytes"):
        build_rewrite(1, bytes(5), bytes(6))
