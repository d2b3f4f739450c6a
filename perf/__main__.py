"""`python -m perf`: the benchmarks of loden, beside the kernel's vxlan and no overlay at all."""

from __future__ import annotations

import datetime
import os
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from perf import bench, plots, progress, record_commands
from perf.catalogue import CONTENDERS, CURVES, MEASURES, SCENES
from perf.demo import stop_in_order_on_signals, why_not_here
from perf.machine import describe_machine
from perf.measure import QUICK, Effort, Scene
from perf.micro import scene as micro
from perf.record import Run
from perf.record_commands import RESULTS_FILE, write_all
from perf.report import aim, to_markdown
from perf.results import Results

REPEAT, QUICK_REPEAT = 5, 1
FOLDER = Path("perf-results")


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


@click.group("perf", invoke_without_command=True)
@click.option("--quick", is_flag=True, help="Under two minutes: what matters most, in one round.")
@click.option(
    "--only",
    metavar="MEASURE",
    multiple=True,
    type=click.Choice([*(curve.name for curve in CURVES), *(m.name for m in MEASURES)]),
    help="Take this measure, or those of this curve; repeatable.  [all]",
)
@click.option(
    "--peers",
    metavar="CONTENDER",
    multiple=True,
    type=click.Choice(list(CONTENDERS)),
    help="Measure this contender; repeatable.  [all]",
)
@repeat_option
@output_option
@click.option("--list", "list_only", is_flag=True, help="List measures and contenders, and end.")
@click.pass_context
def command(
    context: click.Context,
    quick: bool,
    only: tuple[str, ...],
    peers: tuple[str, ...],
    repeat: int | None,
    output: Path | None,
    list_only: bool,
) -> None:
    """Measure loden, the kernel's vxlan and the bare underlay on the same topologies.

    Builds network namespaces of its own, takes every measure in interleaved rounds, and prints a
    report in Markdown; the same as a page with plots, and every reading as JSON, go into a folder.
    The exit status is 1 if a measurement failed.  Needs root.
    """
    if context.invoked_subcommand is not None:
        return
    scenes = chosen(SCENES, only, peers, quick)
    if list_only:
        list_all(scenes)
        return
    if not scenes:
        raise click.ClickException("none of these contenders is measured so: see --list")
    if reason := why_not_here():
        raise click.ClickException(reason)
    if shutil.which("ethtool") is None:
        raise click.ClickException("ethtool is missing, install Debian's package: ethtool")
    measure(scenes, quick, repeat, output)


@command.command("micro")
@click.option("--quick", is_flag=True, help="In seconds: one round, loden and NumPy only.")
@repeat_option
@output_option
def micro_command(quick: bool, repeat: int | None, output: Path | None) -> None:
    """Measure the data path's kernels alone, beside NumPy, py-radix, dpkt and scapy.

    One core, no network, no root.  What a contender comes to is compared before it is timed.
    """
    measure(chosen([micro.KERNELS], (), (), quick), quick, repeat, output)


for subcommand in record_commands.COMMANDS:
    command.add_command(subcommand)


def chosen(
    scenes: Iterable[Scene[Any]], only: tuple[str, ...], peers: tuple[str, ...], quick: bool
) -> list[Scene[Any]]:
    """What is asked for, without scenes in which nothing is left to measure.

    `quick` leaves out much; nothing of what `only` names.
    """
    if quick and not only:
        scenes = [scene.quickened(peers) for scene in scenes]
    narrowed = [scene.narrowed(only, peers) for scene in scenes]
    return [scene for scene in narrowed if bench.contenders_of(scene)]


def list_all(scenes: list[Scene[Any]]) -> None:
    """Names for --only and --peers, and what is aimed at."""
    for scene in scenes:
        click.echo(f"{scene.title}:")
        for measure in scene.measures:
            names = [name for name in measure.contenders if name in scene.sites]
            click.echo(f"  {measure.name:20}{measure.title}, {measure.unit}: {', '.join(names)}")
            for target in measure.targets:
                click.echo(f"  {'':20}  target: {target.contender} {aim(measure, target)}")
    click.echo("curves:")
    for curve in CURVES:
        click.echo(f"  {curve.name:20}{curve.title}")
    click.echo("contenders:")
    for name, what in CONTENDERS.items():
        click.echo(f"  {name:20}{what}")


def measure(scenes: list[Scene[Any]], quick: bool, repeat: int | None, output: Path | None) -> None:
    """Runs the benchmark, prints and writes the report, and exits."""
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
    run = Run(about, scenes, Results(record.outcomes), CONTENDERS)
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


if __name__ == "__main__":
    command(prog_name="python -m perf")
