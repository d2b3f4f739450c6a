"""The commands over results that were kept: `python -m perf report`, `compare`, `readme`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from perf import headline, plots, record
from perf.compare import ALARMS, THRESHOLD, compare, differences_between
from perf.compare import to_markdown as to_comparison
from perf.headline import NoHeadline
from perf.nodes import PACKAGES_DIR
from perf.page import to_html
from perf.record import NoRecord, Run
from perf.report import to_markdown

RESULTS_FILE = "results.json"
REPORT_FILE = "report.md"
PAGE_FILE = "report.html"

results_file = click.Path(path_type=Path, dir_okay=False, exists=True)


def write_all(run: Run, folder: Path) -> list[Path]:
    """Results and reports, the results first: the rest can be made of them again."""
    folder.mkdir(parents=True, exist_ok=True)
    record.write(run, folder / RESULTS_FILE)
    return [folder / RESULTS_FILE, *write_reports(run, folder)]


def write_reports(run: Run, folder: Path) -> list[Path]:
    (folder / REPORT_FILE).write_text(to_markdown(run))
    (folder / PAGE_FILE).write_text(to_html(run))
    return [folder / REPORT_FILE, folder / PAGE_FILE]


class CannotCompare(click.ClickException):
    exit_code = 2


def read_run(path: Path) -> Run:
    try:
        return record.read(path)
    except NoRecord as error:
        raise CannotCompare(str(error)) from error


@click.command("report")
@click.argument("results", metavar="RESULTS.json", type=results_file)
def report(results: Path) -> None:
    """Write report.md and report.html beside a results.json, from it alone."""
    for path in write_reports(read_run(results), results.parent):
        click.echo(f"written: {path}")


@click.command("compare")
@click.argument("old", metavar="OLD.json", type=results_file)
@click.argument("new", metavar="NEW.json", type=results_file)
@click.option(
    "--threshold",
    metavar="PERCENT",
    type=click.FloatRange(min=0),
    default=100 * THRESHOLD,
    show_default=True,
    help="Smaller changes are none.",
)
@click.option("--all", "all_rows", is_flag=True, help="Show what is unchanged, too.")
@click.option("--force", is_flag=True, help="Compare other machines and settings all the same.")
def compare_command(old: Path, new: Path, threshold: float, all_rows: bool, force: bool) -> None:
    """Say what of loden got worse from OLD.json to NEW.json beyond the noise, in Markdown.

    The exit status is 0 if nothing did, 1 if something did or could no longer be measured, and 2
    if the two cannot be compared.
    """
    before, after = read_run(old), read_run(new)
    differences = differences_between(before, after)
    if differences and not force:
        told = "\n".join(f"  {line}" for line in differences)
        raise CannotCompare(
            f"these runs are of different machines or settings (--force compares them):\n{told}"
        )
    comparison = compare(before, after, threshold / 100, differences)
    if not comparison.rows:
        raise CannotCompare("the two runs have no figure of loden in common")
    click.echo(to_comparison(comparison, all_rows), nl=False)
    sys.exit(1 if comparison.having(*ALARMS) else 0)


@click.command("readme")
@click.argument("results", metavar="RESULTS.json", type=results_file)
def readme_command(results: Path) -> None:
    """Put the headline of RESULTS.json into README.md of this checkout: table, plot, date.

    The results are kept beside the plot, in docs/.
    """
    if reason := plots.why_none():
        raise click.ClickException(reason)
    try:
        for path in headline.write(read_run(results), PACKAGES_DIR):
            click.echo(f"written: {path}")
    except NoHeadline as error:
        raise click.ClickException(str(error)) from error


COMMANDS = (report, compare_command, readme_command)
