"""Distributes the missing ranges of a file to connections."""

from __future__ import annotations

import logging
import threading

from jobs.transfer.download_state import SMALL, DownloadState
from jobs.transfer.range_request import RangeRequest
from jobs.transfer.ranges import Range, Ranges, next_piece
from jobs.transfer.rate_limits import LOGGED_S, LONGEST_WAIT_S, backoff_s
from jobs.transfer.responses import NoRanges, RetryLater, WrongRange
from jobs.transfer.session import FileFinished, TransferSession
from jobs.transfer.target import Target

log = logging.getLogger(__name__)

_PROBE = 4 << 20  # bytes of the first request, if the size is unknown
_PROGRESS = 1 << 16  # bytes since the last failure that reset the count of failures
_MOST_SAME = 4  # responses that are wrong at one byte, without progress in between
_MOST_WRONG_RANGES = 2  # wrong responses to Range in a row until ranges are not used any more


class RangeScheduler:
    """Fetches the missing ranges of one file.

    The calling thread makes the first request; once a response shows that ranges work, helper
    threads fetch others. An error that is not retried ends the download, in whichever thread.
    """

    def __init__(self, shared: TransferSession, state: DownloadState, *, streaming: bool) -> None:
        self.shared = shared
        self.state = state
        self.partial = state.partial
        self._streaming = streaming
        self._file = next(shared.files)
        self._todo = Ranges()
        self._working = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self._known = False  # whether a response has identified the file
        self._helpers: list[threading.Thread] = []
        self._wrong_ranges = 0
        self._target: Target | None = None  # after redirects, for the next range

    def run(self) -> None:
        """Return once the file is complete; raises the error that ended the download."""
        size = self.state.size
        try:
            if self._streaming:
                self._stream()
            else:
                stop = _PROBE if size is None else size
                for piece in self.partial.missing(0, stop):
                    self._todo.add(*piece)
                self._work(leads=True)
        finally:
            self._ended = True
            for helper in self._helpers:
                helper.join()

    def is_done(self) -> bool:
        """Whether the file is complete or has failed."""
        return self._ended

    # Pieces -----------------------------------------------------------------------------

    def _take(self, *, leads: bool) -> Range | None:
        """The next range; None once the file is complete. Waits while others may return ranges.

        Raises ``NoRanges`` if the server reports no size.
        """
        with self._changed:
            while True:
                self.shared.check(self.is_done)
                if self._error is not None:
                    raise self._error if leads else FileFinished
                # Nothing is known of the file before the first response, except of one whose
                # tail has to be stored before anything else.
                wanted = self.state.wanted if self._known or self.state.keeps_tail else ()
                piece = next_piece(self._todo, self._share(), wanted, self.state.room)
                if piece is not None and (
                    not self._known or self.state.has_room(piece[0], piece[0])
                ):
                    self._todo.remove(*piece)
                    self._working += 1
                    return piece
                if piece is None and not self._working:
                    if self.state.size is None:
                        raise NoRanges  # only the end of a complete response shows the size
                    return None
                self._changed.wait(0.1)

    def _share(self) -> int:
        size = self.state.size
        return 1 if size is not None and size <= SMALL else self.shared.connections

    def _give_back(self, piece: Range | None) -> None:
        with self._changed:
            self._working -= 1
            # A server without ranges sends more than the range.
            for start, stop in self.partial.ranges:
                self._todo.remove(start, stop)
            size = self.state.size
            if size is not None:  # perhaps only since the end of a response without a length
                self._todo.remove(size, max(size, _PROBE))
            if piece is not None:
                # The first range was a guess: the file may end within it.
                end = piece[1] if size is None else min(piece[1], size)
                for start, stop in self.partial.missing(piece[0], end):
                    self._todo.add(start, stop)
            self._changed.notify_all()

    def _on_response(self, size: int | None, ranged: bool) -> None:
        """Handle a correct response: the size is known, and helpers may start."""
        with self._changed:
            self._wrong_ranges = 0
            if self._known:
                return
            self._known = True
            if size is not None and self.state.size is None:
                self.state.size = size
                self._todo.remove(size, max(size, _PROBE))
                for start, stop in self.partial.missing(min(_PROBE, size), size):
                    self._todo.add(start, stop)
            self.state.hashing()
            if ranged and len(self._todo):
                self._start_helpers()

    def _start_helpers(self) -> None:
        pieces = -(-self._todo.total // (4 << 20))
        for _ in range(min(self.shared.connections - 1, pieces)):
            helper = threading.Thread(target=self._help, name="fetch", daemon=True)
            self._helpers.append(helper)
            helper.start()

    def _help(self) -> None:
        try:
            self._work(leads=False)
        except FileFinished:
            pass
        except BaseException as error:  # noqa: BLE001 (the leader raises it)
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    # Attempts ---------------------------------------------------------------------------

    def _work(self, *, leads: bool) -> None:
        retries = _RetryPolicy(self, leads=leads)
        while (piece := self._take(leads=leads)) is not None:
            failure: RetryLater | None = None
            try:
                with self.shared.slot(self._file, self.is_done):
                    self._attempt(piece)
            except RetryLater as error:
                failure = error
            finally:
                self._give_back(piece)
            if failure is not None:
                retries.after(failure)

    def _attempt(self, piece: Range | None) -> None:
        resolved = self._target
        try:
            self._target = RangeRequest(
                self.shared,
                self.state,
                piece,
                resolved,
                is_done=self.is_done,
                on_response=self._on_response,
            ).run()
        except RetryLater as error:
            self._target = None  # request a new address
            if isinstance(error, WrongRange) and piece is not None:
                with self._changed:
                    self._wrong_ranges += 1
                    if self._wrong_ranges >= _MOST_WRONG_RANGES:
                        raise NoRanges from error
            raise

    def _stream(self) -> None:
        """Fetch the complete file over one connection; existing bytes are not written again."""
        retries = _RetryPolicy(self, leads=True)
        while True:
            try:
                with self.shared.slot(self._file, self.is_done):
                    self._attempt(None)
                return
            except RetryLater as error:
                retries.after(error)


class _RetryPolicy:
    """Decides how often a connection tries again, and how long it waits.

    The count of failures starts again after ``_PROGRESS`` bytes of the file. ``leads``: of the
    calling thread's connection, the only one that gives up.
    """

    def __init__(self, scheduler: RangeScheduler, *, leads: bool) -> None:
        self._scheduler = scheduler
        self._leads = leads
        self._failures = 0
        self._wrong_at: list[int] = []  # where the last failures were, if all at one byte
        self._had = scheduler.partial.total

    def after(self, failure: RetryLater) -> None:
        """Wait before the next attempt; raises the failure's error if there is no other."""
        shared = self._scheduler.shared
        have = self._scheduler.partial.total
        shared.check(self._scheduler.is_done)
        if have - self._had >= _PROGRESS:
            self._failures, self._wrong_at = 0, []
        self._had = have
        self._failures += 1
        wait_s = failure.wait_s
        hopeless = self._is_hopeless(failure) or (wait_s or 0) > LONGEST_WAIT_S
        if self._leads and (hopeless or self._failures >= shared.tries):
            raise failure.error from failure
        # After progress a broken connection is tried again at once.
        wait = backoff_s(self._failures, shared.backoff_s) * (0.1 if self._failures == 1 else 1)
        if wait_s is not None:
            wait += min(wait_s, LONGEST_WAIT_S)
        if self._leads and wait >= LOGGED_S:
            log.info("%s (trying again in %.0f s)", failure.error.message, wait)
        shared.pause(wait, self._scheduler.is_done)

    def _is_hopeless(self, failure: RetryLater) -> bool:
        """Whether the server gives the same wrong response again and again."""
        at = failure.wrong_at
        self._wrong_at = [one for one in self._wrong_at if one == at]
        if at is not None:
            self._wrong_at.append(at)
        return len(self._wrong_at) >= _MOST_SAME
