"""Questions that are asked aside, in threads that nobody has to wait for."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_TICK_S = 0.1


def call_interruptible(
    ask: Callable[[], R],
    *,
    check: Callable[[], None] = lambda: None,
    drop: Callable[[R], object] = lambda _: None,
) -> R:
    """What ``ask`` returns or raises; Ctrl-C is heard at once, whatever ``ask`` is waiting for.

    ``check`` is called meanwhile, and may raise to end the wait. Nobody waits for the thread then:
    it ends by itself, and ``drop`` gets an answer that comes too late.
    """
    answer: Future[R] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001  # raised again by who asked
            answer.set_exception(error)

    def late(_: Future[R]) -> None:
        if answer.exception() is None:
            drop(answer.result())

    threading.Thread(target=work, name="ask", daemon=True).start()
    try:
        # A wait without an end has been seen to sleep through a signal that came as threads began.
        while not wait([answer], _TICK_S).done:
            check()
    except BaseException:
        answer.add_done_callback(late)
        raise
    return answer.result()


def map_interruptible(ask: Callable[[T], R], items: Sequence[T], most: int) -> list[R]:
    """``ask`` of each item, in their order, ``most`` at a time; raises what one of them raised.

    An executor's threads would be waited for when Ctrl-C came, and again when Python ends: a silent
    server holds each of them for minutes, a silent name server the main thread itself.
    """
    left = deque(enumerate(items))
    answers: queue.SimpleQueue[tuple[int, R | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            try:
                index, item = left.popleft()
            except IndexError:
                return
            try:
                answers.put((index, ask(item), None))
            except BaseException as error:  # noqa: BLE001  # raised again by who asked
                answers.put((index, None, error))

    for _ in range(min(most, len(items))):
        threading.Thread(target=work, name="ask", daemon=True).start()
    found: dict[int, R] = {}
    try:
        while len(found) < len(items):
            index, answer, error = answers.get()
            if error is not None:
                raise error
            found[index] = answer  # type: ignore[assignment]
    finally:
        left.clear()  # who still asks ends with the question in hand
    return [found[index] for index in range(len(items))]
