"""A run as one HTML page that needs nothing else: plots in it, and the report's tables."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from perf import plots
from perf.markdown import in_capitals
from perf.measure import Measure
from perf.record import Run
from perf.report import (
    HEADINGS,
    HOW_TO_READ,
    WHO,
    about_lines,
    contender_lines,
    curve_headings,
    curve_rows,
    missing,
    rows_of,
    stands_alone,
)
from perf.results import curves_of

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #24292f; background: #fff;
       max-width: 78rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; padding-top: .8rem; border-top: 1px solid #d0d7de; }
ul { color: #57606a; padding-left: 1.2rem; }
figure { margin: 1rem 0; overflow-x: auto; }
figure svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: #57606a; font-weight: 600; white-space: nowrap; }
th, td { padding: .3rem .8rem .3rem 0; vertical-align: top; border-bottom: 1px solid #eaeef2; }
td { white-space: nowrap; }
td:first-child { min-width: 9rem; white-space: normal; }
td:nth-child(7):last-child { min-width: 14rem; white-space: normal; }
strong { color: #b3261e; } ul strong { color: inherit; }
td span { color: #57606a; }
code { font-size: .92em; }
"""


def to_html(run: Run) -> str:
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>loden benchmark, {html.escape(run.about['begun'])}</title>",
            f"<style>{STYLE}</style></head>",
            "<body>",
            *body_of(run),
            "</body>",
            "</html>\n",
        )
    )


def body_of(run: Run) -> Iterator[str]:
    can_draw = plots.why_none() is None
    yield "<h1>loden benchmark</h1>"
    yield bullets(about_lines(run))
    if reason := plots.why_none():
        yield f"<p>{inline(f'**Without plots: {reason}**')}</p>"
    for scene in run.scenes:
        measures = [measure for measure in scene.measures if stands_alone(measure)]
        if not measures:
            continue
        yield heading(scene.title)
        if can_draw:
            yield from scene_plots(run, measures)
        yield table(HEADINGS, [row for m in measures for row in rows_of(run, m, scene)])
    for curve, measures_at in curves_of(run.scenes).items():
        yield heading(curve.title)
        if can_draw and plots.contenders_drawn(run.results, measures_at):
            yield in_figure(plots.lines(run, curve, measures_at))
        yield table(curve_headings(curve, measures_at), curve_rows(run, measures_at))
    if reasons := list(missing(run)):
        yield heading("not measured")
        yield bullets(reasons)
    yield heading(WHO)
    yield bullets(contender_lines(run))
    yield f"<p>{inline(HOW_TO_READ)}</p>"


def scene_plots(run: Run, measures: Sequence[Measure[Any]]) -> Iterator[str]:
    compared = [m for m in measures if len(plots.present(run.results, m)) > 1]
    if compared:
        yield in_figure(plots.bars(run, compared))
    spread_out = [m for m in measures if plots.percentiles_of(run.results, m)]
    if spread_out:
        yield in_figure(plots.percentiles(run, spread_out))


def heading(title: str) -> str:
    return f"<h2>{inline(in_capitals(title))}</h2>"


def in_figure(svg: str) -> str:
    return f"<figure>{svg}</figure>"


def bullets(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{inline(line)}</li>" for line in lines) + "</ul>"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """What repeats in the first column stands once."""
    lines = [tagged_row("th", headings)]
    before = ""
    for first, *rest in rows:
        lines.append(tagged_row("td", ("" if first == before else first, *rest)))
        before = first
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def tagged_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{inline(cell)}</{tag}>" for cell in cells) + "</tr>"


def inline(markdown: str) -> str:
    """Strong text and code, as the report uses them; the rest is text."""
    marked = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(markdown))
    marked = re.sub(r"`(.+?)`", r"<code>\1</code>", marked)
    return re.sub(r"(\([^()<>]*–[^()<>]*\))", r"<span>\1</span>", marked)  # no break in a range
