"""What systemd is told about this service: sd_notify(3), without libsystemd.

    NOTIFY_SOCKET    where to; not set: nobody asked, and nothing is sent
    WATCHDOG_USEC    how often, at least, a sign of life is due
    WATCHDOG_PID     of whom it is expected; not set: of whoever reads this

A datagram of assignments, one on a line: READY=1, STATUS=..., WATCHDOG=1, STOPPING=1.

The service's main process is `loden run`; control knows when packets can flow and sends READY and
the signs of life (NotifyAccess=all), run sends STOPPING.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 1.0
"""systemd reads at once, unless it is stuck itself; nobody's packets shall wait for that."""


MAIN_PROCESS_ONLY = "WATCHDOG_PID"
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", MAIN_PROCESS_ONLY)


def environment_of_speaker(environ: Mapping[str, str]) -> dict[str, str]:
    """For a child that speaks for the service: the signs of life are expected of it."""
    return {name: value for name, value in environ.items() if name != MAIN_PROCESS_ONLY}


def environment_of_others(environ: Mapping[str, str]) -> dict[str, str]:
    """For a child that must not: etcd would say READY when etcd is."""
    return {name: value for name, value in environ.items() if name not in VARIABLES}


class Notifier:
    """Tells the service's state. Nothing here raises: without systemd all goes on the same."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _socket_address(environ.get("NOTIFY_SOCKET", ""))
        self._failure: str | None = None
        self._told: tuple[str, ...] = ()
        self.watchdog_timeout_s = _watchdog_timeout_s(environ)
        """systemd restarts the service after this long without `watchdog`; None: never."""

    @property
    def is_enabled(self) -> bool:
        """Whether anybody listens."""
        return self._address is not None

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often to call `watchdog`: half its time, as sd_watchdog_enabled(3) advises."""
        return self.watchdog_timeout_s / 2 if self.watchdog_timeout_s else None

    def ready(self, status: str | None = None) -> None:
        """Packets can flow: units ordered after this one may start."""
        self._send_once("READY=1", *_status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send_once(*_status(text))

    def stopping(self, status: str | None = None) -> None:
        self._send("STOPPING=1", *_status(status))

    def watchdog(self) -> None:
        """A sign of life; nothing if none is expected of this process."""
        if self.watchdog_timeout_s:
            self._send("WATCHDOG=1")

    def _send_once(self, *assignments: str) -> None:
        """Not again what was the last word already: these are called whenever they may be true."""
        if assignments != self._told:
            self._send(*assignments)
        self._told = assignments

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        message = "\n".join(assignments).encode(errors="replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                notify.settimeout(SEND_TIMEOUT_S)
                notify.sendto(message, self._address)
            self._failure = None
        except OSError as error:
            if str(error) != self._failure:  # once, not with each sign of life
                log.warning("systemd cannot be told %s: %s", assignments[0], error)
            self._failure = str(error)


def _status(text: str | None) -> list[str]:
    return [] if text is None else ["STATUS=" + " ".join(text.split())]


def _socket_address(name: str) -> str | None:
    if name.startswith("@"):
        return "\0" + name[1:]  # an abstract address, unix(7)
    if name.startswith("/"):
        return name
    if name:
        log.warning(
            "NOTIFY_SOCKET is %r, allowed: a path from / or @ for an abstract one; "
            "systemd is not told",
            name,
        )
    return None


def _watchdog_timeout_s(environ: Mapping[str, str]) -> float | None:
    timeout_us = environ.get("WATCHDOG_USEC", "")
    if not timeout_us or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not timeout_us.isdecimal() or int(timeout_us) == 0:
        log.warning("WATCHDOG_USEC is %r, allowed: microseconds above 0; ignored", timeout_us)
        return None
    return int(timeout_us) / 1e6
