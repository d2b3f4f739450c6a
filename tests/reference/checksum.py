"""The Internet checksum, word by word (RFC 1071)."""


def ones_sum(data: bytes) -> int:
    """One's-complement sum of big-endian 16-bit words; an odd last byte is padded with a zero."""
    padded = data + b"\0" * (len(data) % 2)
    total = 0
    for at in range(0, len(padded), 2):
        total += padded[at] << 8 | padded[at + 1]
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    """What goes into the field; `data` has zeros there."""
    return ones_sum(data) ^ 0xFFFF


def pseudo_header(packet: bytes, protocol: int, transport_bytes: int) -> bytes:
    """RFC 9293 §3.1 for IPv4, RFC 8200 §8.1 for IPv6."""
    if packet[0] >> 4 == 4:
        return packet[12:20] + bytes([0, protocol]) + transport_bytes.to_bytes(2, "big")
    return packet[8:40] + transport_bytes.to_bytes(4, "big") + bytes([0, 0, 0, protocol])
