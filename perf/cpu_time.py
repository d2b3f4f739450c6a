"""CPU time, of the machine and of processes, as /proc tells it.

The kernel of most machines samples with each tick (4 ms) in which mode a CPU is: user and system
of a second are good to a few per cent.  A process's sum of both is exact.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuTime:
    user_s: float
    system_s: float

    @property
    def total_s(self) -> float:
        return self.user_s + self.system_s

    def __add__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user_s + other.user_s, self.system_s + other.system_s)

    def __sub__(self, before: CpuTime) -> CpuTime:
        return CpuTime(self.user_s - before.user_s, self.system_s - before.system_s)


def machine_cpu_time() -> CpuTime:
    """Of all CPUs since boot, interrupts as system (proc_stat(5); guests are in user already)."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, *_ = (int(field) / TICKS_PER_S for field in fields)
    return CpuTime(user + nice, system + irq + softirq)


def cpu_time_by_program(pids: Iterable[int]) -> dict[str, CpuTime]:
    """Of processes that live, those of the same program together."""
    user: Counter[str] = Counter()
    system: Counter[str] = Counter()
    for pid in pids:
        program = program_of(pid)
        # proc_pid_stat(5): fields 14 and 15; the second, in parentheses, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user[program] += int(fields[11])
        system[program] += int(fields[12])
    return {name: CpuTime(user[name] / TICKS_PER_S, system[name] / TICKS_PER_S) for name in user}


def program_of(pid: int) -> str:
    """Its name; of a Python that runs a module, the module's."""
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if name.startswith("python") and "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    return name


def kernel_threads(name: str) -> list[int]:
    """Those named so, one per CPU (`name/0`, ...); none where a container hides them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if path.read_text().startswith(f"{name}/"):
                found.append(int(path.parent.name))
    return found
