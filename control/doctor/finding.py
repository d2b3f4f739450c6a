"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad it is."""

    OK = "ok"
    UNKNOWN = "unknown"
    """It could not be looked at."""
    WARNING = "warning"
    """Packets flow, but not as they could, or not for ever."""
    FAILURE = "failure"
    """Packets do not flow, or some do not."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    """What was looked at."""
    level: Level
    says: str
    """What is so, and what that means."""
    mend: str = ""
    """What to do about it."""


def ok(check: str, says: str) -> Finding:
    return Finding(check, Level.OK, says)


def unknown(check: str, says: str, mend: str = "") -> Finding:
    return Finding(check, Level.UNKNOWN, says, mend)


def warning(check: str, says: str, mend: str) -> Finding:
    return Finding(check, Level.WARNING, says, mend)


def failure(check: str, says: str, mend: str) -> Finding:
    return Finding(check, Level.FAILURE, says, mend)
