"""Measurements between two ends of a topology: ping, and TCP and UDP by iperf3.

A measurement that could not be made raises MeasurementError with the tool's own words: nothing
here ever returns a 0 that means "failed".
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import IO, Any

from perf.namespace import CommandError, end_process
from perf.place import End, Place

IPAddress = IPv4Address | IPv6Address

IPERF3_PORT = 5201
_ICMP_ECHO_HEADERS_BYTES = {4: 20 + 8, 6: 40 + 8}
_SERVER_START_S = 5.0
_CLIENT_SPARE_S = 15.0  # on top of the time measured: to connect, and to exchange results
_SERVER_SAYS = b"Server listening on"


class MeasurementError(RuntimeError):
    """Nothing was measured; the message is the tool's."""


@dataclass(frozen=True)
class RoundTrip:
    """Times in milliseconds."""

    min_ms: float
    mean_ms: float
    max_ms: float
    deviation_ms: float


@dataclass(frozen=True)
class PingResult:
    sent: int
    received: int
    errors: int
    """ICMP errors that came instead of a reply, and packets the sender's own kernel refused."""
    round_trip: RoundTrip | None
    """None if nothing came back."""

    @property
    def loss(self) -> float:
        """Between 0 and 1."""
        return 1 - self.received / self.sent


@dataclass(frozen=True)
class TcpResult:
    gbit_per_s: float
    """Payload the receiver got, all streams together."""
    seconds: float
    streams: int
    retransmits: int
    iperf3_cpu_s: dict[str, float]
    """What its processes used: "client user", "client system", "server user"..."""

    @property
    def gigabytes(self) -> float:
        """10^9 bytes of payload, altogether."""
        return self.gbit_per_s * self.seconds / 8


@dataclass(frozen=True)
class UdpResult:
    payload_bytes: int
    seconds: float
    sent: int
    received: int

    @property
    def loss(self) -> float:
        """Between 0 and 1."""
        return 1 - self.received / self.sent

    @property
    def received_kpps(self) -> float:
        """Thousands of packets per second that arrived."""
        return self.received / self.seconds / 1000


def ping(
    source: Place,
    address: IPAddress,
    *,
    count: int = 3,
    interval_s: float = 0.05,
    packet_bytes: int = 84,
    dont_fragment: bool = False,
    timeout_s: float = 1.0,
) -> PingResult:
    """`packet_bytes`: of the whole IP packet. `timeout_s`: how long to wait for the last reply.

    No reply is a result; raises MeasurementError if ping cannot even send.
    """
    payload_bytes = packet_bytes - _ICMP_ECHO_HEADERS_BYTES[address.version]
    argv = ["ping", "-n", "-c", str(count), "-i", str(interval_s)]
    argv += ["-s", str(payload_bytes), "-W", str(timeout_s)]
    argv += ["-M", "do" if dont_fragment else "dont", str(address)]
    allowed_s = count * interval_s + timeout_s + _CLIENT_SPARE_S
    try:
        done = source.run(argv, timeout_s=allowed_s, check=False)
    except CommandError as error:
        raise MeasurementError(str(error)) from error
    counts = re.search(
        r"(\d+) packets transmitted, (\d+) received(?:, .*?\+(\d+) errors)?", done.stdout
    )
    if not counts:
        raise MeasurementError(f"ping {address}: {(done.stderr or done.stdout).strip()}")
    times = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)/([\d.]+) ms", done.stdout)
    sent, received, errors = (int(group or 0) for group in counts.groups())
    return PingResult(
        sent, received, errors, RoundTrip(*map(float, times.groups())) if times else None
    )


