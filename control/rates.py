"""From counters to rates: two looks at what only grows."""

from __future__ import annotations

from collections.abc import Mapping


def per_second(
    before: Mapping[str, int], after: Mapping[str, int], interval_s: float
) -> dict[str, float]:
    """How fast each counter of `after` grew.  One that is smaller than before began anew at 0."""
    return {
        name: (count - before.get(name, 0) if count >= before.get(name, 0) else count) / interval_s
        for name, count in after.items()
    }


def in_bits(bytes_per_s: float) -> str:
    """As network people say it: "1.25 Gbit/s"."""
    return f"{scaled(8 * bytes_per_s)}bit/s"


def scaled(value: float) -> str:
    """Three digits and a decimal prefix with its space before it: "1.25 G", "98.0 k", "7 "."""
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor * 0.9995:
            digits = 2 if value < 9.995 * factor else 1 if value < 99.95 * factor else 0
            return f"{value / factor:.{digits}f} {prefix}"
    return f"{value:.0f} "


def in_time(seconds: float) -> str:
    """A duration to the precision that people want: "7 s", "12 min", "3.5 h", "12 days"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def counted(count: int, noun: str) -> str:
    """Such as "1 packet" and "12,000 packets"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
