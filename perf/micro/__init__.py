"""Microbenchmarks: the data path's kernels alone, beside what else a Python user would take."""
