"""Splitting a superpacket into the packets it stands for."""

from tests.reference.checksum import checksum, pseudo_header
from tests.reference.packet import CHECKSUM_AT, TCP, UDP, find_transport, header_bytes

FIN, PSH, CWR = 0x01, 0x08, 0x80


def split(packet: bytes, size: int) -> list[bytes]:
    """Cuts the payload of a TCP or UDP packet into pieces of `size`, each with headers of its own.

    As Linux does it (tcp_gso_segment, udp_gso_segment): IPv4 ids count up, FIN and PSH stay on the
    last segment, CWR on the first.
    """
    headers, payload = packet[: header_bytes(packet)], packet[header_bytes(packet) :]
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
    return [
        _segment(headers, piece, index, index * size, index == len(pieces) - 1)
        for index, piece in enumerate(pieces)
    ]


def _segment(headers: bytes, piece: bytes, index: int, passed: int, is_last: bool) -> bytes:
    kind, offset, protocol = find_transport(headers + piece)
    segment = bytearray(headers + piece)
    if segment[0] >> 4 == 4:
        _add(segment, 4, index)
        _store(segment, 2, len(segment))
        _store(segment, 10, 0)
        _store(segment, 10, checksum(bytes(segment[:offset])))
    else:
        _store(segment, 4, len(segment) - 40)
    if kind == TCP:
        _add(segment, offset + 4, passed, size=4)
        cleared = (0 if is_last else FIN | PSH) | (0 if index == 0 else CWR)
        segment[offset + 13] &= ~cleared
    else:
        assert kind == UDP
        _store(segment, offset + 4, len(segment) - offset)
    field = offset + CHECKSUM_AT[kind]
    _store(segment, field, 0)
    pseudo = pseudo_header(headers, protocol, len(segment) - offset)
    value = checksum(pseudo + bytes(segment[offset:]))
    _store(segment, field, 0xFFFF if kind == UDP and value == 0 else value)
    return bytes(segment)


def _store(data: bytearray, at: int, value: int, size: int = 2) -> None:
    data[at : at + size] = value.to_bytes(size, "big")


def _add(data: bytearray, at: int, value: int, size: int = 2) -> None:
    old = int.from_bytes(data[at : at + size], "big")
    _store(data, at, (old + value) % (1 << 8 * size), size)
