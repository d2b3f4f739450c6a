"""`loden capture`: inner packets of this node, with their fate, as lines or as pcapng.

workers ──> rings in shared memory ──> forwarder/capture_reader.py ──> here ──> terminal, file
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import click

from control import packet_words, pcapng
from control.exits import EXIT_USAGE, fail, in_words
from control.flags import run_dir_option
from forwarder.api import ForwarderClient
from forwarder.capture_reader import (
    SNAP_BYTES_MAX,
    SNAP_BYTES_MIN,
    Capture,
    CaptureBusy,
    Captured,
    Wanted,
)
from forwarder.capture_ring import ADDRESSES_MAX, Direction
from forwarder.counters import Drop
from forwarder.rpc import RpcError

DRAIN_S = 0.05
"""How often packets are taken from the rings."""
REQUEST_TIMEOUT_S = 5.0
DROPPED = frozenset(Drop) - {Drop.NONE}
REASONS = {drop.name.lower(): frozenset({drop}) for drop in Drop if drop} | {"any": DROPPED}
FLAGS = {Direction.OUT: pcapng.FLAG_OUTBOUND, Direction.IN: pcapng.FLAG_INBOUND}


class Output(Protocol):
    """Where packets go.  Every method may raise OSError."""

    def write(self, packets: Iterable[Captured], missed: int) -> None:
        """`missed`: how many found no room so far."""

    def finish(self, captured: int, missed: int) -> None:
        """The capture is over."""


class Lines:
    """A line for each packet on standard output."""

    def write(self, packets: Iterable[Captured], missed: int) -> None:
        for packet in packets:
            print(packet_words.line(packet))
        sys.stdout.flush()

    def finish(self, captured: int, missed: int) -> None:
        """The counts go to standard error anyway."""


class PcapngFile:
    """A file or pipe in pcapng; whole after each `write`, so that it can be watched as it grows."""

    def __init__(self, file: BinaryIO, device: str, snap_bytes: int) -> None:
        self._file = file
        self._missed_before = 0
        application = f"loden {metadata.version('loden')}"
        description = "inner packets, as Ethernet frames between VTEPs"
        file.write(pcapng.section(application))
        file.write(pcapng.interface(device, description, snap_bytes))
        file.flush()

    def write(self, packets: Iterable[Captured], missed: int) -> None:
        for packet in packets:
            lost, self._missed_before = missed - self._missed_before, missed
            self._file.write(
                pcapng.packet(
                    packet.time_ns,
                    packet.frame,
                    packet.original_bytes,
                    FLAGS[packet.direction],
                    packet_words.fate(packet),
                    lost,
                )
            )
        self._file.flush()

    def finish(self, captured: int, missed: int) -> None:
        self._file.write(pcapng.statistics(time.time_ns(), captured + missed, missed))
        self._file.flush()


def parse_addresses(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[IPv4Network | IPv6Network, ...]:
    """Raises click.BadParameter."""
    if len(values) > ADDRESSES_MAX:
        given = f"{len(values)} addresses are given; allowed: up to {ADDRESSES_MAX}"
        raise click.BadParameter(given, ctx, param)
    try:
        return tuple(ip_network(value, strict=False) for value in values)
    except ValueError as error:
        raise click.BadParameter(f"{error}", ctx, param) from None


@click.command("capture")
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...", callback=parse_addresses)
@click.option("-w", "--write", "path", metavar="FILE", help="Write pcapng; '-': standard output.")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP or UDP port, on either side.")
@click.option(
    "--drop",
    "reasons",
    multiple=True,
    type=click.Choice(list(REASONS)),
    metavar="REASON",
    help="Only what is dropped for this reason, as 'loden status' names it; repeatable. "
    "'any': for whichever reason.",
)
@click.option(
    "--direction",
    type=click.Choice([direction.name.lower() for direction in Direction]),
    help="Only what leaves the pods of this node (out), or what arrives for them (in).",
)
@click.option(
    "--snap-bytes",
    type=click.IntRange(SNAP_BYTES_MIN, SNAP_BYTES_MAX),
    default=SNAP_BYTES_MAX,
    show_default=True,
    help="Keep this much of each packet.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many packets.")
@run_dir_option
def capture_command(path: str | None, count: int | None, run_dir: Path, **values: Any) -> None:
    """Show the packets of this node's pods, and what becomes of each.

    ADDRESS: an address or prefix that a packet comes from or goes to; of two, both must apply.

    Each packet is the inner one: as the pod sent it, before it is cut and encapsulated, or as it is
    delivered, after the checks and after coalescing; so TCP shows superpackets of up to 64 KiB.
    Dropped packets are shown with the reason.  In Wireshark, the comment of a packet says which
    node it is from or goes to, and why it was dropped:

      loden capture -w - | wireshark -k -i -

    Ends with Ctrl-C, and says how many packets were captured, and how many missed because they
    came faster than they could be taken.
    """
    if path == "-" and sys.stdout.isatty():
        fail(
            "capture", "-w -: standard output is a terminal; write to a file or a pipe", EXIT_USAGE
        )
    wanted = Wanted(
        addresses=values["addresses"],
        port=values["port"],
        reasons=frozenset().union(*(REASONS[name] for name in values["reasons"]))
        or frozenset(Drop),
        directions=frozenset(d for d in Direction if values["direction"] in (None, d.name.lower())),
        snap_bytes=values["snap_bytes"],
    )
    try:
        with ForwarderClient(run_dir, REQUEST_TIMEOUT_S) as forwarder:
            config = forwarder.hello()["config"]
            device = config["device"] if config else "the device to come"
            output = open_output(path, device, wanted.snap_bytes)
            fd, workers = forwarder.capture()
            with Capture(fd, workers, wanted) as capture:
                click.echo(f"capturing on {device}; Ctrl-C ends", err=True)
                ended = follow(capture, forwarder, output, count)
    except (RpcError, CaptureBusy) as error:
        fail("capture", error)
    except OSError as error:
        fail("capture", in_words(error))
    if not ended:
        fail("capture", "the forwarder has gone")


def open_output(path: str | None, device: str, snap_bytes: int) -> Output:
    """Raises OSError."""
    if path is None:
        return Lines()
    if path == "-":
        return PcapngFile(sys.stdout.buffer, device, snap_bytes)
    # What pods say to each other is for nobody else to read.
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return PcapngFile(os.fdopen(opened, "wb"), device, snap_bytes)


def follow(capture: Capture, forwarder: ForwarderClient, output: Output, count: int | None) -> bool:
    """Writes packets until told to stop; False: until the forwarder went away.

    A reader of ours that has seen enough (a closed pipe) is no failure.  Raises OSError.
    """
    stop = StopSignals()
    captured, gone = 0, False
    try:
        while not (stop.asked or gone or captured == count):
            gone = bool(select.select([forwarder], [], [], DRAIN_S)[0])
            packets = capture.drain()
            if count is not None:
                packets = packets[: count - captured]
            output.write(packets, capture.missed)
            captured += len(packets)
        capture.disarm()
        if count is None:
            rest = capture.drain()
            output.write(rest, capture.missed)
            captured += len(rest)
        output.finish(captured, capture.missed)
    except BrokenPipeError:
        # Python flushes standard output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    missed = capture.missed
    hint = "; a filter or --snap-bytes helps" if missed else ""
    click.echo(f"{captured:,} packets captured, {missed:,} missed{hint}", err=True)
    return not gone


class StopSignals:
    """The first SIGINT or SIGTERM asks for a tidy end; the second one ends without."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
