"""A run from the command line: measured, shown, kept."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from perf import bench, plots, progress
from perf.demo import stop_in_order_on_signals
from perf.machine import describe_machine
from perf.measure import QUICK, Effort, Measure, Scene
from perf.record import Run
from perf.record_commands import RESULTS_FILE, write_all
from perf.report import to_markdown
from perf.results import Results

REPEAT, QUICK_REPEAT = 5, 1
FOLDER = Path("perf-results")

T = TypeVar("T", bound=Callable[..., Any])


def only_option(measures: Iterable[Measure[Any]]) -> Callable[[T], T]:
    """--only, for these measures and the curves they are on."""
    measures = list(measures)
    curves = dict.fromkeys(point.curve.name for measure in measures for point in measure.points)
    return click.option(
        "--only",
        metavar="MEASURE",
        multiple=True,
        type=click.Choice([*curves, *(measure.name for measure in measures)]),
        help="Take this measure, or those of this curve; repeatable.  [all]",
    )


quick_option = click.option(
    "--quick", is_flag=True, help="Under two minutes: what matters most, in one round."
)
repeat_option = click.option(
    "--repeat",
    type=click.IntRange(1, 1000),
    help=f"Rounds.  [{REPEAT}, with --quick {QUICK_REPEAT}]",
)
output_option = click.option(
    "--output",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Where results and report go.  [{FOLDER}/DATE-TIME]",
)


def measure_and_report(
    scenes: list[Scene[Any]],
    contenders: Mapping[str, str],
    *,
    quick: bool,
    repeat: int | None,
    output: Path | None,
) -> NoReturn:
    """Takes all measures of the scenes, prints and writes the report, and exits.

    `contenders`: what each of them is.  Raises ClickException if the results cannot be kept.
    """
    now = datetime.datetime.now().astimezone()
    folder = output or FOLDER / f"{now:%Y-%m-%d-%H%M%S}"
    if reason := why_not_into(folder):
        raise click.ClickException(reason)
    if reason := plots.why_none():
        click.echo(f"the report will be without plots: {reason}", err=True)
    stop_in_order_on_signals()
    effort, rounds = (QUICK, repeat or QUICK_REPEAT) if quick else (Effort(), repeat or REPEAT)
    about: dict[str, Any] = {
        "begun": now.isoformat(timespec="seconds"),
        "quick": quick,
        "repeat": rounds,
        "effort": asdict(effort),
        "machine": describe_machine(),
    }
    begun = time.monotonic()
    with progress.shown(bench.estimate_s(scenes, effort, rounds)) as watch:
        record = bench.run(scenes, effort, rounds, watch)
    about |= {"seconds": time.monotonic() - begun, "sites": record.facts}
    run = Run(about, scenes, Results(record.outcomes), contenders)
    click.echo(to_markdown(run), nl=False)
    for path in write_all(run, folder):
        click.echo(f"written: {path}", err=True)
    sys.exit(1 if run.results.failures() else 0)


def why_not_into(folder: Path) -> str | None:
    """Why results cannot be written there: better said before the run than after."""
    if (folder / RESULTS_FILE).exists():
        return f"--output: {folder} has results already; name another folder"
    nearest = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    if not os.access(nearest, os.W_OK):
        return f"--output: {nearest} cannot be written to"
    return None
