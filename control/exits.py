"""Exit statuses of the commands, and how a command ends with its message."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from forwarder import logs

EXIT_FAILURE = 1
"""It may work later, or another time."""
EXIT_USAGE = 2
"""A flag's value cannot be."""
EXIT_FINAL = 3
"""Starting it again cannot help before somebody mends the cause."""


EXIT_RESTART = 4
"""It wants to be started again, at once: nothing is wrong."""


class ControlError(Exception):
    """The control process must end: nothing will be right before somebody mends the cause."""


class RestartWanted(Exception):
    """The control process must be started anew: what it was built on has changed."""


def fail(command: str, message: object, status: int = EXIT_FAILURE) -> NoReturn:
    """Ends with one line on standard error."""
    click.echo(logs.last_word(f"loden {command}: {message}"), err=True)
    sys.exit(status)


def in_words(error: OSError) -> str:
    """The file and the reason, without Python's error number."""
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
