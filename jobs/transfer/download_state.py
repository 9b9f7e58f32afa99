"""A file in the making: what is known of it, what is there of it, its hash, the verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.errors import Cause, DigestError, SourceError
from jobs.formats import magic
from jobs.model import Digest
from jobs.transfer.ordered_bytes import Listener
from jobs.transfer.partial_file import FileVersion, PartialFile, RunningHash
from jobs.transfer.responses import StartOver
from jobs.transfer.session import TransferProgress
from jobs.transfer.target import Received, Target, quoted_url

SMALL = 8 << 20  # bytes: so much takes one request, is hashed in passing, and may be lost whole
_HEAD = 1 << 16  # bytes that ``expect`` gets
_AGAIN = 2  # how often a file that is wrong is fetched anew


class DownloadState:
    """What one fetch knows; ``take_up`` begins it. Parameters are those of ``Transfer.fetch``."""

    def __init__(
        self,
        progress: TransferProgress,
        resolve: Callable[[], Target],
        out: Path,
        name: str,
        size: int | None,
        digest: Digest | None,
        expect: Callable[[bytes], None] | None,
        arrivals: Listener | None,
        most: int | None = None,
    ) -> None:
        self.resolve = resolve
        self.name = quoted_url(name)
        self.published_size = size
        self.size = size
        self.digest = digest  # the published one, or the server's own
        self.fresh = False  # after a wrong file: no cache shall answer
        self.trusts_validators = True
        self.ranged = True  # as far as its server has shown
        self.may_be_page = magic.is_page_name(name)
        self.partial = PartialFile(out)
        self._progress = progress
        self._published = digest
        self._expect = expect
        self._arrivals = arrivals
        self._most = most
        self._judged = False  # the first bytes, and well
        self._starts = 0
        self._frontier: RunningHash | None = None

    def take_up(self) -> None:
        """Go on from what is there, unless it is of another file."""
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
                self._judge_head()
            except StartOver:
                self.partial.start_over()
            self._progress.add(bytes=self.partial.total)
        if self._arrivals is not None:
            self._arrivals.begin(self.partial.fd)
        self._tell()

    def _judge_head(self, *, whole: bool = False) -> None:
        """Let the caller judge the first bytes, once there are enough or the ``whole`` is there.

        ``StartOver`` with its error if they are wrong. The first bytes that arrive may be few.
        """
        enough = _HEAD if self.size is None else min(_HEAD, self.size)
        if self._judged or not (whole or self.partial.prefix >= enough > 0):
            return
        head = memoryview(bytearray(min(_HEAD, self.partial.prefix)))
        self.partial.read_into(head, 0)
        if self._expect is not None:
            try:
                self._expect(bytes(head))
            except SourceError as error:
                raise StartOver(error) from error
        self._judged = True

    def identify(self, identity: FileVersion) -> None:
        """Say in the sidecar what file this is."""
        if self.partial.identity != identity:
            self.partial.identify(identity)

    # Bytes ------------------------------------------------------------------------------

    def put(self, at: int, data: bytes, *, anew: bool) -> None:
        """Write bytes and tell everybody; ``anew``: some of them may be there already."""
        self._check_room(at + len(data))
        pieces = [(at, at + len(data))]
        if anew:
            pieces = self.partial.missing(at, at + len(data))
        for start, stop in pieces:
            whole = (start, stop) == (at, at + len(data))
            piece = data if whole else data[start - at : stop - at]
            self._progress.add(bytes=self.partial.write(start, piece))
            self.hashing().feed(start, piece)
        self._judge_head()
        self._tell()

    def _check_room(self, end: int) -> None:
        size = max(end, self.size or 0)
        if self._most is not None and size > self._most:
            raise SourceError(
                f"{self.name} has {'at least ' if self.size is None else ''}{size} bytes, and "
                f"--temp-limit leaves {self._most} for it; run `resume` with a larger --temp-limit",
                cause=Cause.TOO_LARGE,
            )

    def _tell(self) -> None:
        if self._arrivals is not None and self._judged:
            self._arrivals.advance(self.partial.prefix)

    def hashing(self) -> RunningHash:
        """The hasher of these bytes, begun once what is known of the file is known."""
        if self._frontier is None:
            self._frontier = RunningHash(self.partial, self.digest, self.size)
            if self.size is None or self.size > SMALL:
                self._frontier.start()
        return self._frontier

    # The end ----------------------------------------------------------------------------

    def finish(self) -> Received:
        """All bytes are there: verify them and give the file its name."""
        size = self.partial.total if self.size is None else self.size
        self._judge_head(whole=True)
        self._tell()
        digests = self.hashing().finish()
        want = self.digest
        if want is not None and want.algorithm not in digests:
            late = RunningHash(self.partial, want, size)
            digests = late.finish()
        if want is not None and digests[want.algorithm] != want:
            raise StartOver(
                DigestError(
                    f"{self.name}: the bytes that arrived have {digests[want.algorithm]}, the "
                    f"published ones {want}; the published file is damaged, or something on the "
                    "way changes it"
                )
            )
        self.partial.finish(size)
        if self._arrivals is not None:
            self._arrivals.finish()
        return Received(size, digests["sha256"], verified=want is not None)

    def start_over(self, reason: StartOver) -> None:
        """Let go of all bytes; raises the reason's error where that was done often enough."""
        self._stop_hashing()
        self._starts += 1
        if self._starts > _AGAIN:
            self.partial.start_over()
            raise reason.error from reason
        self._progress.add(bytes=-self.partial.total)
        self.partial.start_over()
        self._judged = False
        self.fresh = True
        self.size, self.digest = self.published_size, self._published
        if reason.error.cause is Cause.CHANGED and self._published is not None:
            # Mirrors of one file may each have an ETag of their own; the digest decides.
            self.trusts_validators = self._starts < _AGAIN
        if self._arrivals is not None:
            self._arrivals.begin(self.partial.fd)

    def close(self) -> None:
        """Let go; what is there on an error stays for another time."""
        self._stop_hashing()
        if self._arrivals is not None:
            self._arrivals.fail()
        self.partial.close()

    def _stop_hashing(self) -> None:
        if self._frontier is not None:
            self._frontier.stop()
            self._frontier = None
