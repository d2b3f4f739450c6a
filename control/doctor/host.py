"""The host itself: kernel, TUN, privileges, the interface's offloads."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from control.doctor.finding import Finding, failure, ok, unknown, warning
from control.host_state import LinkError
from control.link import device_has_feature

NEEDED_KERNEL = (4, 18)
KERNEL_GIVES = (
    ((5, 0), "many datagrams in one receive (UDP_GRO)"),
    ((6, 2), "UDP superpackets from pods (USO)"),
    ((6, 17), "TCP superpackets cut by the NIC (tunnel GSO)"),
)
"""Since which version Linux has what makes loden faster."""
TUN = Path("/dev/net/tun")
CAP_NET_ADMIN, CAP_NET_RAW = 12, 13


def check_host(interface: str | None, offloads: dict[str, str] | None) -> list[Finding]:
    """`interface`: of the underlay; `offloads`: as a running forwarder tells them."""
    found = [check_kernel(os.uname().release), check_tun(TUN), check_privileges()]
    if interface is not None:
        found.append(check_interface(interface))
    return [*found, *check_offloads(offloads)]


def check_kernel(release: str) -> Finding:
    """`release`: as uname tells it."""
    major, minor = (int("".join(c for c in part if c.isdigit()) or 0) for part in _two(release))
    if (major, minor) < NEEDED_KERNEL:
        says = f"Linux {release} cannot send many datagrams in one message (UDP_SEGMENT)"
        return failure("kernel", says, "run Linux 4.18 or later, better 6.2 or later")
    lacks = [what for since, what in KERNEL_GIVES if (major, minor) < since]
    says = f"Linux {release}" + (
        f", without {', '.join(lacks)}: slower than it could be" * bool(lacks)
    )
    return ok("kernel", says)


def _two(release: str) -> list[str]:
    return [*release.split("."), "0"][:2]


def check_tun(path: Path) -> Finding:
    """Whether TUN devices can be made here."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        mend = {
            errno.ENOENT: "modprobe tun; in a container: add --device /dev/net/tun",
            errno.ENODEV: "modprobe tun; the kernel may lack CONFIG_TUN",
            errno.ENXIO: "modprobe tun; the kernel may lack CONFIG_TUN",
            errno.EACCES: "run as root",
            errno.EPERM: "let this container have the device: --device /dev/net/tun",
        }.get(error.errno or 0, "look at the device's type and mode: crw-rw-rw- 10, 200")
        says = f"{path}: {error.strerror}: the overlay device cannot be made"
        return failure("tun", says, mend)
    return ok("tun", f"{path} can be opened: the module is there")


def check_privileges() -> Finding:
    """Those of this process, as whoever would start loden from here."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    held = int(line.split()[1], 16)
    if not held >> CAP_NET_ADMIN & 1:
        says = "CAP_NET_ADMIN is missing: devices and routes cannot be set up"
        return failure(
            "privileges", says, "run as root, or in a container with --cap-add NET_ADMIN"
        )
    if not held >> CAP_NET_RAW & 1:
        says = "CAP_NET_RAW is missing: the ways to the other nodes cannot be probed"
        return warning("privileges", says, "run as root, or with --cap-add NET_RAW")
    return ok("privileges", "devices and routes can be set up")


def check_interface(interface: str) -> Finding:
    """What the underlay's interface does for the host, where it matters most."""
    try:
        receives, cuts = (
            device_has_feature(interface, name) for name in ("rx-gro", "tx-udp_tnl-segmentation")
        )
    except LinkError as error:
        return unknown("interface", str(error))
    gathers = "gathers" if receives else "does not gather (GRO is off, which costs speed)"
    tunnels = "can" if cuts else "cannot"
    return ok(
        "interface", f"{interface} {gathers} what it receives, and {tunnels} cut tunnel packets"
    )


def check_offloads(offloads: dict[str, str] | None) -> Iterator[Finding]:
    """What a running forwarder could not use; what was switched off is no finding."""
    if offloads is None:
        return
    off = [f"{name} {state}" for name, state in offloads.items() if state != "on"]
    says = "all in use" if not off else f"all in use but: {', '.join(off)}"
    yield ok("offloads", says)
