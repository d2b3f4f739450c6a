"""The virtio_net_hdr that a TUN with IFF_VNET_HDR puts before every packet.

Layout and constants: include/uapi/linux/virtio_net.h.  Native byte order.
"""

import numpy as np

VNET = np.dtype(
    [
        ("flags", "u1"),
        ("gso_type", "u1"),
        ("hdr_len", "<u2"),
        ("gso_size", "<u2"),
        ("csum_start", "<u2"),
        ("csum_offset", "<u2"),
    ]
)
VNET_BYTES = VNET.itemsize
assert VNET_BYTES == 10

NEEDS_CSUM = 1
DATA_VALID = 2

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80
