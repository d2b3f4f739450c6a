"""pcapng, the format Wireshark and tshark read: blocks as bytes, without a file or a clock.

draft-ietf-opsawg-pcapng: a section header, one interface, then packets, and statistics at the end.
Times are nanoseconds since 1970.
"""

from __future__ import annotations

import struct

SECTION_HEADER, INTERFACE, STATISTICS, PACKET = 0x0A0D0D0A, 1, 5, 6
BYTE_ORDER_MAGIC = 0x1A2B3C4D
LINKTYPE_ETHERNET = 1
NANOSECONDS = 9
"""if_tsresol: times count 10^-9 s."""

# Option codes; those below 10 belong to the type of the block.
END, COMMENT = 0, 1
SECTION_APPLICATION = 4
INTERFACE_NAME, INTERFACE_DESCRIPTION, INTERFACE_RESOLUTION = 2, 3, 9
PACKET_FLAGS, PACKET_LOST = 2, 4
STATISTICS_RECEIVED, STATISTICS_LOST = 4, 5

FLAG_INBOUND, FLAG_OUTBOUND = 1, 2
"""epb_flags, bits 0 and 1."""


def section(application: str) -> bytes:
    """The header of a file."""
    body = struct.pack("<IHHq", BYTE_ORDER_MAGIC, 1, 0, -1)  # of a length not known yet
    return _block(SECTION_HEADER, body, {SECTION_APPLICATION: application.encode()})


def interface(name: str, description: str, snap_bytes: int) -> bytes:
    """The interface that all packets are of: Ethernet, times in nanoseconds."""
    options = {
        INTERFACE_NAME: name.encode(),
        INTERFACE_DESCRIPTION: description.encode(),
        INTERFACE_RESOLUTION: bytes([NANOSECONDS]),
    }
    return _block(INTERFACE, struct.pack("<HHI", LINKTYPE_ETHERNET, 0, snap_bytes), options)


def packet(
    time_ns: int, frame: bytes, original_bytes: int, flags: int, comment: str, lost: int
) -> bytes:
    """One frame.  `lost`: packets missed between it and the one before."""
    body = struct.pack("<IIIII", 0, time_ns >> 32, time_ns & 0xFFFFFFFF, len(frame), original_bytes)
    options = {COMMENT: comment.encode(), PACKET_FLAGS: struct.pack("<I", flags)}
    if lost:
        options[PACKET_LOST] = struct.pack("<Q", lost)
    return _block(PACKET, body + _padded(frame), options)


def statistics(time_ns: int, received: int, lost: int) -> bytes:
    """What became of all packets that were asked for, as of `time_ns`."""
    options = {
        STATISTICS_RECEIVED: struct.pack("<Q", received),
        STATISTICS_LOST: struct.pack("<Q", lost),
    }
    return _block(STATISTICS, struct.pack("<III", 0, time_ns >> 32, time_ns & 0xFFFFFFFF), options)


def _block(kind: int, body: bytes, options: dict[int, bytes]) -> bytes:
    for code, value in options.items():
        body += struct.pack("<HH", code, len(value)) + _padded(value)
    body += struct.pack("<HH", END, 0)
    length = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + length + body + length


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
