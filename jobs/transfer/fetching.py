"""One file from its first request to its name: rounds, attempts, and the verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.errors import Cause, DigestError, SourceError
from jobs.model import Digest
from jobs.transfer.answers import NoRanges, StartOver
from jobs.transfer.arrivals import Arrivals
from jobs.transfer.hashing import Frontier
from jobs.transfer.partial import Identity, Partial
from jobs.transfer.pieces import SMALL, Round
from jobs.transfer.target import Received, Target, shown
from jobs.transfer.transfer import Transfer

_HEAD = 1 << 16  # bytes that ``expect`` gets
_AGAIN = 2  # how often a file that is wrong is fetched anew


class Fetch:
    """The state of one fetch; ``run`` does it. Parameters are those of ``Transfer.fetch``."""

    def __init__(
        self,
        shared: Transfer,
        resolve: Callable[[], Target],
        out: Path,
        name: str,
        size: int | None,
        digest: Digest | None,
        expect: Callable[[bytes], None] | None,
        arrivals: Arrivals | None,
    ) -> None:
        self.shared = shared
        self.resolve = resolve
        self.name = shown(name)
        self.published_size = size
        self.published = digest
        self.size = size
        self.digest = digest  # the published one, or the server's own
        self.arrivals = arrivals
        self.fresh = False  # after a wrong file: no cache shall answer
        self.trusts_validators = True
        self.ranged = True
        self._expect = expect
        self._out = out
        self._starts = 0
        self.frontier: Frontier | None = None

    def run(self) -> Received:
        """Fetch, verify, name; what is there on an error stays for another time."""
        self.partial = Partial(self._out)
        try:
            self._take_up()
            while True:
                try:
                    return self._round()
                except StartOver as reason:
                    self._start_over(reason)
        finally:
            if self.arrivals is not None:
                self.arrivals.fail()
            self.partial.close()

    def _take_up(self) -> None:
        """Go on from what is there, unless it is of another file."""
        known = self.partial.identity
        if known is not None and self.published is not None and known.digest != self.published:
            known = None
        if known is not None and self.published_size not in (None, known.size):
            known = None
        if known is None:
            self.partial.start_over()
        else:
            self.size = known.size
            self.digest = self.published or known.digest
            self.partial.identify(known)
            if self.partial.prefix:
                head = memoryview(bytearray(min(_HEAD, self.partial.prefix)))
                self.partial.read_into(head, 0)
                try:
                    self.expect(bytes(head))
                except StartOver:
                    self.partial.start_over()
            self.shared.progress.add(bytes=self.partial.ranges.total)
        if self.arrivals is not None:
            self.arrivals.begin(self.partial.fd)
            self.arrivals.advance(self.partial.prefix)

    def expect(self, head: bytes) -> None:
        """Let the caller judge the first bytes; ``StartOver`` with its error if they are wrong."""
        if self._expect is not None:
            try:
                self._expect(head[:_HEAD])
            except SourceError as error:
                raise StartOver(error) from error

    def _round(self) -> Received:
        try:
            self._bring()
            size = self.partial.ranges.total if self.size is None else self.size
            if size == 0:
                self.expect(b"")
            digests = self.hashing().finish()
            return self._judge(size, digests)
        finally:
            if self.frontier is not None:
                self.frontier.stop()
                self.frontier = None

    def _bring(self) -> None:
        """Have every byte there, in ranges if the server does them rightly."""
        if self.ranged:
            try:
                Round(self, streaming=False).run()
                return
            except NoRanges:
                self.ranged = False
        Round(self, streaming=True).run()

    def hashing(self) -> Frontier:
        """The hasher of this round, begun once what is known of the file is known."""
        if self.frontier is None:
            self.frontier = Frontier(self.partial, self.digest, self.size)
            if self.size is None or self.size > SMALL:
                self.frontier.start()
        return self.frontier

    def _judge(self, size: int, digests: dict[str, Digest]) -> Received:
        want = self.digest
        if want is not None and want.algorithm not in digests:
            late = Frontier(self.partial, want, size)
            digests = late.finish()
        if want is not None and digests[want.algorithm] != want:
            raise StartOver(
                DigestError(
                    f"{self.name}: the bytes that arrived have {digests[want.algorithm]}, the "
                    f"published ones {want}; what is published is damaged, or something on the "
                    "way changes it"
                )
            )
        self.partial.finish(size)
        if self.arrivals is not None:
            self.arrivals.finish()
        return Received(size, digests["sha256"], verified=want is not None)

    def identify(self, identity: Identity) -> None:
        """Say in the sidecar what file this is."""
        if self.partial.identity != identity:
            self.partial.identify(identity)

    def _start_over(self, reason: StartOver) -> None:
        self._starts += 1
        if self._starts > _AGAIN:
            self.partial.start_over()
            raise reason.error from reason
        self.shared.progress.add(bytes=-self.partial.ranges.total)
        self.partial.start_over()
        self.fresh = True
        self.size, self.digest = self.published_size, self.published
        if reason.error.cause is Cause.CHANGED and self.published is not None:
            # Mirrors of one file may each have an ETag of their own; the digest decides.
            self.trusts_validators = self._starts < _AGAIN
        if self.arrivals is not None:
            self.arrivals.begin(self.partial.fd)
