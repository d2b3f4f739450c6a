"""What is kept of a run is all of it: read again, it is the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perf import record
from perf.measure import Effort, Target
from perf.record import NoRecord, Run, from_json, to_json
from perf.report import to_markdown
from perf.results import curves_of
from tests.perf.runs import SLOPE, measured, run_of, skipped, speed

TARGET = Target("loden", 2.0, "kernel")


def full_run() -> Run:
    outcomes = [
        *measured("loden", 4, None),
        *measured("kernel", 2, 2),
        *skipped("other", "not here"),
        *measured("loden", 3, 3, measure="steep"),
    ]
    return run_of(outcomes, speed(TARGET, slopes=(0,)), speed(name="steep", slopes=(20,)))


def test_json_has_every_reading_and_the_reasons_for_the_missing() -> None:
    written = json.loads(json.dumps(to_json(full_run())))

    assert written["machine"]["cpus"] == 2
    assert written["effort"]["tcp_s"] == 1
    assert written["measures"]["speed"]["targets"] == [
        {"contender": "loden", "limit": 2.0, "than": "kernel", "of": None, "met": True}
    ]
    assert written["measures"]["steep"]["points"] == [{"curve": "slope", "x": 20}]
    first, second, *_ = written["outcomes"]
    assert (first["status"], first["value"], first["details"]) == ("measured", 4, {"lost": 0})
    assert (second["status"], second["value"], second["why_not"]) == ("failed", None, "it burns")


def test_run_read_from_a_file_is_the_one_that_was_written(tmp_path: Path) -> None:
    run, path = full_run(), tmp_path / "results.json"
    record.write(run, path)
    again = record.read(path)

    assert to_json(again) == to_json(run)
    assert to_markdown(again) == to_markdown(run)
    assert [(x, m.name) for x, m in curves_of(again.scenes)[SLOPE]] == [(0, "speed"), (20, "steep")]


def test_what_was_read_cannot_be_taken_again() -> None:
    (measure, _) = from_json(to_json(full_run())).measures()
    with pytest.raises(TypeError, match="read from a file"):
        measure.take(None, Effort())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "this is no JSON"),
        ("{}", "format: None is not readable here"),
        ('{"format": 1}', "format: 1 is not readable here; it must be 2"),
        ('{"format": 2}', "it lacks or garbles a part: KeyError: 'curves'"),
        ("[]", "format: None is not readable here"),
    ],
)
def test_other_file_is_refused_by_name(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(NoRecord) as caught:
        record.read(path)
    assert str(caught.value).startswith(f"{path}: {why}")
