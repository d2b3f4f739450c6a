"""Lists of CPUs: how they are written, and which get a worker."""

import pytest

from forwarder.cpus import choose_cpus, parse_cpus


def test_cpus_are_read_as_taskset_writes_them() -> None:
    assert parse_cpus("0,2-4") == (0, 2, 3, 4)
    for text in ("", "a", "1-", "1,1", "3-2", "-1"):
        with pytest.raises(ValueError, match=repr(text)):
            parse_cpus(text)


def test_worker_count_chooses_the_first_usable_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {5, 1, 3})
    assert choose_cpus(None, None) == (1, 3, 5)
    assert choose_cpus(None, 2) == (1, 3)
    assert choose_cpus("5", None) == (5,)
    with pytest.raises(ValueError, match="4 is not allowed; allowed: 1 to 3"):
        choose_cpus(None, 4)
    with pytest.raises(ValueError, match="4 is not allowed; allowed: 1, 3, 5"):
        choose_cpus("1,4", None)
