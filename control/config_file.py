"""The configuration file: TOML, each key a flag of `loden run` without its dashes.

    etcd-endpoints = ["http://10.0.0.5:2379", "http://10.0.0.6:2379"]
    iface = ["eth1"]
    ip-masq = true

A flag on the command line or in the environment wins over the file.  Everything that cannot be is
found at once, and each problem is a sentence with the file, the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import json
import stat
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from forwarder.flags import Flag

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_FILE = Path("/etc/loden/loden.toml")
SECRETS = ("etcd-password",)
SAMPLE_WIDTH = 78


def read(path: Path, flags: Iterable[Flag]) -> tuple[dict[str, Any], list[str]]:
    """The file's values by parameter name, as click takes defaults, and what is wrong with it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            table = tomllib.load(file)
    except OSError as error:
        return {}, [f"{path}: cannot be read: {error.strerror}"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return {}, [f"{path}: no TOML: {error}"]
    known = {key_of(flag): flag for flag in flags}
    values: dict[str, Any] = {}
    problems = []
    for key, value in table.items():
        if key not in known:
            problems.append(f"{path}: {key}: {_why_unknown(key, value, known)}")
        elif key in SECRETS and mode & 0o077:
            problems.append(f"{path}: {key}: the file's mode is {mode:04o}, allowed: 0600, for it")
        elif (allowed := _what_is_allowed(known[key], value)) is not None:
            problems.append(f"{path}: {key}: {value!r} is not allowed; allowed: {allowed}")
        else:
            values[known[key].name or ""] = _as_click_takes_it(known[key], value)
    return values, problems


def key_of(flag: click.Option) -> str:
    """The key of a flag: its name, without the dashes."""
    return flag.opts[0].removeprefix("--")


def _why_unknown(key: str, value: object, known: Mapping[str, Flag]) -> str:
    if isinstance(value, dict):
        return "there are no tables here; allowed: keys such as etcd-endpoints"
    similar = difflib.get_close_matches(key.replace("_", "-").lower(), known, n=1)
    meant = f"; did you mean {similar[0]}?" if similar else ""
    return f"there is no such setting{meant} ('loden config sample' shows all)"


def _what_is_allowed(flag: Flag, value: object) -> str | None:
    """Of TOML's types, if not this one; None: it is right so far, click looks at the rest."""
    items = value if isinstance(value, list) else [value]
    if flag.is_flag:
        return None if isinstance(value, bool) else "true, false"
    if isinstance(flag.type, click.types.IntParamType):
        return None if type(value) is int else "a whole number"
    if all(isinstance(item, str) or type(item) is int for item in items):
        return None
    return "a text, or a list of texts"


def _as_click_takes_it(flag: Flag, value: Any) -> Any:
    if flag.is_flag or (type(value) is int and isinstance(flag.type, click.types.IntParamType)):
        return value
    items = [str(item) for item in (value if isinstance(value, list) else [value])]
    return items if flag.multiple else ",".join(items)


# ---- a sample -----------------------------------------------------------------------------------


def sample(flags: Iterable[Flag]) -> str:
    """A file with every setting, its help and its default, all commented out."""
    lines = [
        "# loden's configuration.  Each key is a flag of 'loden run' without its dashes; a flag on",
        "# the command line, or FLANNELD_... in the environment, wins over what is said here.",
        "# 'loden config check' tells whether all of it can be used.",
    ]
    heading = ""
    for flag in flags:
        if flag.heading != heading:
            heading = flag.heading
            lines += ["", "", f"# ---- {heading} ".ljust(SAMPLE_WIDTH, "-")]
        lines += ["", *(f"# {line}" for line in textwrap.wrap(flag.help or "", SAMPLE_WIDTH))]
        lines.append(f"#{key_of(flag)} = {_as_toml(flag)}")
    return "\n".join(lines) + "\n"


def _as_toml(flag: Flag) -> str:
    """The default; where there is none, something of its kind."""
    default = flag.default
    if flag.multiple:
        return "[]"
    if isinstance(default, bool):
        return str(default).lower()
    if type(default) is int:
        return str(default)
    if isinstance(default, str | Path):
        return json.dumps(str(default))
    return "1" if isinstance(flag.type, click.types.IntParamType) else '""'
