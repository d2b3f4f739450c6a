"""The repository keeps its own rules: layers, sizes, words, and one truth in each place."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = ("control", "forwarder", "perf")
SOURCES = sorted(
    path.relative_to(ROOT)
    for package in (*PACKAGES, "tests")
    for path in (ROOT / package).rglob("*.py")
)
MODULES = [path for path in SOURCES if path.parts[0] in PACKAGES]
DOCUMENTS = [Path(name) for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]
MAX_LINES = 450

MAY_IMPORT = {
    "forwarder/wire": {"forwarder.arrays", "forwarder.jit", "forwarder.wire", "numpy"},
    "forwarder": {"forwarder"},
    "control": {"control", "forwarder"},
    "perf": {"perf", "control", "forwarder"},
}
"""Of our own packages (for wire: of all there are), what a folder's modules may import."""

KERNELS = {
    "forwarder.batch",
    "forwarder.capture",
    "forwarder.coalesce",
    "forwarder.inbound",
    "forwarder.outbound",
    "forwarder.rehearsal",
    "forwarder.superpacket",
    "forwarder.tun",
    "forwarder.udp",
    "forwarder.worker",
}
"""The data path itself, of which control knows nothing."""


def test_every_module_says_what_it_is_for() -> None:
    trees = {path: ast.parse((ROOT / path).read_text()) for path in MODULES}
    assert [path for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []


def test_files_can_be_read_in_one_go() -> None:
    lines = {str(path): len((ROOT / path).read_text().splitlines()) for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


def test_nothing_is_unfinished_or_bound_to_one_machine() -> None:
    unwanted = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|(?<!\w)/(home|root|Users|work)/")
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in [*SOURCES, *DOCUMENTS]
        if (ROOT / path) != Path(__file__)  # it names the words
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if unwanted.search(line)
    ]
    assert found == []


def test_no_module_is_named_for_everything_and_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert [path for path in SOURCES if path.stem in vague] == []


def test_layers_import_downwards_only() -> None:
    wrong = [
        f"{path} imports {name}"
        for path in MODULES
        for name in imported_by(path)
        if not may_import(layer_of(path), name)
    ]
    assert wrong == []


def test_control_knows_nothing_of_the_data_path() -> None:
    control = [path for path in MODULES if path.parts[0] == "control"]
    assert [path for path in control if KERNELS & set(imported_by(path))] == []


def imported_by(path: Path) -> Iterator[str]:
    """The modules it imports, anywhere in the file; `from x import y` may name x or x.y."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            for alias in node.names:
                candidate = f"{node.module}.{alias.name}"
                yield candidate if _is_module(candidate) else node.module


def layer_of(path: Path) -> str:
    return next(layer for layer in MAY_IMPORT if path.as_posix().startswith(f"{layer}/"))


def may_import(layer: str, name: str) -> bool:
    root = name.partition(".")[0]
    if root not in (*PACKAGES, "tests") and layer != "forwarder/wire":
        return True
    allowed = {*MAY_IMPORT[layer], *sys.stdlib_module_names}
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def test_tox_pins_the_lowest_versions_that_are_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + extras["test"] + extras["perf"]
    listed = "\n".join(line for line in requirements if ";" not in line)
    bounds = dict(re.findall(r"(?m)^([\w-]+)[=>]=([\d.]+)", listed))
    pins = dict(re.findall(r"lowest: ([\w-]+)==([\d.]+)", (ROOT / "tox.ini").read_text()))
    assert pins == bounds


def test_tox_has_an_environment_for_every_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: 3."
    minors = {c.removeprefix(prefix) for c in project["classifiers"] if c.startswith(prefix)}
    assert set(re.findall(r"\bpy3(\d+)\b(?!-)", (ROOT / "tox.ini").read_text())) == minors
