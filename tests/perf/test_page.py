"""The page says what the report says, has its plots in it, and needs nothing else."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import pytest

from perf.measure import Target
from perf.page import to_html
from perf.record import Run
from tests.perf.runs import measured, run_of, speed


def full_run() -> Run:
    measures = (
        speed(Target("loden", 2.0, "kernel")),
        speed(name="delay", more_is_better=False, unit="s"),
        speed(name="flat", slopes=(1,)),
        speed(name="steep", slopes=(100,)),
    )
    outcomes = [
        *measured("loden", 4, 6, 5),
        *measured("kernel", 2, 2, 2),
        *measured("other", None, None, None),
        *measured("loden", 3, 4, measure="delay", details={"p90": 7, "p99": 70}),
        *measured("kernel", 5, 6, measure="delay"),
        *measured("loden", 8, 9, measure="flat"),
        *measured("loden", 3, 4, measure="steep"),
        *measured("kernel", None, measure="steep"),
    ]
    return run_of(outcomes, *measures)


class Elements(HTMLParser):
    """Checks that what is opened is closed, and keeps what is asked for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.counts: dict[str, int] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        names = ("src", "href", "xlink:href")
        self.sources += [value or "" for name, value in attributes if name in names]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_needs_nothing_else() -> None:
    elements = Elements(to_html(full_run()))

    assert elements.open == []
    assert elements.counts["svg"] == 3  # bars, percentiles, a curve
    assert elements.counts["table"] == 2
    assert all(source.startswith("#") for source in elements.sources)


def test_plots_have_their_texts_as_texts() -> None:
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", to_html(full_run()))

    for shown in ("Speed", "m/s", "5", "failed", "s; less is better", "p99", "slope (%)"):
        assert shown in texts


def test_names_from_elsewhere_are_not_markup() -> None:
    run = run_of(measured("loden", 1) + measured("kernel", None), speed(name="<b>x</b>"))
    assert "<b>" not in to_html(run)


def test_without_matplotlib_the_page_says_how_to_get_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = to_html(full_run())

    assert "<svg" not in page
    assert "matplotlib is not installed: pip install &#x27;loden[perf]&#x27;" in page
    assert page.count("<table>") == 2
