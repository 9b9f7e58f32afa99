"""The state of a download: what is known of the file, its partial file, its hash, its check."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.errors import Cause, DigestError, SourceError, TooLargeError
from jobs.formats import magic
from jobs.model import Digest
from jobs.runtime.progress import Progress
from jobs.transfer.ordered_bytes import Listener
from jobs.transfer.partial_file import PartialFile, RunningHash
from jobs.transfer.ranges import Range, Ranges
from jobs.transfer.responses import StartOver
from jobs.transfer.target import Received, Target, quoted_url

log = logging.getLogger(__package__)

SMALL = 8 << 20  # bytes; up to this size a file takes one request and is not hashed in a thread
_HEAD = 1 << 16  # bytes that are passed to ``expect``
# A file that is read once, while it arrives, is not stored if all of it arrives in this time
# (seconds), which is what an interruption costs then.
_FAST_S = 60.0
_SAMPLE = 64 << 20  # bytes after which its rate is known, but at least this share of the file:
_SAMPLE_SHARE = 16
_IN_MEMORY = 128 << 20  # bytes of it that may wait to be read
_AGAIN = 2  # how often a wrong file is downloaded again


def changing(name: str) -> SourceError:
    """The error for a file that is replaced while it is downloaded."""
    return SourceError(
        f"{name}: the file is changing at its source during the download; run `resume` once it no "
        "longer changes, or pin a revision; if only the ETags of its servers differ, launch with "
        "its digest (--sha256)",
        cause=Cause.CHANGED,
    )


def replaced(name: str) -> SourceError:
    """The error for a file that is not the one of the launch."""
    return SourceError(
        f"{name}: the file was replaced after the launch; launch again, or, if only the ETags of "
        "its servers differ, launch with its digest (--sha256)",
        cause=Cause.CHANGED,
    )


class DownloadState:
    """The state of one fetch; call ``load`` first. Parameters are those of ``Transfer.fetch``."""

    def __init__(
        self,
        progress: Progress,
        resolve: Callable[[], Target],
        out: Path,
        name: str,
        size: int | None,
        digest: Digest | None,
        expect: Callable[[bytes], None] | None,
        arrivals: Listener | None,
        most: int | None,
        version: str | None,
    ) -> None:
        self.resolve = resolve
        self.name = quoted_url(name)
        self.published_size = size
        self.size = size
        self.digest = digest  # the published one, or the server's
        self.version = None if digest is not None else version  # that responses must have
        self.fresh = False  # after a wrong file: bypass caches
        self.trusts_validators = True
        self.ranged = True  # whether the server supports ranges, as far as known
        self.ranges_work = False  # whether the server has returned one
        self.may_be_page = magic.is_page_name(name)
        self._arrivals = arrivals or Listener()
        self._window = self._arrivals.window
        self.partial = PartialFile(out, self._window)
        self._progress = progress
        self._published = digest
        self._expect = expect
        self._most = most
        self._is_checked = False  # whether the first bytes were accepted
        self._starts = 0
        self._frontier: RunningHash | None = None
        self._began = time.monotonic()
        self._earlier = 0  # bytes of an earlier attempt
        self._is_rated = False  # whether it was found whether the file arrives fast

    def load(self) -> None:
        """Continue the partial file, unless it is of another version."""
        known = self.partial.identity
        if known is not None and self._published is not None and known.digest != self._published:
            known = None
        if known is not None and self.published_size not in (None, known.size):
            known = None
        if known is None:
            self.partial.start_over()
        else:
            self.size = known.size
            self.digest = self._published or known.digest
            self.partial.identify(known)
            try:
                self.check_head()
            except StartOver:
                self.partial.start_over()
            self._earlier = self.partial.total
            self._progress.add(bytes=self._earlier, earlier=True)
        self._arrivals.begin(self.partial.fd)
        self._report()

    def check_head(self, *, is_complete: bool = False) -> None:
        """Pass the first bytes to ``expect``, once there are enough or the file is complete.

        Raises ``StartOver`` with its error if they are wrong.
        """
        enough = _HEAD if self.size is None else min(_HEAD, self.size)
        if self._is_checked or not (is_complete or self.partial.prefix >= enough > 0):
            return
        head = memoryview(bytearray(min(_HEAD, self.partial.prefix)))
        self.partial.read_into(head, 0)
        if self._expect is not None:
            try:
                self._expect(bytes(head))
            except SourceError as error:
                raise StartOver(error) from error
        self._is_checked = True

    # Bytes ------------------------------------------------------------------------------

    def put(self, at: int, data: bytes, *, overwrites: bool) -> None:
        """Write bytes and report them; ``overwrites``: some of them may be on disk already.

        Raises ``StartOver`` if those on disk are others: then they are of another version.
        """
        self._check_size(at + len(data))
        pieces = [(at, at + len(data))]
        if overwrites:
            pieces = self.partial.missing(at, at + len(data))
            self._compare(at, data, Ranges(pieces).outside(at, at + len(data)))
        for start, stop in pieces:
            is_complete = (start, stop) == (at, at + len(data))
            piece = data if is_complete else data[start - at : stop - at]
            self._progress.add(bytes=self.partial.write(start, piece))
            self.hashing().feed(start, piece)
        self.check_head()
        self._report()
        self._use_memory()

    def _compare(self, at: int, data: bytes, there: Sequence[Range]) -> None:
        if not self.partial.is_stored:  # they may have been overwritten
            if there and not self.has_version:
                raise StartOver(changing(self.name))
            return
        for start, stop in there:
            known = memoryview(bytearray(stop - start))
            self.partial.read_into(known, start)
            if known != data[start - at : stop - at]:
                raise StartOver(changing(self.name))

    @property
    def has_version(self) -> bool:
        """Whether responses, or the digest in the end, show that the file was replaced."""
        known = self.partial.identity
        return self.digest is not None or (known is not None and bool(known.validator))

    @property
    def keeps_tail(self) -> bool:
        """Whether the file's end is fetched first, because the reader needs it before the rest."""
        return self._window is not None and self._window.kept_from is not None

    @property
    def room(self) -> int | None:
        """How many bytes may be in memory at a time; None: all are stored, however they arrive."""
        return _IN_MEMORY if self._window is not None and self._window.is_all else None

    def has_room(self, start: int, stop: int) -> bool:
        """Whether these bytes may be written; False until others are read and hashed.

        Raises ``SourceError`` if nobody reads any more.
        """
        if self._window is None or self.partial.may_store(stop):
            return True
        done = min(self._arrivals.consumed(), self.hashing().hashed)
        if self.partial.memory is not None:
            return self.partial.memory.has_room(stop, done=done)
        return self._window.has_room(start, stop, done=done)

    def _use_memory(self) -> None:
        """Store what has not arrived in memory, if the file arrives fast and is read once."""
        if self._window is None or not self._window.is_all or self._is_rated or self.size is None:
            return
        arrived = self.partial.total - self._earlier
        if arrived < max(_SAMPLE, self.size // _SAMPLE_SHARE):
            return
        self._is_rated = True
        is_fast = self.size * (time.monotonic() - self._began) <= arrived * _FAST_S
        if is_fast and self.partial.use_memory(_IN_MEMORY, self._arrivals.use_memory):
            log.info("%s arrives fast, so what is left of it is extracted, not stored", self.name)

    def _check_size(self, end: int) -> None:
        size = max(end, self.size or 0)
        if self._most is not None and size > self._most:
            raise SourceError(
                f"{self.name} has {'at least ' if self.size is None else ''}{size} bytes, and "
                f"--temp-limit leaves {self._most} for it; run `resume` with a larger --temp-limit",
                cause=Cause.TOO_LARGE,
            )

    def _report(self) -> None:
        if self._is_checked:
            self._arrivals.advance(self.partial.ranges, self.size)

    @property
    def wanted(self) -> Sequence[Range]:
        """The bytes that a reader needs before all others."""
        return () if self.size is None else self._arrivals.wanted(self.size)

    def hashing(self) -> RunningHash:
        """The hash of the file, created once its size and digest are known."""
        if self._frontier is None:
            self._frontier = RunningHash(self.partial, self.digest, self.size)
            if self.size is None or self.size > SMALL:
                self._frontier.start()
        return self._frontier

    # The end ----------------------------------------------------------------------------

    def finish(self) -> Received:
        """Verify the complete file and rename it."""
        assert self.size is not None  # a complete response shows it
        self._report()
        digests = self.hashing().finish()
        want = self.digest
        if want is not None and want.algorithm not in digests:
            if not self.partial.is_stored:
                raise TooLargeError(
                    f"{self.name}: its {want.algorithm} digest was announced too late to verify a "
                    "file that is larger than --temp-limit; run `resume` with a larger one"
                )
            late = RunningHash(self.partial, want, self.size)
            digests = late.finish()
        if want is not None and digests[want.algorithm] != want:
            raise StartOver(
                DigestError(
                    f"{self.name}: the downloaded file has {digests[want.algorithm]}, but the "
                    f"published digest is {want}; the published file is damaged or was replaced "
                    "since (launch again), a proxy modifies it, or a list of digests beside it is "
                    "wrong (launch with --sha256, or --exclude the list below a prefix)"
                )
            )
        self._arrivals.finish()  # readers need not wait until it is durable
        self.partial.finish(self.size)
        return Received(self.size, digests["sha256"], verified=want is not None)

    def start_over(self, reason: StartOver) -> None:
        """Discard all bytes; raises the reason's error if that happened too often."""
        self._stop_hashing()
        self._starts += 1
        if self._starts > _AGAIN:
            self.partial.start_over()
            raise reason.error from reason
        self._progress.add(bytes=-self.partial.total)
        self.partial.start_over()
        self._is_checked = False
        self.fresh = True
        self.size, self.digest = self.published_size, self._published
        if reason.error.cause is Cause.CHANGED and self._starts == _AGAIN:
            # Mirrors may have different ETags for one file: the digest decides, or if there is
            # none, all bytes come in one response.
            self.trusts_validators = self._published is None
            self.ranged = self.ranged and (self._published is not None or self.keeps_tail)
        self._arrivals.begin(self.partial.fd)

    def close(self) -> None:
        """Release resources; after an error the partial file stays for another attempt."""
        self._stop_hashing()
        self._arrivals.fail()
        self.partial.close()

    def _stop_hashing(self) -> None:
        if self._frontier is not None:
            self._frontier.stop()
            self._frontier = None
