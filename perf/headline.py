"""What the README says of speed: a table and a plot, made of a run that is kept beside it.

docs/benchmark.json     the run, every reading
docs/benchmark.svg      the plot
README.md               the table, between two marks
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from perf import plots, record
from perf.markdown import figure, ratio_range, table, times
from perf.measure import Measure
from perf.record import Run

HEADLINE = (
    ("tcp1", "loden-gso", "TCP, one stream"),
    ("tcp4", "loden-gso", "TCP, four streams"),
    ("tcp1-plain", "loden", "TCP, one stream, plain NIC"),
    ("udp64", "loden", "UDP, 64 bytes, one flow"),
    ("udp1300", "loden", "UDP, 1300 bytes, one flow"),
    ("udp64-flows", "loden", "UDP, 64 bytes, 64 flows"),
    ("latency", "loden", "request and response"),
    ("latency", "loden-busy", "the same, workers busy-polling"),
    ("cpu-tcp", "loden-gso", "CPU for TCP, one stream"),
    ("cpu-udp", "loden", "CPU for UDP, 64 bytes"),
)
"""Measure, which loden stands for it, and what it is called here.

On each underlay it is the loden that a node chooses by itself, but for --steer-by-cpu where there
are offloads; for latency also the one for those who can spare the CPU."""
YARDSTICK = "kernel"
OTHERS = ("wireguard-go", "nebula")
BEGIN = "<!-- written by `python -m perf readme` -->"
END = "<!-- end of what it wrote -->"
RESULTS_PATH = Path("docs/benchmark.json")
PLOT_PATH = Path("docs/benchmark.svg")


class NoHeadline(ValueError):
    """The README, or the run, lacks what is needed; the message says what."""


def write(run: Run, root: Path) -> list[Path]:
    """Writes all three below `root`, a checkout.  Raises NoHeadline before it writes anything."""
    readme = root / "README.md"
    text = replaced(readme.read_text(), section(run))
    plot = drawn(run)
    (root / RESULTS_PATH).parent.mkdir(exist_ok=True)
    record.write(run, root / RESULTS_PATH)
    (root / PLOT_PATH).write_text(plot)
    readme.write_text(text)
    return [root / RESULTS_PATH, root / PLOT_PATH, readme]


def replaced(readme: str, section: str) -> str:
    """The README with another section between the marks."""
    before, begin, rest = readme.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not (begin and end):
        raise NoHeadline(f"README.md lacks the marks {BEGIN} and {END}, each on a line of its own")
    return f"{before}{begin}{section}{end}{after}"


def section(run: Run) -> str:
    """The table, the plot, and where and when it was measured.  Raises NoHeadline."""
    measures = measures_of(run)
    headings = ("", "kernel's vxlan", "loden", "loden to kernel", *OTHERS)
    rows = [row_of(run, measures[name], ours, label) for name, ours, label in HEADLINE]
    plot = f"![The same as bars, with every contender and the spread]({PLOT_PATH})"
    return "\n\n".join((table(headings, rows), plot, conditions(run))) + "\n"


def measures_of(run: Run) -> dict[str, Measure[Any]]:
    """By name, those of the headline."""
    known = {measure.name: measure for measure in run.measures()}
    lacking = [name for name, _, _ in HEADLINE if name not in known]
    if lacking:
        raise NoHeadline(f"the results lack measures of the headline: {', '.join(lacking)}")
    return {name: known[name] for name, _, _ in HEADLINE}


def row_of(run: Run, measure: Measure[Any], ours: str, label: str) -> list[str]:
    ratio = run.results.ratio(measure.name, ours, YARDSTICK)
    shown = "–" if ratio is None else f"**{times(ratio.median)}** ({ratio_range(ratio)})"
    figures = [cell(run, measure, name) for name in (YARDSTICK, ours, *OTHERS)]
    less = "" if measure.more_is_better else ", less is better"
    return [f"{label}, {measure.unit}{less}", *figures[:2], shown, *figures[2:]]


def cell(run: Run, measure: Measure[Any], contender: str) -> str:
    """The median; why there is none; a dash for what was not to be measured."""
    spread = run.results.spread(measure.name, contender)
    if spread is not None:
        return figure(spread.median)
    outcomes = run.results.of(measure.name, contender)
    return outcomes[0].status.value if outcomes else "–"


def conditions(run: Run) -> str:
    about, machine = run.about, run.about["machine"]
    commit = (machine["commit"] or "unknown")[:12]
    sentences = (
        "**A `--quick` run, not to compare by.**" if about["quick"] else "",
        f"Measured on {about['begun'][:10]} at commit {commit}"
        f"{', with uncommitted changes' if machine['uncommitted_changes'] else ''},"
        f" on {machine['cpus']} CPUs ({machine['cpu']}) with Linux {machine['kernel']}:"
        " two hosts and their pods, in namespaces of one machine, joined by veth.",
        f"Medians of {about['repeat']} round{'s' if about['repeat'] > 1 else ''};"
        " ratios are taken within each round, in parentheses the smallest and the largest.",
        "A plain NIC is one without offloads; with offloads loden runs with `--steer-by-cpu`.",
        f"{' and '.join(OTHERS)} encrypt, the others do not.",
        "`make bench` measures all of it and more on your machine;"
        " [perf/README.md](perf/README.md) says how, and what veth hides.",
    )
    told = " ".join(filter(None, sentences))
    return textwrap.fill(told, 100, break_on_hyphens=False, break_long_words=False)


def drawn(run: Run) -> str:
    """The plot, a file of its own."""
    measures = measures_of(run)
    svg = plots.bars(run, list(measures.values()), list(map(label_of, measures)))
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg}'


def label_of(measure: str) -> str:
    """The first that the measure has in the table."""
    return next(label for name, _, label in HEADLINE if name == measure)
