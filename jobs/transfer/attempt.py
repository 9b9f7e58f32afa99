"""One request for one piece: what to ask, whether the answer fits, and its bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.errors import Cause, SourceError
from jobs.transfer.answers import (
    Again,
    StartOver,
    Validator,
    content_length,
    content_range,
    encoding,
    is_page,
    published_digest,
    refused,
)
from jobs.transfer.coding import Body
from jobs.transfer.pace import LONGEST_WAIT_S, rate_limit_s
from jobs.transfer.partial import Identity
from jobs.transfer.ranges import Range
from jobs.transfer.target import Target, redact
from jobs.transfer.wire import BROKEN, Reply, broken

if TYPE_CHECKING:
    from jobs.transfer.pieces import Round


class Attempt:
    """Fetches ``piece``, or the whole file over one connection where it is None."""

    def __init__(self, of: Round, piece: Range | None, landed: Target | None) -> None:
        self._round = of
        self._fetch = of.fetch
        self._shared = of.shared
        self._piece = piece
        self._landed = landed

    def run(self) -> Target | None:
        """Returns where the next piece may be asked for without resolving anew."""
        fetch, shared = self._fetch, self._shared
        asked = self._landed or fetch.resolve()
        site = redact(asked.url).partition("://")[2].partition("/")[0]
        if shared.pauses.left_s(site):
            shared.pause(shared.pauses.left_s(site), self._round.over)
        reply = shared.wire.get(
            asked,
            self._headers(),
            name=fetch.name,
            check=lambda: shared.check(self._round.over),
        )
        shared.answered = True
        whole = False
        try:
            with shared.watched(reply, self._round.over):
                shared.check(self._round.over)
                self._heed(reply, asked, site)
                start, stop = self._fit(reply)
                whole = self._receive(reply, start, stop)
        finally:
            reply.close(whole=whole)
        # Where it was redirected to, no header of ours went along; else all of them are needed.
        return Target(reply.url) if reply.redirected else asked

    def _headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "Accept": "*/*"}
        if self._fetch.fresh:
            headers["Cache-Control"] = "no-cache"
        if self._piece is not None and not self._is_whole():
            start, stop = self._piece
            headers["Range"] = f"bytes={start}-{stop - 1}"
            known = self._fetch.partial.identity
            if known is not None and known.validator.if_range and self._fetch.trusts_validators:
                headers["If-Range"] = known.validator.if_range
        return headers

    def _is_whole(self) -> bool:
        return self._piece == (0, self._fetch.size)

    # Checks -----------------------------------------------------------------------------

    def _heed(self, reply: Reply, asked: Target, site: str) -> None:
        """Raise what the status means; keep away from a site whose limit is spent."""
        spent = rate_limit_s(reply.headers)
        elsewhere = reply.redirected or asked is self._landed
        if reply.status == 403 and not elsewhere:
            elsewhere = self._fetch.resolve().url != asked.url
        if reply.status == 416:
            self._out_of_range(reply)
            return
        error = refused(
            reply.status,
            reply.headers,
            name=self._fetch.name,
            site=reply.site,
            elsewhere=elsewhere,
        )
        if isinstance(error, Again) and error.wait_s is not None:
            self._shared.pauses.hold(site, min(error.wait_s, LONGEST_WAIT_S))
        elif spent is not None and spent <= LONGEST_WAIT_S:
            self._shared.pauses.hold(site, spent)
        if error is not None:
            raise error

    def _out_of_range(self, reply: Reply) -> None:
        told = content_range(reply.headers)
        empty = told is not None and told.total == 0 and self._fetch.published_size in (None, 0)
        if not (empty and self._piece is not None and self._piece[0] == 0):
            raise self._changed()

    def _fit(self, reply: Reply) -> tuple[int, int | None]:
        """Which bytes of the file this answer holds; raises where they are not to be used."""
        if reply.status == 416:
            self._round.learnt(0)
            return 0, 0
        if reply.status == 206:
            return self._fit_range(reply)
        length = None if encoding(reply.headers) else content_length(reply.headers)
        self._fit_size(reply, length)
        self._fit_version(reply)
        if self._piece is not None and not self._is_whole() and self._fetch.partial.ranges.total:
            raise self._round.lied(self._lie("ignored the range that was asked for"))
        if self._piece is not None and not self._is_whole():
            self._round.streaming = True
        size = self._fetch.size if encoding(reply.headers) else length
        self._learn(reply, size)
        return 0, size

    def _fit_range(self, reply: Reply) -> tuple[int, int | None]:
        told = content_range(reply.headers)
        if self._piece is None or self._is_whole():
            raise self._round.lied(self._lie("sent a range that was not asked for"))
        if told is None or told.start != self._piece[0] or encoding(reply.headers):
            raise self._round.lied(self._lie("sent another range than was asked for"))
        self._fit_size(reply, told.total)
        self._fit_version(reply)
        self._learn(reply, told.total)
        # A body that is shorter than its own label is short, however long it says it is: a server
        # that sends nothing would be asked for ever.
        assert told.stop is not None
        return self._piece[0], min(told.stop, self._piece[1])

    def _fit_size(self, reply: Reply, told: int | None) -> None:
        """Hold the size that the answer tells against the published one, or an earlier answer's."""
        want, published = self._fetch.size, self._fetch.published_size
        if told is None or want is None or told == want:
            return
        page = " and calls it a web page (a login or a proxy's notice?)"
        error = SourceError(
            f"{self._fetch.name}: {reply.site} announces {told} bytes"
            f"{page if is_page(reply.headers) else ''}, but {want} were "
            f"{'published' if published is not None else 'announced before'}",
            cause=Cause.CHANGED,
        )
        if published is not None or is_page(reply.headers):
            raise Again(error)  # what is here is worth more than a passing lie
        raise StartOver(error)

    def _fit_version(self, reply: Reply) -> None:
        known = self._fetch.partial.identity
        if known is None or not self._fetch.trusts_validators:
            return
        if known.validator.differs(Validator.of(reply.headers)):
            if is_page(reply.headers):
                raise Again(self._lie("sent a web page (a login or a proxy's notice?)"))
            raise self._changed()

    def _learn(self, reply: Reply, size: int | None) -> None:
        fetch = self._fetch
        if fetch.digest is None:
            fetch.digest = published_digest(reply.headers, whole=reply.status == 200)
        if fetch.partial.identity is None and size is not None and not encoding(reply.headers):
            fetch.identify(Identity(size, Validator.of(reply.headers), fetch.digest))
        self._round.learnt(size)

    def _changed(self) -> StartOver:
        return StartOver(
            SourceError(
                f"{self._fetch.name}: the file changes at its source while it is fetched; resume "
                "when it is settled, or pin a revision",
                cause=Cause.CHANGED,
            )
        )

    def _lie(self, fact: str) -> SourceError:
        return SourceError(f"{self._fetch.name}: the server {fact}; resume later")

    # Bytes ------------------------------------------------------------------------------

    def _receive(self, reply: Reply, start: int, stop: int | None) -> bool:
        """Write the body; whether all of it was read. ``stop`` None: up to its end."""
        body = Body(reply.headers, name=self._fetch.name, size=stop)
        rate, at = self._shared.rate, start
        while stop is None or at < stop or body.changes:
            self._shared.check(self._round.over)
            most = rate.chunk if stop is None or body.changes else min(rate.chunk, stop - at)
            try:
                data = reply.read(most)
            except BROKEN as error:
                self._shared.check(self._round.over)
                raise self._broken(error, reply) from None
            if not data:
                break
            rate.spend(len(data), lambda s: self._shared.pause(s, self._round.over))
            plain = body.file_bytes(data)
            if stop is not None and at + len(plain) > stop:
                raise Again(self._lie(f"sent more than the {stop} bytes that were announced"))
            self._put(at, plain)
            at += len(plain)
        self._shared.check(self._round.over)
        body.end()
        if stop is not None and at < stop:
            raise Again(self._short(reply, stop - at))
        if self._fetch.size is None and self._round.streaming:
            self._fetch.size = at
        return True

    def _put(self, at: int, data: bytes) -> None:
        """Write what is not there yet, and tell everybody."""
        fetch = self._fetch
        if at == 0 and data and not fetch.partial.prefix:
            fetch.expect(data)
        pieces = [(at, at + len(data))]
        if self._round.streaming:
            pieces = fetch.partial.ranges.outside(at, at + len(data))
        for start, stop in pieces:
            whole = (start, stop) == (at, at + len(data))
            piece = data if whole else data[start - at : stop - at]
            self._shared.progress.add(bytes=fetch.partial.write(start, piece))
            fetch.hashing().feed(start, piece)
        if fetch.arrivals is not None:
            fetch.arrivals.advance(fetch.partial.prefix)

    def _broken(self, error: BaseException, reply: Reply) -> Exception:
        stall_s = self._shared.stall_s
        return broken(error, name=self._fetch.name, url=reply.url, stall_s=stall_s)

    def _short(self, reply: Reply, count: int) -> SourceError:
        return SourceError(
            f"{self._fetch.name}: {reply.site} ended the body {count} bytes early; resume",
            cause=Cause.NETWORK,
        )
