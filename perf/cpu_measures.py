"""What packets cost: CPU time per gigabyte and per million packets, of whom, in which mode.

The figure is the time of all processes of both ends, sender and receiver included, and of the
kernel's threads for packets (ksoftirqd).  Details say how much of it was user and system time, and
who used it.  What the CPUs did `elsewhere` meanwhile is not in the figure: interrupts of an idle
CPU, and whatever else the machine was busy with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from perf.cpu_time import CpuTime, cpu_time_by_program, kernel_threads, machine_cpu_time
from perf.measure import Effort, Reading
from perf.pair import Pair
from perf.rate_search import send_and_count
from perf.traffic import MeasurementError, measure_tcp

PACKET_THREADS = "ksoftirqd"


def cpu_per_gigabyte(pair: Pair, effort: Effort) -> Reading:
    """CPU seconds per 10^9 bytes of TCP payload: one stream, as fast as it can."""
    before = _Usage.now(pair)
    result = measure_tcp(pair.near, pair.far, seconds=effort.tcp_s)
    used = _Usage.now(pair).since(before)
    ended = result.iperf3_cpu_s  # its processes are gone, and have told
    for place, end in (("near", "client"), ("far", "server")):
        used.programs[f"{place} iperf3"] = CpuTime(ended[f"{end} user"], ended[f"{end} system"])
    return used.reading(result.gigabytes)


def cpu_per_million_packets(kpps: float, payload_bytes: int) -> Callable[[Pair, Effort], Reading]:
    """CPU seconds per 10^6 packets that arrive, at that rate."""

    def take(pair: Pair, effort: Effort) -> Reading:
        agents = pair.agents()
        before = _Usage.now(pair)
        trial = send_and_count(
            *agents,
            pair.far.address,
            sizes=[payload_bytes],
            rate_pps=kpps * 1000,
            seconds=effort.tcp_s,
        )
        used = _Usage.now(pair).since(before)
        return used.reading(trial.received / 1e6, {"loss": trial.loss})

    return take


@dataclass(frozen=True)
class _Usage:
    machine: CpuTime
    programs: dict[str, CpuTime]
    """By end and program: "near loden-worker"."""

    @classmethod
    def now(cls, pair: Pair) -> _Usage:
        if not pair.hosts:
            raise MeasurementError("CPU time is only measured where both ends are on one machine")
        programs = {
            f"{place} {program}": used
            for place, host in zip(("near", "far"), pair.hosts, strict=True)
            for program, used in cpu_time_by_program(
                [pid for namespace in (host, *host.pods) for pid in namespace.pids()]
            ).items()
        }
        programs[PACKET_THREADS] = sum(
            cpu_time_by_program(kernel_threads(PACKET_THREADS)).values(), CpuTime(0, 0)
        )
        return cls(machine_cpu_time(), programs)

    def since(self, before: _Usage) -> _Usage:
        programs = {name: used - before.programs[name] for name, used in self.programs.items()}
        return _Usage(self.machine - before.machine, programs)

    def reading(self, units: float, more: dict[str, float] | None = None) -> Reading:
        """`units`: what the time was spent for."""
        used = sum(self.programs.values(), CpuTime(0, 0))
        details = {"user": used.user_s / units, "system": used.system_s / units}
        for name, part in self.programs.items():
            if part.total_s == 0:
                continue
            details[f"{name} user"] = part.user_s / units
            details[f"{name} system"] = part.system_s / units
        details["elsewhere"] = (self.machine.total_s - used.total_s) / units
        return Reading(used.total_s / units, {**details, **(more or {})})
