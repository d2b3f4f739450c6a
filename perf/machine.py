"""On what a benchmark was run: machine, kernel, versions, commit.  `python -m perf.machine`."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from perf.nodes import PACKAGES_DIR

PACKAGES = ("loden", "numba", "llvmlite", "numpy", "dpkt", "py-radix", "scapy")
TOOLS = (("iperf3", "--version"), ("ip", "-V"), ("ethtool", "--version"))
SETTINGS = {
    "cpufreq governor": "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    "SMT": "/sys/devices/system/cpu/smt/control",
    "clocksource": "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "rmem_max": "/proc/sys/net/core/rmem_max",
    "wmem_max": "/proc/sys/net/core/wmem_max",
    "netdev_max_backlog": "/proc/sys/net/core/netdev_max_backlog",
    "congestion control": "/proc/sys/net/ipv4/tcp_congestion_control",
    "default qdisc": "/proc/sys/net/core/default_qdisc",
    "transparent hugepages": "/sys/kernel/mm/transparent_hugepage/enabled",
}
"""What else figures depend on, and where the kernel tells it."""


def describe_machine() -> dict[str, Any]:
    """Plain values, for JSON.  What cannot be found out is None."""
    return {
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: _package_version(name) for name in PACKAGES},
        "settings": {name: _content(Path(path)) for name, path in SETTINGS.items()},
        "tools": {argv[0]: _first_line(*argv) for argv in TOOLS},
        "commit": _first_line("git", "rev-parse", "HEAD"),
        "uncommitted_changes": bool(_first_line("git", "status", "--porcelain", "-uno")),
    }


def cpu_model() -> str:
    """As the kernel names it; the architecture where it does not."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _content(path: Path) -> str | None:
    """Of several choices, the one in brackets; None if there is no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    chosen = re.search(r"\[(.+?)\]", text)
    return chosen[1] if chosen else text


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _first_line(*argv: str) -> str | None:
    """What a program says; None if it is not there, or says nothing."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, cwd=PACKAGES_DIR, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next(iter(done.stdout.splitlines()), None) if done.returncode == 0 else None


if __name__ == "__main__":
    print(json.dumps(describe_machine()))
