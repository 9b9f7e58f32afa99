"""One request for one piece: what to ask, whether the answer fits, and its bytes."""

from __future__ import annotations

from collections.abc import Callable

from jobs.errors import Cause, SourceError
from jobs.formats import magic
from jobs.transfer.connection import CONNECTION_ERRORS, HttpResponse, connection_error
from jobs.transfer.download_state import DownloadState
from jobs.transfer.partial_file import FileVersion
from jobs.transfer.ranges import Range
from jobs.transfer.rate_limits import LONGEST_WAIT_S, rate_limit_s
from jobs.transfer.responses import (
    MOST_CODED,
    DecodedBody,
    RetryLater,
    StartOver,
    Validator,
    WrongRange,
    content_length,
    content_range,
    encoding,
    is_page,
    published_digest,
    refused,
)
from jobs.transfer.session import TransferSession
from jobs.transfer.target import Target, redact

_PAGE_HEAD = 64  # bytes of a body that tell a page


class RangeRequest:
    """Fetches ``piece``, or the whole file over one connection where it is None.

    ``learnt(size, ranged)`` is called once the answer is known to be right, before its bytes are
    read: how many bytes the file has, if told, and whether other pieces may be asked for.
    """

    def __init__(
        self,
        shared: TransferSession,
        draft: DownloadState,
        piece: Range | None,
        landed: Target | None,
        *,
        over: Callable[[], bool],
        learnt: Callable[[int | None, bool], None],
    ) -> None:
        self._shared = shared
        self._draft = draft
        self._piece = piece
        self._landed = landed
        self._over = over
        self._learnt = learnt
        self._streaming = piece is None  # up to the end, whatever is there already
        self._begun = b""  # of the body: read to be judged, and not written yet

    def run(self) -> Target | None:
        """Returns where the next piece may be asked for without resolving anew."""
        draft, shared = self._draft, self._shared
        asked = self._landed or draft.resolve()
        site = redact(asked.url).partition("://")[2].partition("/")[0]
        if shared.pauses.left_s(site):
            shared.pause(shared.pauses.left_s(site), self._over)
        reply = shared.wire.get(
            asked, self._headers(), name=draft.name, check=lambda: shared.check(self._over)
        )
        shared.answered = True
        whole = False
        try:
            with shared.watched(reply, self._over):
                shared.check(self._over)
                self._heed(reply, asked, site)
                self._refuse_page(reply)
                start, stop = self._fit(reply)
                whole = self._receive(reply, start, stop)
        finally:
            reply.close(whole=whole)
        # Where it was redirected to, no header of ours went along; else all of them are needed.
        return Target(reply.url) if reply.redirected else asked

    def _headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "Accept": "*/*"}
        if self._draft.fresh:
            headers["Cache-Control"] = "no-cache"
        if self._piece is not None and not self._is_whole():
            start, stop = self._piece
            headers["Range"] = f"bytes={start}-{stop - 1}"
            known = self._draft.partial.identity
            if known is not None and known.validator.if_range and self._draft.trusts_validators:
                headers["If-Range"] = known.validator.if_range
        return headers

    def _is_whole(self) -> bool:
        return self._piece == (0, self._draft.size)

    # Checks -----------------------------------------------------------------------------

    def _heed(self, reply: HttpResponse, asked: Target, site: str) -> None:
        """Raise what the status means; keep away from a site whose limit is spent."""
        elsewhere = reply.redirected or asked is self._landed
        if reply.status == 403 and not elsewhere:
            elsewhere = self._draft.resolve().url != asked.url
        if reply.status == 416:
            return
        error = refused(
            reply.status,
            reply.headers,
            name=self._draft.name,
            site=reply.site,
            elsewhere=elsewhere,
        )
        wait_s = error.wait_s if isinstance(error, RetryLater) else None
        wait_s = rate_limit_s(reply.headers) if wait_s is None else wait_s
        if wait_s is not None and wait_s <= LONGEST_WAIT_S:
            self._shared.pauses.hold(site, wait_s)
        if asked is self._landed and isinstance(error, SourceError):
            raise RetryLater(
                error
            )  # a signed address may end in any refusal: see where a fresh one is
        if error is not None:
            raise error

    def _refuse_page(self, reply: HttpResponse) -> None:
        """Raise ``RetryLater`` for a web page in the file's place: a login, a proxy's notice.

        Before anything is learnt from the answer, which would be the page's size and version.
        """
        length = None if encoding(reply.headers) else content_length(reply.headers)
        is_it = length is not None and length == self._draft.published_size
        if reply.status != 200 or is_it or self._draft.may_be_page:
            return
        body = DecodedBody(reply.headers, name=self._draft.name, size=None)
        head = b""
        while len(head) < _PAGE_HEAD and (data := self._read(reply, magic.HEAD)):
            self._begun += data
            head += body.file_bytes(data)
        if magic.is_page(head, labelled=is_page(reply.headers)):
            raise RetryLater(
                SourceError(
                    f"{self._draft.name}: {reply.site} returns a web page instead of the file (a "
                    "login, or a proxy's notice?); open the address in a browser on this "
                    "machine, or try again later",
                    cause=Cause.NETWORK,
                )
            )

    def _fit(self, reply: HttpResponse) -> tuple[int, int | None]:
        """Which bytes of the file this answer holds; raises where they are not to be used."""
        if reply.status == 416:
            return self._fit_nothing(reply)
        if reply.status == 206:
            return self._fit_range(reply)
        length = None if encoding(reply.headers) else content_length(reply.headers)
        self._fit_size(reply, length)
        self._fit_version(reply)
        if self._piece is not None and not self._is_whole() and self._draft.partial.total:
            raise WrongRange(self._lie("ignored the requested range"))
        if self._piece is not None and not self._is_whole():
            self._streaming = True
        size = self._draft.size if encoding(reply.headers) else length
        self._learn(reply, size)
        return 0, size

    def _fit_nothing(self, reply: HttpResponse) -> tuple[int, int]:
        """No such range: right of an empty file, and of one that is shorter than it was."""
        told = content_range(reply.headers)
        total = told.total if told else None
        self._fit_size(reply, total)
        if total != 0 or self._draft.partial.total:
            raise WrongRange(self._lie("refused the requested range"))
        self._learnt(0, not self._streaming)
        return 0, 0

    def _fit_range(self, reply: HttpResponse) -> tuple[int, int | None]:
        told = content_range(reply.headers)
        if self._piece is None or self._is_whole():
            raise WrongRange(self._lie("sent a range that was not requested"))
        if told is None or told.start != self._piece[0] or encoding(reply.headers):
            raise WrongRange(self._lie("sent another range than requested"))
        self._fit_size(reply, told.total)
        self._fit_version(reply)
        if told.total is None and self._draft.size is None:
            raise WrongRange(self._lie("does not report the length of the file"))
        self._learn(reply, told.total)
        # A body that is shorter than its own label is short, however long it says it is: a server
        # that sends nothing would be asked for ever.
        assert told.stop is not None
        return self._piece[0], min(told.stop, self._piece[1])

    def _fit_size(self, reply: HttpResponse, told: int | None) -> None:
        """Hold the size that the answer tells against the published one, or an earlier answer's."""
        want, published = self._draft.size, self._draft.published_size
        if told is None or want is None or told == want:
            return
        error = SourceError(
            f"{self._draft.name}: {reply.site} announces {told} bytes, but {want} were "
            f"{'published' if published is not None else 'announced before'}",
            cause=Cause.CHANGED,
        )
        if published is not None:
            raise RetryLater(error)  # what is here is worth more than a passing lie
        raise StartOver(error)

    def _fit_version(self, reply: HttpResponse) -> None:
        known = self._draft.partial.identity
        if known is None or not self._draft.trusts_validators:
            return
        if known.validator.differs(Validator.of(reply.headers)):
            raise self._changed()

    def _learn(self, reply: HttpResponse, size: int | None) -> None:
        draft = self._draft
        if draft.digest is None:
            draft.digest = published_digest(reply.headers, whole=reply.status == 200)
        if draft.partial.identity is None and size is not None and not encoding(reply.headers):
            draft.identify(FileVersion(size, Validator.of(reply.headers), draft.digest))
        self._learnt(size, not self._streaming)

    def _changed(self) -> StartOver:
        return StartOver(
            SourceError(
                f"{self._draft.name}: the file is changing at its source during the download; "
                "run `resume` once it no longer changes, or pin a revision",
                cause=Cause.CHANGED,
            )
        )

    def _lie(self, fact: str) -> SourceError:
        return SourceError(f"{self._draft.name}: the server {fact}; resume later")

    # Bytes ------------------------------------------------------------------------------

    def _receive(self, reply: HttpResponse, start: int, stop: int | None) -> bool:
        """Write the body; whether all of it was read. ``stop`` None: up to its end."""
        body = DecodedBody(reply.headers, name=self._draft.name, size=stop)
        rate, at = self._shared.rate, start
        while stop is None or at < stop or body.changes:
            self._shared.check(self._over)
            most = rate.chunk
            if body.changes:
                most = min(most, MOST_CODED)
            elif stop is not None:
                most = min(most, stop - at)
            data, self._begun = self._begun or self._read(reply, most), b""
            if not data:
                break
            rate.spend(len(data), lambda s: self._shared.pause(s, self._over))
            plain = body.file_bytes(data)
            if stop is not None and at + len(plain) > stop:
                raise RetryLater(self._lie(f"sent more than the {stop} bytes that were announced"))
            self._draft.put(at, plain, anew=self._streaming)
            at += len(plain)
        self._shared.check(self._over)
        body.end()
        if stop is not None and at < stop:
            raise RetryLater(self._short(reply, stop - at))
        if self._draft.size is None and self._streaming:
            self._draft.size = at
        return True

    def _read(self, reply: HttpResponse, most: int) -> bytes:
        try:
            return reply.read(most)
        except CONNECTION_ERRORS as error:
            self._shared.check(self._over)
            raise self._broken(error, reply) from None

    def _broken(self, error: BaseException, reply: HttpResponse) -> Exception:
        stall_s = self._shared.stall_s
        return connection_error(error, name=self._draft.name, url=reply.url, stall_s=stall_s)

    def _short(self, reply: HttpResponse, count: int) -> SourceError:
        return SourceError(
            f"{self._draft.name}: {reply.site} ended the body {count} bytes early; run `resume`",
            cause=Cause.NETWORK,
        )
