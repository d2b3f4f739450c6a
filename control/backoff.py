"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_S = 0.1
LONGEST_S = 5.0


class Backoff:
    """Full jitter: each wait is random between nothing and a ceiling that doubles up to a limit.

    Many nodes that lost etcd at one moment so come back spread out, not all at once. Reset it on
    real progress only; a connection that was made but brought nothing is none.
    """

    def __init__(
        self,
        first_s: float = FIRST_S,
        longest_s: float = LONGEST_S,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._uniform = uniform
        self._ceiling_s = first_s

    def next_s(self) -> float:
        """Seconds to wait this time; never less than half the first ceiling."""
        wait_s = self._uniform(0, self._ceiling_s)
        self._ceiling_s = min(self._ceiling_s * 2, self._longest_s)
        # A floor, because chance alone may give several waits of nothing in a row.
        return max(wait_s, self._first_s / 2)

    def reset(self) -> None:
        self._ceiling_s = self._first_s
