"""Plots of a run, as SVG: bars with their spread, and curves.

matplotlib is loaded when the first plot is drawn, since only reports need it.  Texts stay texts,
so that a page can be searched and read aloud.
"""

from __future__ import annotations

import importlib.util
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from perf.markdown import figure, in_capitals
from perf.measure import Curve, Measure
from perf.record import Run
from perf.results import Results, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "loden": "#2f7d57",
    "loden-gso": "#174c34",
    "loden-busy": "#7fb89a",
    "kernel": "#4f6d9c",
    "bare": "#b5b5b0",
    "wireguard-go": "#c8743a",
    "nebula": "#8b64a8",
    "numpy": "#4f6d9c",
}
OTHER_COLOURS = ("#c8743a", "#8b64a8", "#a8923a", "#3a8fa8", "#a83a5c")
INK, PALE_INK, WARNING = "#24292f", "#6e7781", "#b3261e"
FONT = "DejaVu Sans"
"""matplotlib brings it along, and lays out by it."""
SIMILAR_FONTS = f"'{FONT}', Verdana, sans-serif"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "loden",
    "font.family": FONT,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#d0d7de",
    "axes.axisbelow": True,
    "axes.labelcolor": PALE_INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": PALE_INK,
    "ytick.color": PALE_INK,
    "grid.color": "#eaeef2",
    "legend.frameon": False,
}
COLUMNS = 3
WIDTH_IN = 10.0
BAR_IN, LINE_IN = 0.26, 0.16
TITLE_CHARACTERS = 32
PERCENTILE = re.compile(r"p(\d+(?:\.\d+)?)")


def why_none() -> str | None:
    """What to do so that there are plots; None if all is there."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed: pip install 'loden[perf]'"
    return None


def colour_of(contender: str, names: Sequence[str]) -> str:
    """Each contender has the same one in all plots of its own kind."""
    strangers = [name for name in names if name not in COLOURS]
    return COLOURS.get(contender) or OTHER_COLOURS[strangers.index(contender) % len(OTHER_COLOURS)]


def drawn(width_in: float, height_in: float, draw: Callable[[Figure], None]) -> str:
    """What `draw` puts on a figure of this size, as an <svg> element."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        fig = Figure((width_in, height_in), layout="constrained")
        draw(fig)
        written = io.StringIO()
        fig.savefig(written, format="svg", metadata={"Date": None})
    svg = written.getvalue().partition("<!DOCTYPE")[2].partition(">")[2].strip()
    return svg.replace(f"'{FONT}'", SIMILAR_FONTS) + "\n"


# ---- bars ---------------------------------------------------------------------------------------


def bars(run: Run, measures: Sequence[Measure[Any]], titles: Sequence[str] = ()) -> str:
    """A panel per measure, a bar per contender: the median, and a line from least to most.

    `titles`: other ones than the measures' own.
    """
    shown = titles or [measure.title for measure in measures]
    panels = list(zip(measures, shown, strict=True))
    rows = [panels[at : at + COLUMNS] for at in range(0, len(panels), COLUMNS)]
    most = [max(len(present(run.results, measure)) for measure, _ in row) for row in rows]
    lines = [max(wrapped(title).count("\n") for _, title in row) for row in rows]
    heights = [
        count * BAR_IN + more * LINE_IN + 0.55 for count, more in zip(most, lines, strict=True)
    ]

    def draw(fig: Figure) -> None:
        grid = fig.add_gridspec(len(rows), COLUMNS, height_ratios=heights)
        for r, row in enumerate(rows):
            for c, (measure, title) in enumerate(row):
                axes = fig.add_subplot(grid[r, c])
                axes.set_title(wrapped(title), pad=18)
                draw_bars(axes, run.results, measure)
                axes.set_ylim(most[r] - 0.5, -0.5)  # bars of a row are equally thick

    return drawn(WIDTH_IN, sum(heights), draw)


def wrapped(title: str) -> str:
    """For a panel as wide as a column."""
    return "\n".join(textwrap.wrap(in_capitals(title), TITLE_CHARACTERS))


def present(results: Results, measure: Measure[Any]) -> list[str]:
    """The contenders that had a turn."""
    return [name for name in measure.contenders if results.of(measure.name, name)]


