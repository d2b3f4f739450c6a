"""Logs: one line an event, on standard error, as a terminal or the journal wants it.

2026-03-01 12:00:00,123 WARNING control.watch: etcd is silent      a terminal, a file
<4>control.watch: etcd is silent                                   journald, which has the time
"""

import logging
import os
from types import TracebackType

LEVELS = ("debug", "info", "warning", "error")

# sd-daemon(3): a line may begin with its syslog priority.
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)


class LineFormatter(logging.Formatter):
    """Whatever is logged stays in one line: a traceback's lines are joined by bars."""

    def __init__(self, to_journal: bool) -> None:
        super().__init__(
            "%(name)s: %(message)s"
            if to_journal
            else "%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        self._to_journal = to_journal

    def format(self, record: logging.LogRecord) -> str:
        line = " | ".join(super().format(record).splitlines())
        return (_prefix(record.levelno) if self._to_journal else "") + line


def start(level: str) -> None:
    """Logs from this level on (one of LEVELS) to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(is_journal()))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def is_journal() -> bool:
    """Whether standard error leads to the journal: systemd.exec(5), JOURNAL_STREAM."""
    stream = os.environ.get("JOURNAL_STREAM")
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"


def last_word(message: str) -> str:
    """What a command says as it fails, marked as an error where the journal reads it."""
    if not is_journal():
        return message
    return _prefix(logging.ERROR) + " | ".join(message.splitlines())


def where(traceback: TracebackType | None) -> str:
    """The innermost place of a traceback, without opening any file, unlike the traceback module."""
    place = "nowhere"
    while traceback is not None:
        code = traceback.tb_frame.f_code
        place = f"{os.path.basename(code.co_filename)}:{traceback.tb_lineno} in {code.co_name}"
        traceback = traceback.tb_next
    return place


def _prefix(level: int) -> str:
    return next(f"<{priority}>" for at_least, priority in _PRIORITIES if level >= at_least)
