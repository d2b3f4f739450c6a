"""`python -m perf`: the benchmarks of loden, beside its peers and no overlay at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from perf import bench, between, record_commands
from perf.catalogue import CONTENDERS, CURVES, MEASURES, SCENES
from perf.demo import why_not_here
from perf.measure import Scene
from perf.micro import scene as micro
from perf.report import aim
from perf.running import measure_and_report, only_option, output_option, quick_option, repeat_option


@click.group("perf", invoke_without_command=True)
@quick_option
@only_option(MEASURES)
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
    """Measure loden, the kernel's vxlan, wireguard-go, nebula and the bare underlay, alike.

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
    measure_and_report(scenes, CONTENDERS, quick=quick, repeat=repeat, output=output)


@command.command("micro")
@click.option("--quick", is_flag=True, help="In seconds: one round, loden and NumPy only.")
@repeat_option
@output_option
def micro_command(quick: bool, repeat: int | None, output: Path | None) -> None:
    """Measure the data path's kernels alone, beside NumPy, py-radix, dpkt and scapy.

    One core, no network, no root.  What a contender comes to is compared before it is timed.
    """
    scenes = chosen([micro.KERNELS], (), (), quick)
    measure_and_report(scenes, CONTENDERS, quick=quick, repeat=repeat, output=output)


for subcommand in (between.command, *record_commands.COMMANDS):
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


if __name__ == "__main__":
    command(prog_name="python -m perf")
