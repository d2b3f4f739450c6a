"""The commands over results that were kept: `python -m perf report`."""

from __future__ import annotations

from pathlib import Path

import click

from perf import record
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


def read_run(path: Path) -> Run:
    try:
        return record.read(path)
    except NoRecord as error:
        raise click.ClickException(str(error)) from error


@click.command("report")
@click.argument("results", metavar="RESULTS.json", type=results_file)
def report(results: Path) -> None:
    """Write report.md and report.html beside a results.json, from it alone."""
    for path in write_reports(read_run(results), results.parent):
        click.echo(f"written: {path}")


COMMANDS = (report,)
