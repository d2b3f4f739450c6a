"""The data path: TUN queues, UDP sockets, shared memory and the workers that move packets."""

import os

# Before NumPy is loaded: its linear algebra, which nothing here uses, would start a thread per
# CPU, and the workers are forked from a process that must have one thread only.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
