"""VXLAN and Ethernet headers: what stands between the outer UDP header and the inner IP packet.

RFC 7348 §5:

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |R|R|R|R|I|R|R|R|            Reserved                           |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                VXLAN Network Identifier (VNI) |   Reserved    |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

import numpy as np

VXLAN = np.dtype([("flags", "u1"), ("reserved", "u1", 3), ("vni", "u1", 3), ("reserved2", "u1")])
assert VXLAN.itemsize == 8

ETHERNET = np.dtype([("destination", "u1", 6), ("source", "u1", 6), ("ethertype", ">u2")])
assert ETHERNET.itemsize == 14

VXLAN_FLAG_VNI = 0x08
"""The I flag: the VNI is valid.  All other bits are reserved, sent as zero."""

VNI_MAX = 0xFFFFFF
DEFAULT_PORT = 8472
"""Linux's port for VXLAN, and flannel's; IANA's is 4789."""

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_IPV6 = 0x86DD

ENCAP = np.dtype([("vxlan", VXLAN), ("ethernet", ETHERNET)])
"""What encapsulation puts before the inner IP header: the adjacency's rewrite."""
ENCAP_BYTES = ENCAP.itemsize

# Offsets from the start of the UDP payload.
VNI_AT = 4
INNER_DESTINATION_AT = VXLAN.itemsize
INNER_SOURCE_AT = INNER_DESTINATION_AT + 6
INNER_ETHERTYPE_AT = INNER_SOURCE_AT + 6


def parse_mac(text: str) -> bytes:
    """The 6 bytes of a MAC address written aa:bb:cc:dd:ee:ff.  Raises ValueError."""
    parts = text.split(":")
    if len(parts) != 6 or any(len(part) not in (1, 2) for part in parts):
        raise ValueError(f"MAC address {text!r}: expected six hexadecimal bytes joined by ':'")
    try:
        return bytes(int(part, 16) for part in parts)
    except ValueError:
        raise ValueError(f"MAC address {text!r}: a byte is not hexadecimal") from None


def format_mac(mac: bytes) -> str:
    """The usual text of a 6-byte MAC address."""
    return ":".join(f"{byte:02x}" for byte in mac)


def build_rewrite(vni: int, destination: bytes, source: bytes) -> bytes:
    """The ENCAP_BYTES bytes that encapsulate an inner IPv4 packet towards one VTEP.

    (An inner IPv6 packet differs in the last two bytes only, the ethertype.)
    `destination` is the remote VTEP's MAC, `source` our own.  Raises ValueError.
    """
    if not 0 <= vni <= VNI_MAX:
        raise ValueError(f"VNI {vni}: allowed are 0 to {VNI_MAX}")
    if len(destination) != 6 or len(source) != 6:
        raise ValueError("a MAC address has 6 bytes")
    row = np.zeros((), ENCAP)
    row["vxlan"]["flags"] = VXLAN_FLAG_VNI
    row["vxlan"]["vni"] = tuple(vni.to_bytes(3, "big"))
    row["ethernet"]["destination"] = tuple(destination)
    row["ethernet"]["source"] = tuple(source)
    row["ethernet"]["ethertype"] = ETHERTYPE_IPV4
    return row.tobytes()
