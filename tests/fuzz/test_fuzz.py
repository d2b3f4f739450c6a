"""A short run of the fuzzer; `make fuzz` makes longer ones."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEED = 20260101


def test_short_fuzz_finds_nothing() -> None:
    argv = [sys.executable, "-m", "tests.fuzz", "--seconds", "5", "--seed", str(SEED)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    numbers = re.findall(r"[\d,]+(?= (?:packets|of them|compared))", done.stdout)
    tried, accepted, compared = (int(number.replace(",", "")) for number in numbers)
    assert tried > 10_000
    assert tried // 4 < accepted < tried  # neither all damaged nor all whole
    assert compared > 100
