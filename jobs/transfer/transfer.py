"""Downloads files: from the first request to the complete, verified file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from jobs.errors import SourceError
from jobs.formats import magic
from jobs.model import Digest
from jobs.transfer.download_state import DownloadState
from jobs.transfer.ordered_bytes import Listener
from jobs.transfer.responses import (
    DecodedBody,
    NoRanges,
    RetryLater,
    StartOver,
    is_coded,
    is_page,
)
from jobs.transfer.session import TransferSession
from jobs.transfer.target import Received, Target


class Transfer(TransferSession):
    """Fetches files over at most ``connections`` in total; thread-safe.

    ``max_rate``: bytes a second in total. ``stall_s``: a connection is closed after this many
    seconds without data. ``tries``: a file fails after this many failures without progress.
    ``backoff_s``: the longest first wait in seconds, which doubles with each further failure
    (``rate_limits.backoff_s``); tests set it near 0.
    """

    def fetch(
        self,
        resolve: Callable[[], Target],
        out: Path,
        *,
        name: str,
        size: int | None,
        digest: Digest | None,
        expect: Callable[[bytes], None] | None = None,
        arrivals: Listener | None = None,
        most: int | None = None,
        version: str | None = None,
    ) -> Received:
        """Download a file to ``out`` and verify it; continues a partial file beside ``out``.

        ``resolve`` is called for every attempt. ``size`` (bytes) and ``digest`` are the published
        ones, if any. ``expect`` is called with the first bytes and raises ``SourceError`` if they
        are wrong. A file of more than ``most`` bytes is not stored (``SourceError`` with the cause
        ``TOO_LARGE``). ``version``: see ``Validator``; without a ``digest``, a file of another
        version is an error (``CHANGED``). Raises ``SourceError``, ``DigestError``,
        ``StorageError``, ``Stopped``.
        """
        state = DownloadState(
            self.progress, resolve, out, name, size, digest, expect, arrivals, most, version
        )
        with contextlib.closing(state):
            state.load()
            while True:
                try:
                    self._bring(state)
                    state.check_head(is_complete=True)
                    self._compare_head(state)
                    return state.finish()
                except StartOver as reason:
                    state.start_over(reason)

    def _compare_head(self, state: DownloadState) -> None:
        """Read the first bytes again, where only they show that the file was replaced meanwhile.

        Raises ``StartOver`` if they are others; a server that does not respond any more shows
        nothing.
        """
        if not (state.may_be_mixed and state.head):
            return
        from jobs.transfer.connection import CONNECTION_ERRORS  # which loads requests

        headers = {
            "Accept-Encoding": "identity",
            "Cache-Control": "no-cache",
            "Range": f"bytes=0-{len(state.head) - 1}",
        }
        head = b""
        try:
            reply = self.wire.get(
                state.resolve(), headers, name=state.name, check=self.progress.check
            )
            with contextlib.closing(reply), self.watched(reply, lambda: False):
                coded = is_coded(reply.headers, state.size)
                body = DecodedBody(reply.headers if coded else {}, name=state.name)
                while reply.status in (200, 206) and len(head) < len(state.head):
                    data = reply.read(len(state.head))
                    if not data:
                        break
                    head += body.file_bytes(data)
        except (RetryLater, SourceError, *CONNECTION_ERRORS):
            return
        if state.may_be_page or not magic.is_page(head, labelled=is_page(reply.headers)):
            state.compare_head(head[: len(state.head)])

    def _bring(self, state: DownloadState) -> None:
        """Download all bytes, in ranges if the server supports them correctly."""
        from jobs.transfer.scheduler import RangeScheduler  # which loads requests

        if state.ranged:
            try:
                RangeScheduler(self, state, streaming=False).run()
                return
            except NoRanges:
                state.ranged = False
        RangeScheduler(self, state, streaming=True).run()
