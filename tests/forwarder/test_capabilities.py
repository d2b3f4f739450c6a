"""Giving capabilities up: what is kept, what is lost, and that nothing brings it back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from forwarder.capabilities import Capability, to_read

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="nobody else has any to give up")

KEEP_ONE = """
import subprocess
from forwarder import capabilities
from forwarder.capabilities import Capability
capabilities.keep_only({Capability.NET_ADMIN})
assert capabilities.has(Capability.NET_ADMIN)
assert not capabilities.has(Capability.KILL)
"""


def sets_after(code: str) -> dict[str, int]:
    """The capability sets that a process, having run `code`, gives to a program it executes."""
    code += "import os; os.execv('/bin/cat', ['cat', '/proc/self/status'])"
    status = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert status.returncode == 0, status.stderr
    lines = (line.split(":") for line in status.stdout.splitlines())
    return {name: int(value, 16) for name, value in lines if name.startswith("Cap")}


@needs_root
def test_executed_program_has_no_more_than_was_kept() -> None:
    one = 1 << Capability.NET_ADMIN
    sets = sets_after(KEEP_ONE)
    assert (sets["CapPrm"], sets["CapEff"], sets["CapBnd"]) == (one, one, one)


@needs_root
def test_nothing_comes_back_where_the_bounding_set_cannot_be_shrunk() -> None:
    """As in a service whose manager lets it have no CAP_SETPCAP."""
    without = "import ctypes; assert ctypes.CDLL(None).prctl(24, 8, 0, 0, 0) == 0\n"
    drop_setpcap = without + (
        "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', '''{code}'''])"
        ".returncode)"
    )
    code = f"{KEEP_ONE}\nprint(open('/proc/self/status').read())"
    inner = code + "\nprint(subprocess.run(['cat', '/proc/self/status']).returncode)"
    done = subprocess.run(
        [sys.executable, "-c", drop_setpcap.format(code=inner)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    permitted = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("CapPrm")]
    assert [int(text, 16) for text in permitted] == [1 << Capability.NET_ADMIN] * 2


@needs_root
def test_other_users_key_is_a_reason_to_read_all_files(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("secret")
    key.chmod(0o600)
    expected_of_ours = to_read()  # not empty, where the tests run in somebody's home
    assert to_read(key, None) == expected_of_ours
    os.chown(key, 65534, 65534)
    assert to_read(key) == {Capability.DAC_READ_SEARCH}
    key.chmod(0o644)
    assert to_read(key) == expected_of_ours


@needs_root
def test_program_in_a_closed_folder_can_be_read(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o750)
    os.chown(home, 65534, 65534)
    assert to_read(home / "key.pem") == {Capability.DAC_READ_SEARCH}
