"""One request for a range: sends it, checks the response, and reads its body."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from jobs.errors import Cause, SourceError
from jobs.formats import magic
from jobs.transfer.connection import CONNECTION_ERRORS, HttpResponse, connection_error
from jobs.transfer.download_state import DownloadState, changing, replaced
from jobs.transfer.partial_file import FileVersion
from jobs.transfer.ranges import Range
from jobs.transfer.rate_limits import LOGGED_S, LONGEST_WAIT_S, rate_limit_s
from jobs.transfer.responses import (
    MOST_CODED,
    DecodedBody,
    NoRanges,
    RetryLater,
    StartOver,
    Validator,
    WrongRange,
    content_length,
    content_range,
    is_coded,
    is_page,
    may_refuse_range,
    published_digest,
    refused,
)
from jobs.transfer.session import TransferSession
from jobs.transfer.target import Target, redact

log = logging.getLogger(__name__)

_WAIT_S = 0.01  # between two checks whether bytes may be written
_PAGE_HEAD = 64  # bytes of a body that identify a web page
_LEAST_RATE = 1 << 10  # bytes a second; a connection that is slower is replaced by a new one,
_LEAST_SHARE = 0.1  # as is one that brings less than this much of an equal share of the file


class RangeRequest:
    """Fetches ``piece``, or the complete file over one connection if it is None.

    ``on_response(size, ranged)`` is called after the response was checked, before its body is read:
    the file's size in bytes, if known, and whether other ranges can be requested. ``resolved``: the
    target that an earlier request of the file returned (None: ask for a new one).
    """

    def __init__(
        self,
        shared: TransferSession,
        state: DownloadState,
        piece: Range | None,
        resolved: Target | None,
        *,
        is_done: Callable[[], bool],
        on_response: Callable[[int | None, bool], None],
    ) -> None:
        self._shared = shared
        self._state = state
        self._piece = piece
        self._resolved = resolved
        self._is_done = is_done
        self._on_response = on_response
        self._streaming = piece is None  # the complete file
        self._asks_range = piece not in (None, (0, state.size))
        self._begun = b""  # of the body: checked, but not written yet
        self._at = 0  # the byte of the file that is written next
        self._begin_period()

    def run(self) -> Target | None:
        """Fetch the range; returns the target for the next range, without resolving it again."""
        state, shared = self._state, self._shared
        target = self._resolved or self._new_target()
        site = redact(target.url).partition("://")[2].partition("/")[0]
        if shared.pauses.left_s(site):
            shared.pause(shared.pauses.left_s(site), self._is_done)
        reply = shared.wire.get(
            target, self._headers(), name=state.name, check=lambda: shared.check(self._is_done)
        )
        shared.answered = True
        is_complete = False
        try:
            with shared.watched(reply, self._is_done):
                shared.check(self._is_done)
                self._check_status(reply, target, site)
                self._refuse_page(reply)
                start, stop = self._check(reply)
                is_complete = self._receive(reply, start, stop)
        except RetryLater:
            shared.wire.avoid(reply.url, reply.address)
            raise
        finally:
            reply.close(is_complete=is_complete)
        return reply.target

    def _new_target(self) -> Target:
        try:
            return self._state.resolve()
        except SourceError as error:
            if error.cause is Cause.NETWORK:  # of the server that gives tokens
                raise RetryLater(error) from error
            raise

    def _headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}
        if self._state.fresh:
            headers["Cache-Control"] = "no-cache"
        if self._piece is not None and self._asks_range:
            start, stop = self._piece
            headers["Range"] = f"bytes={start}-{stop - 1}"
            known = self._state.partial.identity
            if known is not None and known.validator.if_range and self._state.trusts_validators:
                headers["If-Range"] = known.validator.if_range
        return headers

    # Checks -----------------------------------------------------------------------------

    def _check_status(self, reply: HttpResponse, target: Target, site: str) -> None:
        """Raise the error of the status; pause requests to a site whose rate limit is spent."""
        elsewhere = reply.redirected or target is self._resolved
        if reply.status == 403 and not elsewhere:
            elsewhere = self._new_target().url != target.url
        if reply.status == 416:
            return
        error = refused(
            reply.status, reply.headers, name=self._state.name, site=reply.site, elsewhere=elsewhere
        )
        wait_s = error.wait_s if isinstance(error, RetryLater) else None
        wait_s = rate_limit_s(reply.headers) if wait_s is None else wait_s
        if wait_s is not None and wait_s <= LONGEST_WAIT_S:
            self._shared.pauses.hold(site, wait_s)
            if error is None and wait_s >= LOGGED_S:
                name = self._state.name
                log.info("%s: %s allows no further requests for %.0f s", name, site, wait_s)
        if target is self._resolved and isinstance(error, SourceError):
            raise RetryLater(error)  # the signed address may have expired: get a new one
        # A request without Range may succeed, unless others have succeeded with it.
        may_work = self._asks_range and not self._state.ranges_work
        if error is not None and may_work and may_refuse_range(reply.status, reply.headers):
            raise WrongRange(error.error if isinstance(error, RetryLater) else error)
        if error is not None:
            raise error

    def _refuse_page(self, reply: HttpResponse) -> None:
        """Raise ``RetryLater`` for a web page instead of the file: a login, a proxy's notice.

        Called before the size and version in the response, which are the page's, are used.
        """
        length = None if self._is_coded(reply) else content_length(reply.headers)
        is_it = length is not None and length == self._state.published_size
        if reply.status != 200 or is_it or self._state.may_be_page:
            return
        body = self._decoded(reply)
        head = b""
        while len(head) < _PAGE_HEAD and (data := self._read(reply, magic.HEAD)):
            self._begun += data
            head += body.file_bytes(data)
        if magic.is_page(head, labelled=is_page(reply.headers)):
            raise RetryLater(
                SourceError(
                    f"{self._state.name}: {reply.site} returns a web page instead of the file (a "
                    "login, or a proxy's notice?); open the address in a browser on this "
                    "machine, or try again later",
                    cause=Cause.NETWORK,
                )
            )

    def _check(self, reply: HttpResponse) -> tuple[int, int | None]:
        """The bytes of the file in this response, as start and stop; raises if it is unusable."""
        if reply.status == 416:
            return self._check_unsatisfiable(reply)
        if reply.status == 206:
            return self._check_range(reply)
        length = None if self._is_coded(reply) else content_length(reply.headers)
        self._check_size(reply, length)
        self._check_version(reply)
        if self._asks_range and self._state.partial.total:
            raise WrongRange(self._server_error("ignored the requested range"))
        self._streaming = self._streaming or self._asks_range
        size = self._state.size if length is None else length
        self._store(reply, size, is_all=True)
        return 0, size

    def _check_unsatisfiable(self, reply: HttpResponse) -> tuple[int, int]:
        """Check a 416: correct for an empty file, and for one that has become shorter."""
        content = content_range(reply.headers)
        total = content.total if content else None
        self._check_size(reply, total)
        if total != 0 or self._state.partial.total:
            raise WrongRange(self._server_error("refused the requested range"))
        self._on_response(0, not self._streaming)
        return 0, 0

    def _check_range(self, reply: HttpResponse) -> tuple[int, int | None]:
        content = content_range(reply.headers)
        if self._piece is None or not self._asks_range:
            raise WrongRange(self._server_error("sent a range that was not requested"))
        if content is None or content.start != self._piece[0] or self._is_coded(reply):
            raise WrongRange(self._server_error("sent a different range than requested"))
        self._check_size(reply, content.total)
        self._check_version(reply)
        if content.total is None and self._state.size is None:
            raise WrongRange(self._server_error("does not report the length of the file"))
        self._store(
            reply, content.total, is_all=(content.start, content.stop) == (0, content.total)
        )
        self._state.ranges_work = True
        # The body has to be as long as its Content-Range says: otherwise a server that sends
        # nothing would be asked forever.
        assert content.stop is not None
        length = content_length(reply.headers)
        if length is not None and length > content.stop - content.start:
            raise WrongRange(self._server_error("sent a different range than requested"))
        if length is not None and length < content.stop - content.start:
            error = SourceError(
                f"{self._state.name}: {reply.site} announces a range that is longer than its "
                "body; run `resume` later",
                cause=Cause.NETWORK,
            )
            raise RetryLater(error, wrong_at=0)  # in any range
        return self._piece[0], min(content.stop, self._piece[1])

    def _is_coded(self, reply: HttpResponse) -> bool:
        return is_coded(reply.headers, self._state.size)

    def _decoded(self, reply: HttpResponse) -> DecodedBody:
        headers = reply.headers if self._is_coded(reply) else {}
        return DecodedBody(headers, name=self._state.name)

    def _check_size(self, reply: HttpResponse, content: int | None) -> None:
        """Compare the response's size with the published one, or with an earlier response's."""
        want, published = self._state.size, self._state.published_size
        if content is None or want is None or content == want:
            return
        error = self._other_size(reply, f"announces {content} bytes, but {want}")
        if published is not None:
            raise RetryLater(error, wrong_at=0)  # keep the bytes on disk; it may be wrong
        raise StartOver(error)

    def _other_size(self, reply: HttpResponse, fact: str) -> SourceError:
        published = self._state.published_size is not None
        return SourceError(
            f"{self._state.name}: {reply.site} {fact} were "
            f"{'published' if published else 'announced before'}; run `resume` later, or launch "
            "again if the file was replaced",
            cause=Cause.CHANGED,
        )

    def _check_version(self, reply: HttpResponse) -> None:
        state, validator = self._state, Validator.of(reply.headers)
        if not validator.may_have(state.version):
            raise StartOver(replaced(state.name))
        known = state.partial.identity
        if known is None or not state.trusts_validators:
            return
        if known.validator.differs(validator):
            raise StartOver(changing(state.name))

    def _store(self, reply: HttpResponse, size: int | None, *, is_all: bool) -> None:
        """Store what the response says of the file; ``is_all``: the body is the complete file.

        Raises ``NoRanges`` if other responses might be of another version without saying so: one
        that is complete can be compared with the bytes that are here.
        """
        state = self._state
        if self._streaming and state.keeps_tail:
            raise SourceError(
                f"{state.name} is larger than --temp-limit, and the server does not support range "
                "requests, or sends neither ETag nor time, so the zip's directory cannot be read "
                f"first; run `resume --temp-limit {state.size}` or more",
                cause=Cause.TOO_LARGE,
            )
        if state.digest is None:
            state.digest = published_digest(reply.headers, is_complete=reply.status == 200)
        # Bytes that are there already may be of another version, if their response had none.
        is_first = state.partial.identity is None and not state.partial.total
        if is_first and not self._is_coded(reply):
            state.partial.identify(FileVersion(size, Validator.of(reply.headers), state.digest))
        if not (is_all or state.has_version):
            raise NoRanges
        self._on_response(size, not self._streaming)

    def _server_error(self, fact: str) -> SourceError:
        return SourceError(f"{self._state.name}: the server {fact}; run `resume` later")

    # Bytes ------------------------------------------------------------------------------

    def _receive(self, reply: HttpResponse, start: int, stop: int | None) -> bool:
        """Write the body; returns whether all of it was read. ``stop`` None: up to its end."""
        self._at = start
        try:
            return self._receive_body(reply, start, stop)
        except RetryLater as error:
            if self._at > start:
                error.wrong_at = self._at
            raise

    def _receive_body(self, reply: HttpResponse, start: int, stop: int | None) -> bool:
        body = self._decoded(reply)
        rate = self._shared.rate
        # Only its end shows how long such a body is: the file may have another size by now.
        to_its_end = reply.status == 200 and content_length(reply.headers) is None
        while stop is None or self._at < stop or body.changes or to_its_end:
            self._shared.check(self._is_done)
            most = rate.chunk
            if body.changes:
                most = min(most, MOST_CODED)
            elif stop is not None and not to_its_end:
                most = min(most, stop - self._at)
            data, self._begun = self._begun or self._read(reply, most), b""
            if not data:
                break
            rate.spend(len(data), lambda s: self._shared.pause(s, self._is_done))
            self._write(reply, body.file_bytes(data), stop)
        self._shared.check(self._is_done)
        self._write(reply, body.end(), stop)
        if stop is not None and self._at < stop:
            raise RetryLater(self._short(reply, stop - self._at))
        if self._state.size is None and self._streaming:
            self._state.size = self._at
        return True

    def _write(self, reply: HttpResponse, data: bytes, stop: int | None) -> None:
        """Write the file's next bytes, once there is room for them."""
        if not data:
            return
        end = self._at + len(data)
        if stop is not None and end > stop:
            raise StartOver(self._other_size(reply, f"sends more bytes than the {stop} that"))
        while not self._state.has_room(self._at, end):
            self._shared.pause(_WAIT_S, self._is_done)
        self._state.put(self._at, data, overwrites=self._streaming)
        self._at = end

    def _read(self, reply: HttpResponse, most: int) -> bytes:
        self._check_rate(reply)
        begun = time.monotonic()
        try:
            data = reply.read(most)
        except CONNECTION_ERRORS as error:
            self._shared.check(self._is_done)
            stall_s = self._shared.stall_s
            raise connection_error(
                error, name=self._state.name, url=reply.url, stall_s=stall_s
            ) from None
        self._waited_s += time.monotonic() - begun
        self._received += len(data)
        return data

    def _begin_period(self) -> None:
        """Begin to measure the connection's rate."""
        self._waited_s = 0.0  # for data; not for room, nor because of --max-rate
        self._received = 0  # bytes
        self._had = self._state.partial.total

    def _check_rate(self, reply: HttpResponse) -> None:
        """Raise ``RetryLater`` if the connection is far too slow: a new one is mostly faster.

        Without ranges a new one would begin at the start of the file.
        """
        if self._waited_s < self._shared.stall_s or self._streaming:
            return
        if reply.status != 206 and reply.headers.get("Accept-Ranges") != "bytes":
            return
        by_all = self._state.partial.total - self._had
        share = _LEAST_SHARE * by_all / self._shared.connections
        if self._received < max(share, _LEAST_RATE * self._waited_s):
            raise RetryLater(
                SourceError(
                    f"{self._state.name}: {reply.site} sent only {self._received} bytes in "
                    f"{self._waited_s:.0f} s; try again later",
                    cause=Cause.NETWORK,
                )
            )
        self._begin_period()

    def _short(self, reply: HttpResponse, count: int) -> SourceError:
        return SourceError(
            f"{self._state.name}: {reply.site} ended the response {count} bytes early; run "
            "`resume`",
            cause=Cause.NETWORK,
        )
