"""Background calls: in order, few at a time, and abandoned at once."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from jobs.runtime import background


def test_answers_keep_the_order_of_the_questions_and_few_are_asked_at_once() -> None:
    asking: list[int] = []
    most: list[int] = []

    def function(number: int) -> int:
        asking.append(number)
        most.append(len(asking))
        time.sleep(0.001 * (10 - number))
        asking.remove(number)
        return number * 2

    assert background.map_interruptible(function, range(10), 3) == [n * 2 for n in range(10)]
    assert max(most) <= 3


def test_an_error_is_raised_here_and_ends_the_questions() -> None:
    asked: list[int] = []

    def function(number: int) -> None:
        asked.append(number)
        time.sleep(0.001)
        raise LookupError(number)

    with pytest.raises(LookupError):
        background.map_interruptible(function, range(1000), 1)
    assert len(asked) < 1000


@pytest.mark.usefixtures("default_sigint")
def test_ctrl_c_takes_effect_while_a_response_is_awaited() -> None:
    never = threading.Event()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        background.call_interruptible(lambda: never.wait(30))
    assert time.monotonic() - begun < 20
    never.set()


def test_who_asks_may_leave_and_an_answer_that_comes_late_is_dropped() -> None:
    leave, dropped = threading.Event(), threading.Event()
    late: list[str] = []

    def check() -> None:
        raise LookupError

    def function() -> str:
        leave.wait(30)
        return "late"

    def drop(answer: str) -> None:
        late.append(answer)
        dropped.set()

    with pytest.raises(LookupError):
        background.call_interruptible(function, check=check, drop=drop)
    assert late == []
    leave.set()
    assert dropped.wait(30)
    assert late == ["late"]
