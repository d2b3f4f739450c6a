"""The Grafana dashboard asks for metrics that exist, by labels that they have."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from control.metric_families import BATCH_LABELS, BATCH_NAME, CONTROL, FORWARDER, NODE, PEERS

DASHBOARD = json.loads((Path(__file__).parents[1] / "grafana" / "loden.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = {variable["name"] for variable in DASHBOARD["templating"]["list"]}

LABELS = {family.name: set(family.labels) for family in (*NODE, *CONTROL, *FORWARDER, *PEERS)}
LABELS |= {f"{BATCH_NAME}_bucket": {*BATCH_LABELS, "le"}, "process_cpu_seconds_total": set()}
FROM_PROMETHEUS = {"instance", "job"}


def test_it_shows_every_kind_of_thing() -> None:
    asked = {name for text in EXPRESSIONS for name in re.findall(r"\b(?:loden|process)_\w+", text)}
    for wanted in ("bytes", "packets", "dropped_packets", "peer_bytes", "worker_cpu_seconds"):
        assert f"loden_{wanted}_total" in asked
    assert {"loden_etcd_state", "loden_routes_age_seconds", "process_cpu_seconds_total"} <= asked


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_metrics_and_labels_exist(expression: str) -> None:
    names = re.findall(r"\b((?:loden|process)_\w+)\{([^}]*)\}", expression)
    assert names
    assert len(names) == len(re.findall(r"\b(?:loden|process)_", expression)), "nodes are chosen"
    for name, matchers in names:
        assert name in LABELS
        asked = set(re.findall(r"(\w+)=~?\"", matchers))
        assert asked <= LABELS[name] | FROM_PROMETHEUS
        for group in re.findall(r"\bby \(([\w, ]+)\)", expression):
            assert set(group.split(", ")) <= LABELS[name] | FROM_PROMETHEUS


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_only_what_grows_has_a_rate(expression: str) -> None:
    for name in re.findall(r"\b(loden_\w+)\{", expression):
        grows = name.endswith(("_total", "_bucket"))
        has_rate = re.search(rf"\b(rate|increase)\({name}\{{", expression) is not None
        assert grows == has_rate, name


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_brackets_close_and_variables_exist(expression: str) -> None:
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    used = set(re.findall(r"\$\{?(\w+)", expression))
    assert used <= VARIABLES | {"__rate_interval"}


def test_legends_name_labels_of_the_result() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = {
                label
                for group in re.findall(r"\bby \(([\w, ]+)\)", target["expr"])
                for label in group.split(", ")
            }
            assert shown <= (kept or FROM_PROMETHEUS), panel["title"]


def test_panels_have_names_of_their_own_and_do_not_overlap() -> None:
    for key in ("id", "title"):
        assert len({panel[key] for panel in PANELS}) == len(PANELS)
    for one, other in combinations((panel["gridPos"] for panel in PANELS), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)
