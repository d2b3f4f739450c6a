"""pcapng as scapy reads it; directions and comments, as tshark reads them, are in tests/netns."""

from io import BytesIO

import pytest
from scapy.utils import RawPcapNgReader

from control import pcapng

START = pcapng.section("loden") + pcapng.interface("loden0", "inner packets", 200)


@pytest.mark.parametrize("size", [0, 1, 59, 60, 200])
def test_frames_come_back_with_time_and_length(size: int) -> None:
    frame = bytes(range(size))
    block = pcapng.packet(1_700_000_000_123_456_789, frame, 1500, 2, "to nobody", 0)
    ((data, metadata),) = RawPcapNgReader(BytesIO(START + block))
    assert (data, metadata.wirelen, metadata.linktype) == (frame, 1500, pcapng.LINKTYPE_ETHERNET)
    told = (metadata.tshigh << 32 | metadata.tslow, metadata.tsresol)
    assert told == (1_700_000_000_123_456_789, 10**9)


def test_every_block_says_its_length_at_both_ends() -> None:
    rest = START + pcapng.packet(1, b"frame", 5, 1, "odd", 7) + pcapng.statistics(2, 10, 7)
    kinds = []
    while rest:
        length = int.from_bytes(rest[4:8], "little")
        assert length % 4 == 0
        assert rest[length - 4 : length] == rest[4:8]
        kinds.append(int.from_bytes(rest[:4], "little"))
        rest = rest[length:]
    assert kinds == [
        pcapng.SECTION_HEADER,
        pcapng.INTERFACE,
        pcapng.PACKET,
        pcapng.STATISTICS,
    ]


def test_losses_are_told_with_the_next_packet_only_where_there_are_any() -> None:
    lost = pcapng.PACKET_LOST.to_bytes(2, "little") + b"\x08\0" + (7).to_bytes(8, "little")
    assert lost in pcapng.packet(0, b"", 0, 1, "", 7)
    assert lost[:4] not in pcapng.packet(0, b"", 0, 1, "", 0)
