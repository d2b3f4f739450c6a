"""`loden config`: the configuration file, checked without starting anything, and a sample of it."""

from __future__ import annotations

import sys
from typing import Any

import click
from click.core import ParameterSource

from control import config_file, underlay
from control.exits import EXIT_FINAL, ControlError, fail
from control.flags import RUN_OPTIONS, NodeCommand, control_options, run_flags
from forwarder.flags import HELP, Flag, source_of, with_options

SECRET = "(not shown)"


@click.group("config", context_settings=HELP)
def config_command() -> None:
    """Check the configuration, or begin one."""


@config_command.command("check", cls=NodeCommand, context_settings=HELP)
@with_options(*RUN_OPTIONS)
@click.pass_context
def check_command(ctx: click.Context, /, **values: Any) -> None:
    """Check the configuration of 'loden run' without starting anything.

    Looks at the flags given here, the environment and the configuration file, in this order, and
    prints what differs from the defaults and where it was said.  Ends with 2, and all that is
    wrong, where 'loden run' would.
    """
    try:
        underlay.check_flags(control_options(values))
    except ControlError as error:
        fail("config check", error, EXIT_FINAL)
    for flag in ctx.command.params:
        said = ctx.get_parameter_source(flag.name or "") is not ParameterSource.DEFAULT
        if isinstance(flag, Flag) and flag.expose_value and said:
            key, value = config_file.key_of(flag), values[flag.name or ""]
            shown = SECRET if key in config_file.SECRETS else _in_words(value)
            click.echo(f"{key} = {shown}  ({source_of(ctx, flag)})")
    click.echo("the configuration can be used")


@config_command.command("sample", context_settings=HELP)
def sample_command() -> None:
    """Print a configuration file with every setting, its default and what it is for."""
    sys.stdout.write(config_file.sample(run_flags()))


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
