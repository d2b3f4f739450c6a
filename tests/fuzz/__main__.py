"""`python -m tests.fuzz --seconds 60 --seed 1`; a failure tells how to repeat it."""

import argparse
import os
import sys
import time

# Before Numba is imported: an index out of bounds becomes an IndexError.
os.environ.setdefault("NUMBA_BOUNDSCHECK", "1")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="[chosen, and printed]")
    parser.add_argument("--round", type=int, default=None, help="run this one alone")
    chosen = parser.parse_args()
    seed = int.from_bytes(os.urandom(4), "big") if chosen.seed is None else chosen.seed

    from tests.fuzz.rounds import Fuzzer

    fuzzer = Fuzzer(seed)
    fuzzer.run_round(0)  # compiles, or loads what was compiled
    number = chosen.round or 0
    started = time.monotonic()
    while time.monotonic() - started < chosen.seconds:
        try:
            fuzzer.run_round(number)
        except BaseException:
            again = f"python -m tests.fuzz --seed {seed} --round {number}"
            print(f"FAILED; again: {again}", file=sys.stderr)
            raise
        if chosen.round is not None:
            break
        number += 1
    took = time.monotonic() - started
    print(
        f"seed {seed}: {number} rounds, {fuzzer.inputs:,} packets in {took:.1f} s, "
        f"{fuzzer.accepted:,} of them accepted, {fuzzer.compared:,} compared with the oracles"
    )


if __name__ == "__main__":
    main()
