"""What a worker must know of the tunnel it serves, as its compiled loop sees it."""

from typing import NamedTuple

from forwarder.arrays import Bytes, Longs, Words


class Tunnel(NamedTuple):
    """One worker's end of the tunnel.  Fixed while the worker lives."""

    tun_fd: int
    """This worker's queue of the overlay device, non-blocking."""
    receivers: Longs
    """Sockets bound to the VXLAN port, one per underlay family in use; -1 for a family that is
    not.  int64[2]: IPv4, IPv6."""
    sockets: Longs
    """Sockets to send from.  The first half are IPv4's lanes, the second IPv6's: each lane has
    its own source port (RFC 7348 §5: entropy for ECMP and for the receiver's cores)."""
    wake_fd: int
    """Readable when the worker shall stop."""
    vni: int
    mac: Bytes
    """Our VTEP's MAC, uint8[6]."""
    mtu_bytes: int
    """MTU of the overlay device: the largest inner packet."""
    dscp: int
    """Of outer packets, or dscp.COPY."""
    path_mtu: Words
    """uint32 per adjacency: a smaller limit towards that peer, 0: none; see path_mtu.py."""
    coalesce_tcp: bool
    """Whether packets of a TCP flow are handed to the device in one write."""
    coalesce_udp: bool
    udp_gso: Longs
    """int64[1]: 1 while UDP_SEGMENT is used; set to 0 for good when the kernel refuses it."""
    tap_fd: int
    """This worker's queue of the tunnel-GSO device; -1: there is none."""
    templates: Bytes
    """Outer headers of the tunnel-GSO path, see tunnel_gso.make_templates."""
    lane_ports: Longs
    """The source port of each of `sockets`."""
    tunnel_gso: Longs
    """int64[2], IPv4 and IPv6 underlay: 1 while TCP superpackets leave whole; 0 when that is off
    or was refused."""

    def descriptors(self) -> set[int]:
        """All that a worker needs open."""
        several = (*self.receivers.tolist(), *self.sockets.tolist())
        return {self.tun_fd, self.wake_fd, self.tap_fd, *several} - {-1}
