"""The checksum kernels once more, every index checked."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
CHECKSUMS = "tests/forwarder/wire/test_checksum.py"


def test_no_sum_reads_beyond_its_bytes() -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "-k", "alignment or carries", CHECKSUMS]
    env = {**os.environ, "NUMBA_BOUNDSCHECK": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
