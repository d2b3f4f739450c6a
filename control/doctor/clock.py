"""The clock: certificates and saved leases are judged by it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping

from control.doctor.finding import Finding, ok, unknown, warning

SKEW_MAX_S = 5.0
"""Between this host and an etcd member; the Date of an HTTP answer has whole seconds."""
_TIMEX_BYTES = 512
"""More than sizeof(struct timex) anywhere; all zeros: adjtimex(2) only reads."""
_STATUS_AT = 40
"""Of timex.status, on 64-bit Linux: modes, padding, offset, freq, maxerror, esterror."""
_STA_UNSYNC = 0x40
_SYNCHRONISE = "start a time service, such as chrony or systemd-timesyncd"


def check_clock(skews: Mapping[str, float], saved_at: float) -> list[Finding]:
    """`skews`: of each etcd member that answered, in seconds, positive: its clock is ahead.
    `saved_at`: Unix time of the last good state on disk; 0: there is none."""
    found = []
    for endpoint, skew in skews.items():
        if abs(skew) > SKEW_MAX_S:
            which = "behind" if skew > 0 else "ahead of"
            says = f"this host is {abs(skew):.0f} s {which} {endpoint}: certificates may not hold"
            found.append(warning("clock", says, f"{_SYNCHRONISE}, here and there"))
    ahead_s = saved_at - time.time()
    if ahead_s > SKEW_MAX_S:
        says = (
            f"the last state was saved {ahead_s:.0f} s in the future: the clock has jumped back, "
            "and after a restart without etcd the saved leases count as over"
        )
        found.append(warning("clock", says, _SYNCHRONISE))
    if not found:
        agrees = ", and agrees with etcd's" if skews else ""
        if is_synchronised():
            found.append(ok("clock", f"it is kept synchronised{agrees}"))
        else:
            says = f"nothing on this host is known to keep it synchronised{agrees}"
            found.append(unknown("clock", says, f"if its host does not do so, {_SYNCHRONISE}"))
    return found


def is_synchronised() -> bool:
    """Whether something keeps the kernel's clock in step, see adjtimex(2)."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    ctypes.CDLL(None).adjtimex(timex)
    status = int.from_bytes(timex.raw[_STATUS_AT : _STATUS_AT + 4], "little")
    return not status & _STA_UNSYNC
