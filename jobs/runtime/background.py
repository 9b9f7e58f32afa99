"""Calls blocking functions in background threads, which an interrupt can abandon."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_TICK_S = 0.1


def started(function: Callable[[], R]) -> Future[R]:
    """Call ``function`` in a thread; if nobody waits for the result, the thread ends by itself."""
    answer: Future[R] = Future()

    def work() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:  # noqa: BLE001  # raised again by whoever waits
            answer.set_exception(error)

    threading.Thread(target=work, name="ask", daemon=True).start()
    return answer


def call_interruptible(
    function: Callable[[], R],
    *,
    check: Callable[[], None] = lambda: None,
    drop: Callable[[R], object] = lambda _: None,
) -> R:
    """Call ``function`` in a thread and wait for its result; Ctrl-C ends the wait at once.

    ``check`` is called while waiting, and may raise to end the wait. Then the thread is abandoned:
    it ends by itself, and ``drop`` is called with a result that comes too late.
    """
    answer = started(function)

    def late(_: Future[R]) -> None:
        if answer.exception() is None:
            drop(answer.result())

    try:
        # A wait without a timeout was seen to miss a signal that came while threads started.
        while not wait([answer], _TICK_S).done:
            check()
    except BaseException:
        answer.add_done_callback(late)
        raise
    return answer.result()


def map_interruptible(function: Callable[[T], R], items: Sequence[T], most: int) -> list[R]:
    """``function`` of each item, in order, ``most`` at a time; raises what one of the calls raised.

    An executor would wait for its threads at Ctrl-C and again at the end of Python: a server that
    does not respond blocks each of them for minutes.
    """
    left = deque(enumerate(items))
    found: dict[int, R] = {}

    def work() -> None:
        while True:
            try:
                index, item = left.popleft()
            except IndexError:
                return
            found[index] = function(item)

    threads = {started(work) for _ in range(min(most, len(items)))}
    try:
        while threads:
            done, threads = wait(threads, _TICK_S, FIRST_COMPLETED)
            for each in done:
                each.result()
    finally:
        left.clear()  # the threads end after their current call
    return [found[index] for index in range(len(items))]
