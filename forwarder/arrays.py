"""The array types of the data path.  All memory is NumPy's; all of it is C-contiguous."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bytes: TypeAlias = npt.NDArray[np.uint8]
Words: TypeAlias = npt.NDArray[np.uint32]
Longs: TypeAlias = npt.NDArray[np.int64]
ULongs: TypeAlias = npt.NDArray[np.uint64]

Int: TypeAlias = int | np.int64
"""Integers inside compiled code: always int64 there (Numba makes int64 with uint64 a float64)."""
