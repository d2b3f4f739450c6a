"""What the README says of speed is what the command makes of the run that is kept beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from perf import headline, plots, record, record_commands
from perf.__main__ import command
from perf.catalogue import MEASURES
from perf.headline import BEGIN, END, HEADLINE, PLOT_PATH, RESULTS_PATH, NoHeadline
from perf.record import Run
from tests.perf.runs import measured, run_of, skipped, speed

ROOT = Path(__file__).parents[2]
NAMES = list(dict.fromkeys(name for name, _, _ in HEADLINE))


def texts_of(svg: str) -> set[str]:
    """Titles, names and figures; the rest depends on the version of matplotlib."""
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", svg))


def test_readme_is_what_the_command_makes_of_the_kept_results() -> None:
    run = record.read(ROOT / RESULTS_PATH)
    readme = (ROOT / "README.md").read_text()

    assert readme == headline.replaced(readme, headline.section(run))
    assert texts_of((ROOT / PLOT_PATH).read_text()) == texts_of(headline.drawn(run))


def test_headline_is_of_measures_there_are() -> None:
    contenders = {measure.name: measure.contenders for measure in MEASURES}
    for name, ours, _ in HEADLINE:
        assert {ours, headline.YARDSTICK, *headline.OTHERS} <= set(contenders[name])


def full_run() -> Run:
    outcomes = [
        outcome
        for number, name in enumerate(NAMES, 1)
        for contender in ("loden", "loden-gso", "loden-busy", "kernel")
        for outcome in measured(contender, number, 2 * number, 3 * number, measure=name)
    ]
    outcomes += skipped("nebula", "not installed", measure=NAMES[0])
    return run_of(outcomes, *(speed(name=name) for name in NAMES))


def cells_of(section: str, label: str) -> list[str]:
    (line,) = (line for line in section.splitlines() if line.startswith(f"| {label}, m/s"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_row_has_figures_ratio_and_what_is_missing() -> None:
    section = headline.section(full_run())

    label = HEADLINE[0][2]
    assert cells_of(section, label) == [
        f"{label}, m/s",
        "2",
        "2",
        "**1.00** (1.00–1.00)",
        "–",
        "skipped",
    ]
    assert "2026-01-02 at commit 0123456789ab" in section
    assert "2 CPUs (A CPU) with Linux 6.18" in section.replace("\n", " ")


def test_all_lines_are_short_but_for_the_table() -> None:
    lines = headline.section(full_run()).splitlines()
    assert max(len(line) for line in lines if not line.startswith("|")) <= 100


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command writes to: a folder with a README."""
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    monkeypatch.setattr(record_commands, "PACKAGES_DIR", tmp_path)
    return tmp_path


def test_command_writes_table_plot_and_results(checkout: Path) -> None:
    record.write(full_run(), checkout / "results.json")
    result = CliRunner().invoke(command, ["readme", str(checkout / "results.json")])

    assert result.exit_code == 0, result.output
    readme = (checkout / "README.md").read_text()
    assert readme.startswith(f"before\n{BEGIN}\n| ")
    assert readme.endswith(f"{END}\nafter\n")
    assert "old" not in readme
    assert "<svg" in (checkout / PLOT_PATH).read_text()
    assert record.to_json(record.read(checkout / RESULTS_PATH)) == record.to_json(full_run())


def test_nothing_is_written_where_something_is_missing(checkout: Path) -> None:
    few = run_of(measured("loden", 1, measure=NAMES[0]), speed(name=NAMES[0]))
    with pytest.raises(NoHeadline, match=f"lack measures of the headline: {NAMES[1]}, "):
        headline.write(few, checkout)

    (checkout / "README.md").write_text("no marks\n")
    with pytest.raises(NoHeadline, match=r"README\.md lacks the marks"):
        headline.write(full_run(), checkout)
    assert not (checkout / "docs").exists()


def test_without_matplotlib_it_says_so_first(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.write(full_run(), checkout / "results.json")
    monkeypatch.setattr(plots, "why_none", lambda: "matplotlib is not installed")
    result = CliRunner().invoke(command, ["readme", str(checkout / "results.json")])
    assert (result.exit_code, result.output) == (1, "Error: matplotlib is not installed\n")
