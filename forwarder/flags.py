"""Command-line flags: how all commands declare, parse and show them, and the forwarder's own.

The environment form of a flag is FLANNELD_ and its name in upper case, `-` as `_`: flannel's.
The command line wins over the environment, the environment over a file of defaults (the
context's `default_map`).  All that cannot be is told at once, each with where it was said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from forwarder.cpus import choose_cpus
from forwarder.dscp import parse_dscp
from forwarder.identity import find_identity
from forwarder.logs import LEVELS

Command = TypeVar("Command", bound=Callable[..., Any])

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""A command's context settings."""

PROBLEMS = "forwarder.flags.problems"
"""In a context's meta: a list of sentences, each a value that cannot be."""
FILE = "forwarder.flags.file"
"""In a context's meta: the file that `default_map` was read from."""


class Flag(click.Option):
    """An option that has its place under a heading of the help."""

    def __init__(self, *args: Any, heading: str = "This command", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.heading = heading

    def handle_parse_result(
        self, ctx: click.Context, opts: Any, args: list[str]
    ) -> tuple[Any, list[str]]:
        """A value that cannot be is noted, so that the others are looked at, too."""
        try:
            return super().handle_parse_result(ctx, opts, args)
        except click.MissingParameter:
            raise
        except click.BadParameter as error:
            note_problem(ctx, f"{source_of(ctx, self)}: {error.message}")
            return None, args


def note_problem(ctx: click.Context, problem: str) -> None:
    """Has the command refuse to start, with this sentence among those that say why.

    Raises click.UsageError in a command that does not gather them.
    """
    if not isinstance(ctx.command, FlagCommand):
        raise click.UsageError(problem, ctx)
    ctx.meta.setdefault(PROBLEMS, []).append(problem)


def source_of(ctx: click.Context, flag: click.Option) -> str:
    """Where the flag's value was said, in words that find it."""
    name = flag.opts[0]
    match ctx.get_parameter_source(flag.name or ""):
        case ParameterSource.ENVIRONMENT:
            return f"{flag.envvar} in the environment"
        case ParameterSource.DEFAULT_MAP:
            return f"{ctx.meta[FILE]}: {name.removeprefix('--')}"
    return name


class FlagCommand(click.Command):
    """A command whose help has headings, and that tells all wrong values at once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        self.check_together(ctx)
        problems = ctx.meta.get(PROBLEMS)
        if problems and not ctx.resilient_parsing:
            raise click.UsageError("\n       ".join(problems), ctx)
        return rest

    def check_together(self, ctx: click.Context) -> None:
        """Notes the problems of values that are right by themselves."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = parameter.heading if isinstance(parameter, Flag) else "Options"
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """A flag with its environment form; `heading`: what it is listed under."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "FLANNELD_" + long.removeprefix("--").upper().replace("-", "_")
    settings = {"cls": Flag, "show_default": True, "show_envvar": True, **settings}
    decorate: Callable[[Command], Command] = click.option(*names, envvar=variable, **settings)
    return decorate


def with_options(*groups: Sequence[Callable[..., Any]]) -> Callable[[Command], Command]:
    """Decorates a command with groups of options, shown in this order."""

    def decorate(command: Command) -> Command:
        for group in reversed(groups):
            for one in reversed(group):
                command = one(command)
        return command

    return decorate


# ---- the forwarder's ----------------------------------------------------------------------------


def check_cpus(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Passes on a list of CPUs that can be used.  Raises click.BadParameter."""
    try:
        choose_cpus(value, None)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    return value


def check_workers(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Passes on a number of workers that there can be.  Raises click.BadParameter."""
    try:
        choose_cpus(None, value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    return value


def check_dscp(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Passes on a DSCP that outer packets can have.  Raises click.BadParameter."""
    try:
        parse_dscp(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    return value


def check_user(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Passes on a user that workers can become.  Raises click.BadParameter."""
    try:
        find_identity(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    return value


_WORKERS, _OFFLOADS = "Workers", "Offloads, each used where kernel and devices can"

LOG_OPTIONS = (
    option(
        "--log-level",
        type=click.Choice(LEVELS, case_sensitive=False),
        default="info",
        heading="Logs",
        help="The least that is told on standard error.",
    ),
)

FORWARDER_OPTIONS = (
    option(
        "--cpus",
        metavar="LIST",
        callback=check_cpus,
        heading=_WORKERS,
        show_default="all usable",
        help="CPUs to pin a worker to, such as 0,2-5.",
    ),
    option(
        "--workers",
        type=int,
        metavar="N",
        callback=check_workers,
        heading=_WORKERS,
        show_default="one per CPU",
        help="Number of workers, when --cpus is not given.",
    ),
    option(
        "--user",
        default="nobody",
        callback=check_user,
        heading=_WORKERS,
        help="Whom the workers become.",
    ),
    option(
        "--seccomp/--no-seccomp",
        default=True,
        heading=_WORKERS,
        help="Allow the workers the system calls of their loop alone.",
    ),
    option(
        "--busy-poll-us",
        type=click.IntRange(0, 1_000_000),
        default=50,
        heading=_WORKERS,
        help="Where packets come more often than this many microseconds, a worker looks for so "
        "long before it blocks: less latency for more CPU; 0: it blocks at once.",
    ),
    option(
        "--steer-by-cpu/--no-steer-by-cpu",
        default=False,
        heading=_WORKERS,
        help="Give each worker what arrives on its CPU, for NICs that spread flows (RSS).",
    ),
    option(
        "--dscp",
        default="0",
        metavar="0-63|copy",
        callback=check_dscp,
        heading="Packets",
        help="DSCP of outer packets; copy: that of each inner packet.",
    ),
    *(
        option(f"--{name}/--no-{name}", default=True, heading=_OFFLOADS, help=text)
        for name, text in (
            ("tso", "Take TCP superpackets from the overlay device."),
            ("uso", "Take UDP superpackets from the overlay device."),
            ("coalesce", "Deliver many packets of a flow in one write."),
            ("udp-gso", "Send many datagrams in one message."),
            ("udp-gro", "Receive many datagrams in one message."),
            ("tunnel-gso", "Have the NIC cut TCP superpackets, headers of the tunnel and all."),
        )
    ),
)
