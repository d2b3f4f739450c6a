"""Log lines: one for an event, with priorities where the journal reads them and nowhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forwarder import logs

SAY = """
import logging, sys
from forwarder import logs
logs.start(sys.argv[1])
log = logging.getLogger("loden.test")
log.debug("d")
log.info("i")
log.warning("two\\nlines")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("e")
print(logs.last_word("the\\nend"), file=sys.stderr)
"""


def said(level: str, stderr: Path, to_journal: bool) -> list[str]:
    """What a process has logged from this level on; `to_journal`: standard error leads there."""
    with stderr.open("wb") as file:
        status = os.fstat(file.fileno())
        environ = {**os.environ}
        if to_journal:
            environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
        subprocess.run(
            [sys.executable, "-c", SAY, level], stderr=file, env=environ, check=True, timeout=60
        )
    return stderr.read_text().splitlines()


def test_journal_gets_priorities_and_no_times(tmp_path: Path) -> None:
    debug, info, warning, error, last = said("debug", tmp_path / "stderr", to_journal=True)
    assert (debug, info) == ("<7>loden.test: d", "<6>loden.test: i")
    assert warning == "<4>loden.test: two | lines"
    assert re.fullmatch(r"<3>loden\.test: e \| Traceback .* \| ZeroDivisionError: .*", error)
    assert last == "<3>the | end"


def test_terminal_gets_times_and_levels(tmp_path: Path) -> None:
    info, warning, _, *last = said("info", tmp_path / "stderr", to_journal=False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO loden\.test: i", info)
    assert warning.endswith(" WARNING loden.test: two | lines")
    assert last == ["the", "end"]


def test_journal_of_another_stream_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a command whose output was led elsewhere, within a service."""
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert not logs.is_journal()


def test_less_than_the_level_is_not_said(tmp_path: Path) -> None:
    lines = said("error", tmp_path / "stderr", to_journal=True)
    assert [line[:3] for line in lines] == ["<3>", "<3>"]
