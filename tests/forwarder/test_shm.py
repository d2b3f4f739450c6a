"""Shared memory: sealed, and read-only for those who only read."""

import mmap
import os

import pytest

from forwarder import shm


def test_region_cannot_be_resized() -> None:
    fd = shm.create("under-test", 8192)
    try:
        for size in (4096, 16384):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
    finally:
        os.close(fd)


def test_what_one_writes_the_other_reads() -> None:
    fd = shm.create("under-test", 4096)
    with shm.map_writable(fd) as writer, shm.map_readonly(fd) as reader:
        os.close(fd)
        writer[10:14] = b"here"
        assert reader[10:14] == b"here"
        with pytest.raises(TypeError):
            reader[0] = 1


def test_readonly_descriptor_makes_no_writable_map() -> None:
    fd = shm.create("under-test", 4096)
    readonly = shm.reopen_readonly(fd)
    try:
        shm.map_readonly(readonly).close()
        with pytest.raises(PermissionError):
            mmap.mmap(readonly, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fd)
        os.close(readonly)


def test_barrier_works_on_this_kernel() -> None:
    shm.register_reader()
    shm.order_writes()
    assert os.uname().machine in shm.MEMBARRIER_SYSCALL
