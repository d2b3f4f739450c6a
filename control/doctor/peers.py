"""The way to every other node: does it answer, do full packets pass, is the tunnel open?

    underlay   ping to the node's own address, of the size of a full tunnel packet
    overlay    ping to the node's end of the overlay (<subnet>.0), through both loden processes

The second is the whole truth, but there only while loden runs here; the first tells why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from control.doctor.echo import answered, largest
from control.doctor.finding import Finding, failure, ok, unknown, warning
from control.doctor.network import PEERS_MAX, Peer
from control.network_config import OVERHEAD_IPV4_BYTES, OVERHEAD_IPV6_BYTES
from forwarder.fib.routes import IPAddress

OUTER_BYTES = {4: OVERHEAD_IPV4_BYTES, 6: OVERHEAD_IPV6_BYTES}
SMALL_BYTES = 84
"""What ping sends by default: this passes any way."""


def check_peers(
    peers: Sequence[Peer], mtu_bytes: int, own_ends: Sequence[IPAddress], port: int
) -> list[Finding]:
    """`mtu_bytes`: the overlay's; `own_ends`: our own <subnet>.0 addresses, none: not running."""
    if not peers:
        return [ok("peers", "there is no other node yet")]
    looked_at = peers[:PEERS_MAX]
    try:
        found, fine = _check_all(looked_at, mtu_bytes, own_ends, port)
    except OSError as error:
        return [unknown("peers", f"cannot ping: {error.strerror}", "run as root")]
    left_out = f", {len(peers) - PEERS_MAX} were not looked at" * (len(peers) > PEERS_MAX)
    through = "and full packets pass the tunnel" if own_ends else "full tunnel packets pass"
    if fine:
        found.insert(0, ok("peers", f"{fine} of {len(peers)} nodes answer, {through}{left_out}"))
    return found


def _check_all(
    peers: Iterable[Peer], mtu_bytes: int, own_ends: Sequence[IPAddress], port: int
) -> tuple[list[Finding], int]:
    """(what is wrong, how many nodes are all right).  Raises OSError."""
    peers = list(peers)
    full = {peer: mtu_bytes + OUTER_BYTES[peer.address.version] for peer in peers}
    underlay = answered(
        (peer.address, size) for peer in peers for size in (SMALL_BYTES, full[peer])
    )
    overlay = set()
    for own in own_ends:
        ends = [p.subnet.network_address for p in peers if p.subnet.version == own.version]
        overlay |= answered(((end, s) for end in ends for s in (SMALL_BYTES, mtu_bytes)), own)
    found = []
    for peer in peers:
        end = peer.subnet.network_address
        finding = _judge(
            peer,
            full[peer],
            port,
            {size for size in (SMALL_BYTES, full[peer]) if (peer.address, size) in underlay},
            {size for size in (SMALL_BYTES, mtu_bytes) if (end, size) in overlay}
            if own_ends
            else None,
            mtu_bytes,
        )
        if finding is not None:
            found.append(finding)
    return found, len(peers) - len(found)


def _judge(
    peer: Peer, full: int, port: int, outer: set[int], inner: set[int] | None, mtu_bytes: int
) -> Finding | None:
    """`outer`, `inner`: the sizes answered on the underlay and through the tunnel."""
    check, who = f"node {peer.address}", f"the node of {peer.subnet}"
    if inner is not None and SMALL_BYTES not in inner:
        if not outer:
            says = f"{who} answers neither on the underlay nor through the tunnel"
            return failure(check, says, "is it up, and is there a way to it? ping, ip route get")
        says = f"{who} answers pings, but nothing comes back through the tunnel"
        mend = f"open UDP port {port} both ways, in firewalls here, there and between; is loden or "
        return failure(check, says, mend + "flanneld running there? loden doctor there tells more")
    if SMALL_BYTES in outer and full not in outer:
        passes = largest(peer.address, SMALL_BYTES, full)
        says = f"the way to {who} carries packets of {passes} bytes, and full ones have {full}"
        mend = f"raise the MTU on the way, or: ip route change ... mtu {passes} towards that node"
        if inner is not None and mtu_bytes not in inner:
            return failure(check, f"{says}: they are lost, large transfers hang", mend)
        return warning(check, f"{says}: they are cut into fragments, which is slow", mend)
    if inner is not None and mtu_bytes not in inner:
        says = f"small packets reach {who} through the tunnel, those of {mtu_bytes} bytes do not"
        mend = "is its MTU smaller (see loden status there), or are fragments dropped on the way?"
        return failure(check, says, mend)
    if not outer and inner is None:
        says = f"{who} does not answer pings: it is down, or a firewall drops them"
        return warning(check, says, "once loden runs here, loden doctor tries the tunnel itself")
    return None
