"""Forked processes that share work; threads would wait for the interpreter's lock."""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

from jobs import rlimits
from jobs.errors import Cause, OrchestrateError
from jobs.runtime.process import end_with
from jobs.runtime.progress import Progress

T = TypeVar("T")
Send = Callable[[Any], None]

_LENGTH = 8  # bytes before each message
_NUMBER = 4  # bytes of the number of a piece of work
_AT_ONCE = 1000  # pieces of work, whose numbers fit into any pipe (a page at least)


class LostError(OrchestrateError):
    """A forked process ended without a message, usually because it was killed."""

    cause = Cause.KILLED


class Fork:
    """A forked process that runs ``work``, which may send values that can be pickled."""

    def __init__(self, work: Callable[[Send], object]) -> None:
        import ctypes  # noqa: F401  # for ``end_with``: in each child it would take 2 ms

        read, write = os.pipe()
        parent = os.getpid()
        with warnings.catch_warnings():
            # Python 3.12 warns if there are threads; the child uses no locks of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                self.pid = os.fork()
            except OSError:
                os.close(read)
                os.close(write)
                raise
        if self.pid == 0:
            os.close(read)
            _run(work, write, parent)
        os.close(write)
        self.pipe = read
        self._rest = bytearray()

    def received(self) -> tuple[list[Any], bool]:
        """The values sent since the last call, and whether the pipe is closed; waits for either."""
        data = os.read(self.pipe, 1 << 20)
        self._rest += data
        values, at = [], 0
        while len(self._rest) - at >= _LENGTH:
            end = at + _LENGTH + int.from_bytes(self._rest[at : at + _LENGTH], "little")
            if len(self._rest) < end:
                break
            values.append(pickle.loads(self._rest[at + _LENGTH : end]))  # our own
            at = end
        del self._rest[:at]
        return values, not data

    def end(self) -> None:
        """Kill the process if it is running, and reap it."""
        os.close(self.pipe)
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)


class _Ended:
    """The last value of a process that did all of its work."""


def _run(work: Callable[[Send], object], out: int, parent: int) -> None:
    """The child's main function; never returns."""
    code = 1
    try:
        end_with(parent, signal.SIGKILL)
        with os.fdopen(out, "wb") as pipe:

            def send(value: object) -> None:
                data = pickle.dumps(value)
                pipe.write(len(data).to_bytes(_LENGTH, "little") + data)
                pipe.flush()

            try:
                work(send)
                send(_Ended())
            except Exception as error:  # noqa: BLE001  # raised again in the parent
                send(error)
        code = 0
    finally:
        os._exit(code)


def gather(forks: Sequence[Fork], progress: Progress) -> Generator[Any, None, None]:
    """The values that any of ``forks`` sends, until all have ended; always ends them.

    Raises what a process raised, ``LostError`` if one was killed, ``Stopped`` if ``progress`` is
    stopped.
    """
    try:
        with selectors.DefaultSelector() as selector:
            for fork in forks:
                selector.register(fork.pipe, selectors.EVENT_READ, fork)
            while selector.get_map():
                progress.check()
                for key, _ in selector.select(timeout=1.0):
                    values, is_closed = key.data.received()
                    for value in values:
                        if isinstance(value, Exception):
                            raise value
                        if isinstance(value, _Ended):
                            selector.unregister(key.fileobj)
                        else:
                            yield value
                    if is_closed and key.fd in selector.get_map():
                        raise LostError(
                            "one of its processes was killed, most likely because memory ran out; "
                            f"try again with more memory{rlimits.may_be_why()}"
                        )
    finally:
        for fork in forks:
            fork.end()


def grouped(weights: Sequence[int], least: int) -> list[range]:
    """Groups of consecutive indices of ``weights``, each of that total weight or slightly more."""
    groups, start, total = [], 0, 0
    for place, weight in enumerate(weights):
        total += weight
        if total >= least:
            groups.append(range(start, place + 1))
            start, total = place + 1, 0
    if start < len(weights):
        groups.append(range(start, len(weights)))
    return groups


def shared(
    work: Sequence[Callable[[], T]], *, workers: int, progress: Progress
) -> Generator[T, None, None]:
    """What each piece of ``work`` returns, in their order.

    With one worker, or one piece, the pieces are called here, else in forked processes, which take
    the next piece when they have finished one: fewer than ``workers``, or again here, if a limit
    on processes allows no more. Raises as ``gather`` does.
    """
    if min(workers, len(work)) < 2:
        yield from (piece() for piece in work)
        return
    for start in range(0, len(work), _AT_ONCE):
        yield from _in_forks(work[start : start + _AT_ONCE], workers, progress)


def _in_forks(work: Sequence[Callable[[], T]], workers: int, progress: Progress) -> Iterator[T]:
    # A pipe is a queue that processes can share: reading a few bytes of it is atomic.
    queue, fill = os.pipe()
    try:
        with os.fdopen(fill, "wb") as numbers:
            numbers.write(b"".join(n.to_bytes(_NUMBER, "little") for n in range(len(work))))

        def take(send: Send) -> None:
            while number := os.read(queue, _NUMBER):
                place = int.from_bytes(number, "little")
                send((place, work[place]()))

        forks: list[Fork] = []
        try:
            while len(forks) < min(workers, len(work)):
                forks.append(Fork(take))
        except OSError:
            pass  # a limit on processes
        if not forks:
            yield from (piece() for piece in work)
            return
        early: dict[int, T] = {}
        due = 0
        with closing(gather(forks, progress)) as messages:
            for place, value in messages:
                early[place] = value
                while due in early:
                    yield early.pop(due)
                    due += 1
    finally:
        os.close(queue)


def one_each(
    work: Iterable[tuple[Callable[[], T], int]], *, workers: int, memory: int, progress: Progress
) -> Generator[T, None, None]:
    """What each piece of ``work`` returns, in their order, from a forked process for each piece.

    A piece comes with the bytes that it needs. It is begun when fewer than ``workers`` are running,
    and these need at most ``memory`` with it; the next one is prepared here in the meantime. It is
    called here if a limit on processes allows no other. Raises as ``gather`` does.
    """
    running: deque[tuple[Fork, int]] = deque()

    def first() -> T:
        (value,) = gather([running.popleft()[0]], progress)
        result: T = value
        return result

    try:
        for piece, size in work:
            while running and (len(running) == workers or _total(running) + size > memory):
                yield first()
            try:
                running.append((Fork(partial(_send, piece)), size))
            except OSError:  # a limit on processes
                while running:
                    yield first()
                yield piece()
        while running:
            yield first()
    finally:
        for fork, _ in running:
            fork.end()


def _send(piece: Callable[[], object], send: Send) -> None:
    send(piece())


def _total(running: Iterable[tuple[Fork, int]]) -> int:
    return sum(size for _, size in running)
