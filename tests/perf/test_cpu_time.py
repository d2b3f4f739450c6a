"""CPU time is what processes used, under the names of their programs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from perf.cpu_time import (
    CpuTime,
    cpu_time_by_program,
    kernel_threads,
    machine_cpu_time,
    program_of,
)


@pytest.fixture
def spinner() -> Iterator[subprocess.Popen[bytes]]:
    """Uses a CPU, in user mode, under the name "spinner"."""
    argv = [sys.executable, "-c", "open('/proc/self/comm', 'w').write('spin)ner')\nwhile True: 0"]
    process = subprocess.Popen(argv)
    yield process
    process.kill()
    process.wait()


def test_spinning_process_is_seen_in_user_mode(spinner: subprocess.Popen[bytes]) -> None:
    machine_before, deadline = machine_cpu_time(), time.monotonic() + 30
    used = CpuTime(0, 0)
    while used.total_s < 0.3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        by_program = cpu_time_by_program([spinner.pid])
        used = next(iter(by_program.values()))

    assert list(by_program) == ["spin)ner"]
    assert used.user_s > used.system_s
    assert (machine_cpu_time() - machine_before).user_s > 0.1


def test_processes_of_one_program_count_together(spinner: subprocess.Popen[bytes]) -> None:
    name = program_of(os.getpid())
    both = cpu_time_by_program([os.getpid(), os.getpid()])[name]
    assert both.total_s >= 2 * cpu_time_by_program([os.getpid()])[name].total_s - 1
    assert both.total_s > 0


def test_python_that_runs_a_module_goes_by_its_name() -> None:
    code = "import signal; print(flush=True); signal.pause()"
    with subprocess.Popen(
        [sys.executable, "-m", "timeit", "-n", "1", "-r", "1", code], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        assert program_of(process.pid) == "timeit"
        process.kill()


def test_kernel_threads_are_found_by_name_or_hidden() -> None:
    pids = kernel_threads("ksoftirqd")
    assert len(pids) in (0, os.cpu_count())
    assert kernel_threads("no such thread") == []


def test_times_add_up() -> None:
    assert CpuTime(1, 2) + CpuTime(3, 4) == CpuTime(4, 6)
    assert CpuTime(3, 4) - CpuTime(1, 1) == CpuTime(2, 3)
    assert CpuTime(1, 2).total_s == 3
