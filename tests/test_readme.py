"""What the README and CONTRIBUTING tell people to type exists, and its tables are true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from control.cli import main
from control.config_file import DEFAULT_FILE
from control.metric_families import (
    BATCH_HELP,
    BATCH_LABELS,
    BATCH_NAME,
    CONTROL,
    FORWARDER,
    NODE,
    PEERS,
)
from forwarder.counters import Drop

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = README + (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", DOCUMENTS, re.MULTILINE | re.DOTALL)
TYPED = [line for block in BLOCKS for line in block.splitlines()]
TYPED += re.findall(r"`((?:make|loden) [^`]+)`", DOCUMENTS)


def command_named(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None, f"there is no loden {name}"
    return command


def flags_of(command: click.Command) -> dict[str, click.Option]:
    return {
        name: parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


@pytest.mark.parametrize("line", [line for line in TYPED if line.startswith("loden ")])
def test_loden_takes_what_the_documents_say(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    # In prose a command is named without the arguments that it needs.
    command_named(name).make_context(name, arguments, resilient_parsing=not arguments)


@pytest.mark.parametrize("line", [line for line in TYPED if line.startswith("make ")])
def test_make_has_the_targets_the_documents_name(line: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(line.split()[1:]) <= set(targets)


def test_table_has_every_flag_of_run_and_no_other() -> None:
    rows = re.findall(r"^\| (`--.*?) \|", README, re.MULTILINE)
    listed = {flag for row in rows for flag in re.findall(r"--[\w-]+", row)}
    run = command_named("run")
    wanted = {p.opts[0] for p in run.params if isinstance(p, click.Option)}
    assert listed == wanted


def test_table_gives_the_defaults_in_force() -> None:
    flags = flags_of(command_named("run"))
    rows = re.findall(r"^\| `(--[\w-]+)` \| `?([^|`]+?)`? \|", README, re.MULTILINE)
    words = {"on": "True", "off": "False"}
    unset = ("none", "all usable CPUs")
    stated = {flag: words.get(text, text) for flag, text in rows if text not in unset}
    assert stated
    defaults = {flag: str(flags[flag].default) for flag in stated}
    assert stated == defaults | {"--config": str(DEFAULT_FILE)}


def test_table_has_every_metric_with_its_labels_and_its_meaning() -> None:
    rows = re.findall(r"^\| `(loden_\w+)` \| (.*?) ?\| (.*) \|$", README, re.MULTILINE)
    stated = {name: (tuple(re.findall(r"`(\w+)`", labels)), help) for name, labels, help in rows}
    families = (*NODE, *CONTROL, *FORWARDER, *PEERS)
    wanted = {family.name: (family.labels, family.help) for family in families}
    assert stated == wanted | {BATCH_NAME: (BATCH_LABELS, BATCH_HELP)}
    assert len(rows) == len(stated)


def test_drop_reasons_in_the_documents_exist() -> None:
    named = re.findall(r"^\| drops `(\w+)`", README, re.MULTILINE)
    assert named
    assert set(named) <= {drop.name.lower() for drop in Drop}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", DOCUMENTS):
        assert (ROOT / target).exists(), target
