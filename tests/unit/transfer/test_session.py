"""Which file gets a free connection."""

from __future__ import annotations

import queue
import threading

import pytest

from jobs.errors import Stopped
from jobs.transfer.session import ConnectionSlots

LONG_S = 60


class Waiters:
    """Threads that wait for a connection for a file; ``served`` has the files that got one."""

    def __init__(self, slots: ConnectionSlots) -> None:
        self._slots = slots
        self.served: queue.Queue[int] = queue.Queue()
        self.stopped = False

    def add(self, file: int) -> threading.Thread:
        """Start a thread; it is waiting when this returns."""
        waits = threading.Event()

        def check() -> None:
            waits.set()
            if self.stopped:
                raise Stopped("no more")

        def wait() -> None:
            try:
                self._slots.acquire(file, check)
            except Stopped:
                return
            self.served.put(file)

        thread = threading.Thread(target=wait)
        thread.start()
        assert waits.wait(LONG_S)
        return thread


def _taken(slots: ConnectionSlots, *files: int) -> None:
    for file in files:
        slots.acquire(file, lambda: None)


def test_a_free_connection_goes_to_the_file_that_was_begun_first() -> None:
    slots = ConnectionSlots(2)
    _taken(slots, 1, 2)
    waiters = Waiters(slots)
    for file in (5, 3, 4):
        waiters.add(file)
    order = []
    for file in (1, 2, 3):
        slots.release(file)
        order.append(waiters.served.get(timeout=LONG_S))
    assert order == [3, 4, 5]


def test_one_file_has_half_of_the_connections_while_others_wait() -> None:
    slots = ConnectionSlots(4)
    _taken(slots, 1, 1, 2, 2)
    waiters = Waiters(slots)
    for file in (1, 9):
        waiters.add(file)
    slots.release(2)
    assert waiters.served.get(timeout=LONG_S) == 9
    slots.release(2)
    assert waiters.served.get(timeout=LONG_S) == 1  # nobody else is waiting


def test_a_thread_that_gives_up_leaves_its_turn_to_others() -> None:
    slots = ConnectionSlots(1)
    _taken(slots, 1)
    quitters, others = Waiters(slots), Waiters(slots)
    quitter = quitters.add(2)
    others.add(3)
    quitters.stopped = True
    quitter.join(LONG_S)
    slots.release(1)
    assert others.served.get(timeout=LONG_S) == 3


@pytest.mark.parametrize("count", [1, 8])
def test_a_file_alone_has_all_connections(count: int) -> None:
    slots = ConnectionSlots(count)
    _taken(slots, *[1] * count)
    waiters = Waiters(slots)
    waiters.add(1)
    assert waiters.served.empty()
    slots.release(1)
    assert waiters.served.get(timeout=LONG_S) == 1
