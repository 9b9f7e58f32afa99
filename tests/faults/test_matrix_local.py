"""Kills and Ctrl-C at every kind of moment: after `resume`, the bytes of an undisturbed run.

Rows 1, 2, 36 and 37 of docs/faults.md. Each kill is in a run of its own; more of them, at the calls
between, have the marker exhaustive.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.faults.forkfaults import Fault
from tests.support.faults.matrix import Scene, killed_runs

pytestmark = pytest.mark.faults

Stage = Callable[..., Scene]
Record = Callable[[str, object], None]


@pytest.mark.parametrize(
    ("where", "first", "step", "least"),
    [
        pytest.param(
            *(where, first, step, least),
            id=f"{where}-{first}",
            marks=[pytest.mark.exhaustive] if first > 1 else [],
        )
        for where, step, least in (
            ("download", 6, 6),
            ("extract", 4, 2),
            ("extraction", 4, 4),
            ("finalize", 8, 7),  # test_publish_kill.py has kills at its calls too
        )
        for first in range(1, step + 1)
    ],
)
def test_a_task_killed_at_any_call_that_changes_a_file_is_made_good_by_resume(
    scene: Stage,
    served: tuple[str, ...],
    record_property: Record,
    where: str,
    first: int,
    step: int,
    least: int,
) -> None:
    runs = killed_runs(lambda name: scene(name, served), where, first, step)
    twice = [here.finish() for here in runs]
    record_property("kills", len(twice))
    record_property("parts submitted twice", sum(twice))
    assert len(twice) >= least


@pytest.mark.parametrize(
    ("what", "first", "step"),
    [
        pytest.param(what, first, step, marks=[pytest.mark.exhaustive] if first > 1 else [])
        for what, step in (("SIGKILL", 8), ("SIGINT", 12))
        for first in range(1, step + 1, 2)
    ],
)
def test_a_launcher_that_ends_at_any_call_leaves_a_run_to_resume_or_nothing_and_no_process(
    scene: Stage, record_property: Record, what: str, first: int, step: int
) -> None:
    ends = twice = 0
    at = first
    while True:
        here = scene(str(at))
        ended = here.launch(fault=Fault("launcher", at, what))
        if not ended.fired:
            break
        assert ended.orphans == 0
        if what == "SIGINT" and ended.rc != 130:
            assert ended.rc == 0, ended  # all had ended by then
            here.check_complete()
        ends += 1
        twice += here.finish()
        at += step
    record_property("ends", ends)
    record_property("parts submitted twice", twice)
    assert ends >= 7