def measure_tcp(
    client: Place,
    server: End,
    *,
    address: IPAddress | None = None,
    seconds: int = 1,
    streams: int = 1,
    reverse: bool = False,
    mbit_per_s: float = 0,
) -> TcpResult:
    """Client to server, or with `reverse` server to client. `address`: the server's, by default
    its first. `mbit_per_s`: of each stream; 0: as much as goes. Raises MeasurementError."""
    options = ["-P", str(streams), *(["-R"] if reverse else [])]
    options += ["-b", f"{mbit_per_s}M"] if mbit_per_s else []
    end = _iperf3(client, server, address or server.address, seconds, options)
    received = end["sum_received"]
    if received["bytes"] == 0:
        raise MeasurementError(f"iperf3 {address or server.address}: no data arrived")
    return TcpResult(
        gbit_per_s=received["bits_per_second"] / 1e9,
        seconds=received["seconds"],
        streams=streams,
        retransmits=end["sum_sent"].get("retransmits", 0),
        iperf3_cpu_s=_cpu_seconds(end, received["seconds"]),
    )


def _cpu_seconds(end: Any, seconds: float) -> dict[str, float]:
    """From its per cent of the time."""
    per_cent = end["cpu_utilization_percent"]
    return {
        f"{name} {kind}": per_cent[f"{place}_{kind}"] / 100 * seconds
        for name, place in (("client", "host"), ("server", "remote"))
        for kind in ("user", "system")
    }


def measure_udp(
    client: Place,
    server: End,
    *,
    address: IPAddress | None = None,
    seconds: int = 1,
    payload_bytes: int = 64,
    mbit_per_s: float = 0,
) -> UdpResult:
    """Client to server. `mbit_per_s`: payload to send; 0: as much as the client can, which is
    one system call a packet, so that it is mostly iperf3 that is measured.
    Raises MeasurementError."""
    options = ["-u", "-l", str(payload_bytes), "-b", f"{mbit_per_s}M" if mbit_per_s else "0"]
    end = _iperf3(client, server, address or server.address, seconds, options)
    received = end["sum_received"]
    if received["bytes"] == 0:
        raise MeasurementError(f"iperf3 -u {address or server.address}: no packet arrived")
    return UdpResult(
        payload_bytes=payload_bytes,
        seconds=received["seconds"],
        sent=end["sum_sent"]["packets"],
        # Its packet count goes by the highest sequence number seen; the bytes are what came.
        received=received["bytes"] // payload_bytes,
    )


def _iperf3(
    client: Place, server: Place, address: IPAddress, seconds: int, options: list[str]
) -> Any:
    """One test; returns the "end" object of the client's JSON report."""
    argv = ["iperf3", "-J", "-c", str(address), "-p", str(IPERF3_PORT), "-t", str(seconds)]
    argv += ["--connect-timeout", "3000", *options]
    try:
        with _iperf3_server(server, seconds + _CLIENT_SPARE_S):
            done = client.run(argv, timeout_s=seconds + _CLIENT_SPARE_S, check=False)
    except CommandError as error:
        raise MeasurementError(str(error)) from error
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = {"error": (done.stderr or done.stdout).strip() or "no output"}
    if "error" in report:  # with -J the exit status is 0 even then
        raise MeasurementError(f"iperf3 {address}: {report['error']}")
    if not {"sum_sent", "sum_received"} <= report["end"].keys():
        raise MeasurementError(f"iperf3 {address}: no totals in its report: {report['end']}")
    return report["end"]


@contextlib.contextmanager
def _iperf3_server(place: Place, seconds_max: float) -> Iterator[None]:
    """Serves one client. It has ended when this is left, so that the port is free again; on
    another machine, which a signal does not reach, after `seconds_max` at the latest."""
    with tempfile.TemporaryFile() as output:
        argv = ["timeout", str(seconds_max), "iperf3", "-s", "-1", "-p", str(IPERF3_PORT)]
        argv += ["--forceflush"]
        server = place.popen(argv, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + _SERVER_START_S
            while _SERVER_SAYS not in (said := _read_all(output)):
                if server.poll() is not None or time.monotonic() > deadline:
                    reason = said.decode(errors="replace").strip()
                    raise MeasurementError(f"iperf3 server in {place.name}: {reason}")
                time.sleep(0.002)
            yield
        finally:
            end_process(server.pid, grace_s=1.0)
            server.wait()


def _read_all(output: IO[bytes]) -> bytes:
    """What a process has written to a file of ours."""
    return os.pread(output.fileno(), 1 << 16, 0)
