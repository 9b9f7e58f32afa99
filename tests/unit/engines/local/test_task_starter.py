"""The process that starts tasks: started ahead, taken once, and what it says when it fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.errors import Cause, EngineError
from orchestrator.engines.local import starter_process
from orchestrator.engines.local.task_starter import TaskStarter


def _children() -> set[str]:
    me = os.getpid()
    return set(Path(f"/proc/{me}/task/{me}/children").read_text(encoding="ascii").split())


@pytest.mark.slow
def test_a_starter_that_was_started_ahead_is_taken_once() -> None:
    before = _children()
    with starter_process.started_ahead([]):
        (ahead,) = _children() - before
        first = TaskStarter(starter_process.take())
        assert _children() - before == {ahead}
        second = TaskStarter(starter_process.take())
        assert len(_children() - before) == 2
    assert ahead in _children()  # it belongs to whoever took it
    first.close()
    second.close()
    assert _children() == before


def test_a_starter_that_was_killed_meanwhile_is_replaced() -> None:
    before = _children()
    with starter_process.started_ahead([]):
        (ahead,) = _children() - before
        os.kill(int(ahead), signal.SIGKILL)
        os.waitid(os.P_PID, int(ahead), os.WEXITED | os.WNOWAIT)
        process = starter_process.take()
    assert process.poll() is None and ahead not in _children()
    TaskStarter(process).close()


def test_a_starter_that_nobody_takes_is_ended() -> None:
    before = _children()
    with starter_process.started_ahead([]):
        assert len(_children() - before) == 1
    assert _children() == before


@pytest.fixture
def start(tmp_path: Path) -> Callable[[TaskStarter], object]:
    def start(starter: TaskStarter) -> object:
        log = tmp_path / "log"
        return starter.start(folder=tmp_path, cwd=tmp_path, stdout=log, stderr=log, environment={})

    return start


def test_the_last_line_of_a_starter_that_fails_is_in_the_error(
    start: Callable[[TaskStarter], object],
) -> None:
    starter = TaskStarter(starter_process.start(["jobs.no_such_module"]))
    with pytest.raises(EngineError, match=r"ModuleNotFoundError.*jobs\.no_such_module") as caught:
        start(starter)
    assert caught.value.cause is Cause.LAUNCH_FAILED
    starter.close()
