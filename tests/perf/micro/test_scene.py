"""All contenders come to the same; what differs, or is not there, is no figure."""

from __future__ import annotations

import sys

import pytest

from perf import bench
from perf.measure import Effort, Outcome, Status
from perf.micro import dpkt_tasks, numpy_tasks
from perf.micro.inputs import Inputs
from perf.micro.scene import KERNELS
from perf.micro.task import Task, repeated

TINY = Effort(kernel_s=0.001)


def run(measure: str, contender: str) -> Outcome:
    scene = KERNELS.narrowed((measure,), (contender,))
    (outcome,) = bench.run([scene], TINY, 1, bench.Watch()).outcomes
    return outcome


@pytest.mark.parametrize(
    ("measure", "contender"),
    [(measure.name, name) for measure in KERNELS.measures for name in measure.contenders],
)
def test_every_contender_comes_to_the_same_and_is_timed(measure: str, contender: str) -> None:
    outcome = run(measure, contender)
    assert outcome.status is Status.MEASURED, outcome.why_not
    assert outcome.reading is not None
    assert outcome.reading.value > 0


def test_contender_that_comes_to_something_else_has_no_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(inputs: Inputs) -> dict[str, Task]:
        return {"split": Task(repeated(list), list)}

    monkeypatch.setattr(numpy_tasks, "tasks", wrong)
    outcome = run("split", "numpy")
    assert (outcome.status, outcome.reading) == (Status.FAILED, None)
    assert outcome.why_not == "it does not come to the same as loden"


def test_library_that_is_not_installed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dpkt", None)
    monkeypatch.delitem(sys.modules, dpkt_tasks.__name__)
    outcome = run("parse", "dpkt")
    assert outcome.status is Status.SKIPPED
    assert outcome.why_not == "there is no module dpkt: pip install 'loden[perf]'"
