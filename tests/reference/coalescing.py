"""Which packets may be delivered as one: the rules, asked again from the start for each packet."""

from collections.abc import Hashable, Sequence

from tests.reference.checksum import ones_sum
from tests.reference.packet import (
    TCP,
    UDP,
    checksum_field,
    checksums_are_right,
    find_transport,
    header_bytes,
    is_partial,
)

ACK, PSH = 0x10, 0x08
CHAIN_MAX = 64
PACKET_MAX = 65535
DF = 0x4000


def coalesce(packets: Sequence[bytes], keys: Sequence[Hashable], mtu_bytes: int) -> list[list[int]]:
    """The indices of the packets of each chain, chains in order of their first.

    One chain at a time may grow for each key, which every packet of a flow has in common.
    """
    chains: list[list[int]] = []
    growing: dict[Hashable, list[int]] = {}
    for index, (packet, key) in enumerate(zip(packets, keys, strict=True)):
        chain = growing.get(key)
        if chain and may_join([packets[i] for i in chain], packet, mtu_bytes):
            chain.append(index)
        else:
            growing[key] = [index]
            chains.append(growing[key])
    return chains


def may_join(chain: Sequence[bytes], packet: bytes, mtu_bytes: int) -> bool:
    """Whether `packet` may follow those of a chain in one superpacket."""
    first = chain[0]
    if not all(is_mergeable(p) and checksums_hold(p) for p in (*chain, packet)):
        return False
    size = payload_bytes(first)
    total = len(first) + sum(payload_bytes(p) for p in (*chain[1:], packet))
    return (
        len(first) <= mtu_bytes
        and len(chain) < CHAIN_MAX
        and total <= PACKET_MAX
        and all(payload_bytes(p) == size for p in chain)
        and payload_bytes(packet) <= size
        and header_bytes(packet) == header_bytes(first)
        and _same_ip_header(first, packet, len(chain))
        and _continues(chain, packet)
    )


def is_mergeable(packet: bytes) -> bool:
    """Whether a packet by itself is one that may be part of a superpacket."""
    kind, offset, _ = find_transport(packet)
    if kind == 0 or offset != (20 if packet[0] >> 4 == 4 else 40) or payload_bytes(packet) == 0:
        return False
    if kind == TCP:
        return packet[offset + 13] & ~PSH == ACK
    assert kind == UDP
    length = int.from_bytes(packet[offset + 4 : offset + 6], "big")
    return checksum_field(packet) != 0 and length == len(packet) - offset


def checksums_hold(packet: bytes) -> bool:
    """Right, or left to us by a kernel that vouches for the packet."""
    if is_partial(packet):
        return packet[0] >> 4 == 6 or ones_sum(packet[:20]) == 0xFFFF
    return checksums_are_right(packet)


def payload_bytes(packet: bytes) -> int:
    return len(packet) - header_bytes(packet)


def _same_ip_header(first: bytes, packet: bytes, distance: int) -> bool:
    if first[0] >> 4 == 6:
        return first[:4] + first[6:40] == packet[:4] + packet[6:40]
    if first[:2] + first[6:10] + first[12:20] != packet[:2] + packet[6:10] + packet[12:20]:
        return False
    counted = int.from_bytes(first[4:6], "big") + distance
    has_df = int.from_bytes(first[6:8], "big") & DF
    return bool(has_df) or counted % 65536 == int.from_bytes(packet[4:6], "big")


def _continues(chain: Sequence[bytes], packet: bytes) -> bool:
    """The same ports; for TCP also the next sequence number, and all else unchanged."""
    first = chain[0]
    kind, offset, _ = find_transport(first)
    if first[offset : offset + 4] != packet[offset : offset + 4]:
        return False
    if kind == UDP:
        return True
    if any(p[offset + 13] & PSH for p in chain):
        return False
    passed = sum(payload_bytes(p) for p in chain)
    sequence = int.from_bytes(first[offset + 4 : offset + 8], "big") + passed
    if sequence % (1 << 32) != int.from_bytes(packet[offset + 4 : offset + 8], "big"):
        return False
    a, b = first[offset : header_bytes(first)], packet[offset : header_bytes(packet)]
    return _what_stays(a) == _what_stays(b)


def _what_stays(tcp: bytes) -> bytes:
    """Acknowledgment, data offset, window, urgent pointer, options."""
    return tcp[8:13] + tcp[14:16] + tcp[18:]
