"""Figures, spreads and tables as text: Markdown that can be read as it is, too."""

from __future__ import annotations

from collections.abc import Sequence

from perf.results import Spread


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In columns of even width; what repeats in the first column stands once."""
    shown: list[Sequence[str]] = []
    before = ""
    for first, *rest in rows:
        shown.append(("" if first == before else first, *rest))
        before = first
    cells = [[cell.replace("|", "\\|") for cell in row] for row in shown]
    lines = [list(headings), ["---"] * len(headings), *cells]
    *widths, _ = (max(len(line[column]) for line in lines) for column in range(len(headings)))
    widths.append(3)  # the last column may be as long as it likes
    lines[1] = ["-" * width for width in widths]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def figure(value: float) -> str:
    """Three significant digits; large whole numbers as they are."""
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def range_of(spread: Spread) -> str:
    return f"{figure(spread.low)}–{figure(spread.high)}" if spread.count > 1 else "one round"


def times(ratio: float) -> str:
    """A ratio: two decimals, or as many digits as it takes to tell it from 0."""
    if ratio >= 1000:
        return f"{ratio:,.0f}"
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def ratio_range(ratio: Spread) -> str:
    return f"{times(ratio.low)}–{times(ratio.high)}" if ratio.count > 1 else "one round"


def in_capitals(title: str) -> str:
    """With a capital to begin with; the rest as it is."""
    return title[:1].upper() + title[1:]
