"""The Internet checksum (RFC 1071), summed four bytes at a time.

One's-complement sums do not care about byte order until the end (RFC 1071 §2 B), so words are
summed as the machine reads them and the folded result is swapped once.
"""

import numpy as np

from forwarder.arrays import Bytes, Int
from forwarder.jit import kernel
from forwarder.wire.ip import (
    IPV4_BYTES,
    IPV4_CHECKSUM_AT,
    IPV4_SOURCE_AT,
    IPV6_BYTES,
    IPV6_SOURCE_AT,
    load16,
    load32,
    store16,
)


@kernel
def fold(total: Int) -> Int:
    """Folds a sum of 16-bit words into 16 bits (end-around carry)."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@kernel
def ones_sum(data: Bytes, start: Int, length: Int) -> Int:
    """The folded one's-complement sum of data[start : start + length], read as big-endian words.

    Any alignment, any length from 0; an odd last byte counts as the high byte of a word.
    """
    whole = length & ~3
    total: Int = np.int64(0)
    for word in data[start : start + whole].view(np.uint32):
        total += np.int64(word)
    at = start + whole
    rest = length & 3
    if rest & 2:
        total += np.int64(data[at]) | (np.int64(data[at + 1]) << 8)
        at += 2
    if rest & 1:
        total += np.int64(data[at])
    total = fold(total)
    return ((total & 0xFF) << 8) | (total >> 8)


@kernel
def pseudo_sum(data: Bytes, start: Int, protocol: Int, transport_bytes: Int) -> Int:
    """The folded sum of an IP packet's pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).

    `transport_bytes` is the length of the transport header and its payload.
    """
    total = protocol + transport_bytes
    if data[start] >> 4 == 4:
        first, last = start + IPV4_SOURCE_AT, start + IPV4_BYTES
    else:
        first, last = start + IPV6_SOURCE_AT, start + IPV6_BYTES
    for at in range(first, last, 4):
        total += load32(data, at)
    return fold(total)


@kernel
def set_ipv4_checksum(data: Bytes, start: Int, header_bytes: Int) -> None:
    """Computes and stores the header checksum of the IPv4 header at `start`."""
    store16(data, start + IPV4_CHECKSUM_AT, 0)
    store16(data, start + IPV4_CHECKSUM_AT, ~ones_sum(data, start, header_bytes) & 0xFFFF)


@kernel
def finish_partial(data: Bytes, start: Int, end: Int, field_at: Int) -> None:
    """Completes a checksum of which the field holds only the pseudo-header's sum (NEEDS_CSUM).

    Sums data[start:end], field included, and stores the complement at data[field_at].  A result
    of 0 is stored as 0xffff: for UDP 0 would say "no checksum", for TCP both mean the same.
    """
    checksum = ~ones_sum(data, start, end - start) & 0xFFFF
    store16(data, field_at, checksum if checksum != 0 else 0xFFFF)


@kernel
def ipv4_checksum_is_right(data: Bytes, start: Int, header_bytes: Int) -> bool:
    """Whether the IPv4 header at `start` sums to what it should."""
    return ones_sum(data, start, header_bytes) == 0xFFFF


@kernel
def update16(data: Bytes, field_at: Int, old: Int, new: Int) -> None:
    """Adjusts the checksum at `field_at` for one covered 16-bit word that changed (RFC 1624)."""
    total = fold((~load16(data, field_at) & 0xFFFF) + (~old & 0xFFFF) + new)
    store16(data, field_at, ~total & 0xFFFF)
