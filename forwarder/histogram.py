"""Batch sizes in powers of two."""

import numpy as np

from forwarder.arrays import Int
from forwarder.counters import BUCKETS
from forwarder.jit import kernel


@kernel
def bucket_of(size: Int) -> Int:
    """The bucket of a batch of `size` packets: 1, 2, 3-4, 5-8, ..."""
    bucket = np.int64(0)
    while (np.int64(1) << bucket) < size and bucket < BUCKETS - 1:
        bucket += 1
    return bucket
