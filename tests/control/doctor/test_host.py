"""Kernel, TUN, offloads and clock: what is said of each."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from control.doctor import clock
from control.doctor.finding import Level
from control.doctor.host import check_kernel, check_offloads, check_tun


@pytest.mark.parametrize(
    ("release", "level", "said"),
    [
        ("6.18.1-amd64", Level.OK, "Linux 6.18.1-amd64"),
        ("5.10.0-rc1+", Level.OK, "without UDP superpackets from pods (USO), TCP superpackets"),
        ("4.18", Level.OK, "(UDP_GRO)"),
        ("4.9.337", Level.FAILURE, "UDP_SEGMENT"),
    ],
)
def test_kernel_is_judged_by_what_it_can(release: str, level: Level, said: str) -> None:
    finding = check_kernel(release)
    assert (finding.level, said in finding.says) == (level, True)


def test_missing_tun_is_a_failure_that_names_the_module(tmp_path: Path) -> None:
    finding = check_tun(tmp_path / "tun")
    assert (finding.level, "modprobe tun" in finding.mend) == (Level.FAILURE, True)
    (tmp_path / "tun").touch()
    assert check_tun(tmp_path / "tun").level is Level.OK


def test_offloads_not_in_use_are_told_with_their_reason() -> None:
    (finding,) = check_offloads({"udp_gso": "on", "tun_uso": "refused by this kernel"})
    assert finding.says == "all in use but: tun_uso refused by this kernel"
    assert list(check_offloads(None)) == []


def test_clock_that_differs_from_etcds_is_a_warning() -> None:
    found = clock.check_clock(
        {"http://a:2379": 60.0, "http://b:2379": -61.0, "http://c:2379": 1.0}, 0
    )
    assert [finding.level for finding in found] == [Level.WARNING] * 2
    assert "60 s behind http://a:2379" in found[0].says
    assert "61 s ahead of http://b:2379" in found[1].says


def test_clock_that_jumped_back_is_a_warning() -> None:
    (finding,) = clock.check_clock({}, time.time() + 3600)
    assert (finding.level, "jumped back" in finding.says) == (Level.WARNING, True)


def test_clock_without_a_fault_is_no_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    for kept, level in ((True, Level.OK), (False, Level.UNKNOWN)):
        monkeypatch.setattr(clock, "is_synchronised", lambda kept=kept: kept)
        (finding,) = clock.check_clock({"http://a:2379": 0.4}, time.time() - 5)
        assert (finding.level, "agrees with etcd's" in finding.says) == (level, True)
    monkeypatch.undo()
    assert clock.is_synchronised() in (True, False)
