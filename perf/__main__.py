"""`python -m perf`: the benchmarks of loden, beside the kernel's vxlan and no overlay at all."""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from perf import bench
from perf.catalogue import CONTENDERS, MEASURES, SCENES
from perf.demo import stop_in_order_on_signals, why_not_here
from perf.machine import describe_machine
from perf.measure import QUICK, Effort, Scene
from perf.report import target_cell, to_markdown
from perf.results import Results, to_json

REPEAT, QUICK_REPEAT = 5, 1


@click.command("perf")
@click.option("--quick", is_flag=True, help="Under two minutes: short, and one round.")
@click.option(
    "--only",
    metavar="MEASURE",
    multiple=True,
    type=click.Choice([measure.name for measure in MEASURES]),
    help="Take this measure; repeatable.  [all]",
)
@click.option(
    "--peers",
    metavar="CONTENDER",
    multiple=True,
    type=click.Choice(list(CONTENDERS)),
    help="Measure this contender; repeatable.  [all]",
)
@click.option(
    "--repeat",
    type=click.IntRange(1, 1000),
    help=f"Rounds.  [{REPEAT}, with --quick {QUICK_REPEAT}]",
)
@click.option(
    "--json",
    "json_path",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write every reading there.",
)
@click.option("--list", "list_only", is_flag=True, help="List measures and contenders, and end.")
def command(
    quick: bool,
    only: tuple[str, ...],
    peers: tuple[str, ...],
    repeat: int | None,
    json_path: Path | None,
    list_only: bool,
) -> None:
    """Measure loden, the kernel's vxlan and the bare underlay on the same topologies.

    Builds network namespaces of its own, takes every measure in interleaved rounds, and prints a
    report in Markdown.  The exit status is 1 if a measurement failed.  Needs root.
    """
    scenes = [scene.narrowed(only, peers) for scene in SCENES]
    scenes = [scene for scene in scenes if bench.contenders_of(scene)]
    if list_only:
        list_all(scenes)
        return
    if not scenes:
        raise click.ClickException("none of these contenders is measured so: see --list")
    if reason := why_not_here():
        raise click.ClickException(reason)
    if shutil.which("ethtool") is None:
        raise click.ClickException("ethtool is missing, install Debian's package: ethtool")
    stop_in_order_on_signals()
    effort, rounds = (QUICK, repeat or QUICK_REPEAT) if quick else (Effort(), repeat or REPEAT)
    about: dict[str, Any] = {
        "begun": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "quick": quick,
        "repeat": rounds,
        "machine": describe_machine(),
    }
    begun = time.monotonic()
    record = run_and_show(scenes, effort, rounds)
    about |= {"seconds": time.monotonic() - begun, "sites": record.facts}
    results = Results(record.outcomes)
    if json_path is not None:
        text = json.dumps(to_json(results, scenes, effort, about), indent=1, ensure_ascii=False)
        json_path.write_text(text + "\n")
    click.echo(to_markdown(results, scenes, about), nl=False)
    sys.exit(1 if results.failures() else 0)


def list_all(scenes: list[Scene[Any]]) -> None:
    """Names for --only and --peers, and what is aimed at."""
    nothing = Results([])
    for scene in scenes:
        click.echo(f"{scene.title}:")
        for measure in scene.measures:
            names = [name for name in measure.contenders if name in scene.sites]
            click.echo(f"  {measure.name:20}{measure.title}, {measure.unit}: {', '.join(names)}")
            for target in measure.targets:
                aim = target_cell(nothing, measure, target).partition(":")[0]
                click.echo(f"  {'':20}  target: {target.contender} {aim}")
    click.echo("contenders:")
    for name, what in CONTENDERS.items():
        click.echo(f"  {name:20}{what}")


def run_and_show(scenes: list[Scene[Any]], effort: Effort, rounds: int) -> bench.Record:
    """Runs the benchmark; what it does and the time left are on stderr."""
    console = Console(stderr=True, highlight=False, emoji=False)
    columns = (BarColumn(20), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, *left, console=console, transient=True) as progress:
        task = progress.add_task("", total=bench.estimate_s(scenes, effort, rounds))

        def say(what: str) -> None:
            progress.update(task, description=what)
            if not console.is_terminal:
                console.print(what)

        watch = bench.Watch(say, lambda seconds: progress.advance(task, seconds))
        return bench.run(scenes, effort, rounds, watch)


if __name__ == "__main__":
    command(prog_name="python -m perf")