def draw_bars(axes: Axes, results: Results, measure: Measure[Any]) -> None:
    contenders = present(results, measure)
    spreads = [results.spread(measure.name, name) for name in contenders]
    longest = max((spread.high for spread in spreads if spread), default=0.0) or 1.0
    for place, (name, spread) in enumerate(zip(contenders, spreads, strict=True)):
        if spread is None:
            status = results.of(measure.name, name)[0].status.value
            axes.text(longest * 0.01, place, status, va="center", color=WARNING, style="italic")
            continue
        axes.barh(place, spread.median, 0.68, color=colour_of(name, contenders))
        if spread.count > 1:
            for colour, width in (("white", 2.6), (INK, 1.2)):  # seen on dark bars, too
                axes.plot([spread.low, spread.high], [place, place], color=colour, linewidth=width)
        axes.text(spread.high + longest * 0.03, place, figure(spread.median), va="center")
    less = "" if measure.more_is_better else "; less is better"
    axes.text(0, 1.02, f"{measure.unit}{less}", transform=axes.transAxes, color=PALE_INK)
    axes.set_xlim(0, longest * 1.22)
    axes.set_xticks([])
    axes.set_yticks(range(len(contenders)), contenders)
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines["bottom"].set_visible(False)


# ---- curves -------------------------------------------------------------------------------------


def lines(run: Run, curve: Curve, measures: Sequence[tuple[float, Measure[Any]]]) -> str:
    """A line per contender through its medians, in a band from least to most."""
    xs = [x for x, _ in measures]
    unit = measures[0][1].unit
    names = contenders_drawn(run.results, measures)

    def draw(fig: Figure) -> None:
        axes = fig.add_subplot()
        for name in names:
            points = [(x, run.results.spread(measure.name, name)) for x, measure in measures]
            draw_line(axes, name, colour_of(name, names), [(x, s) for x, s in points if s])
        if unit == curve.x_unit:
            axes.plot(xs, xs, ":", color=PALE_INK, linewidth=1, label="as offered", zorder=0)
        set_x_axis(axes, xs)
        highs = [s.high for _, m in measures for n in names if (s := run.results.spread(m.name, n))]
        axes.set_ylim(0, 1.1 * max(highs) or None)
        axes.set_xlabel(f"{curve.x_name}{f' ({curve.x_unit})' if curve.x_unit else ''}")
        axes.set_ylabel(unit)
        axes.grid(axis="y")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    return drawn(WIDTH_IN * 0.75, 3.6, draw)


def contenders_drawn(results: Results, measures: Sequence[tuple[float, Measure[Any]]]) -> list[str]:
    """Those with a figure at any point of a curve."""
    names = dict.fromkeys(name for _, measure in measures for name in measure.contenders)
    return [name for name in names if any(results.values(m.name, name) for _, m in measures)]


def draw_line(axes: Axes, name: str, colour: str, points: Sequence[tuple[float, Spread]]) -> None:
    xs = [x for x, _ in points]
    lows, highs = [s.low for _, s in points], [s.high for _, s in points]
    axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    medians = [s.median for _, s in points]
    axes.plot(xs, medians, "o-", color=colour, markersize=3.5, linewidth=1.6, label=name)


def set_x_axis(axes: Axes, xs: Sequence[float]) -> None:
    """Logarithmic where x spans decades; a tick at each x where there is room."""
    if min(xs) > 0 and max(xs) / min(xs) >= 50:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, place: shortened_number(value))
    if len(xs) <= 12:
        axes.set_xticks(xs, [shortened_number(x) for x in xs])
        axes.set_xticks([], minor=True)


def shortened_number(value: float) -> str:
    """1000000 as 1M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if value >= size and value % (size / 10) == 0:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def percentiles(run: Run, measures: Sequence[Measure[Any]]) -> str:
    """A panel per measure, a line per contender: each percentile among its details.

    The measures are of one unit.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    panels = [(measure, percentiles_of(run.results, measure)) for measure in measures]

    names = list(dict.fromkeys(name for _, found in panels for name in found))

    def draw(fig: Figure) -> None:
        grid = fig.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (measure, found) in zip(grid, panels, strict=True):
            for name, by_share in found.items():
                colour = colour_of(name, names)
                axes.plot(list(by_share), list(by_share.values()), "o-", color=colour, label=name)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, place: figure(value))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_title(wrapped(measure.title))
            axes.grid(axis="y")
        grid[0].set_ylabel(panels[0][0].unit)
        legend = {
            label: line
            for axes in grid
            for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        fig.legend(legend.values(), legend.keys(), loc="outside right upper")

    return drawn(WIDTH_IN, 3.6, draw)


def percentiles_of(results: Results, measure: Measure[Any]) -> dict[str, dict[str, float]]:
    """By contender: "p50", "p90"... in order; of contenders that have several."""
    found = {}
    for name in present(results, measure):
        details = results.details(measure.name, name)
        shares = {share: v for share, v in details.items() if PERCENTILE.fullmatch(share)}
        spread = results.spread(measure.name, name)
        if shares and spread:
            shares.setdefault("p50", spread.median)
            found[name] = dict(sorted(shares.items(), key=lambda item: float(item[0][1:])))
    return found
