"""Results are kept where they are told to be, and never written over others."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from perf.running import measure_and_report


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(click.ClickException, match="has results already; name another folder"):
        measure_and_report([], {}, quick=True, repeat=1, output=tmp_path)
