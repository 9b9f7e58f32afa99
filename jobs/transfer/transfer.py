"""Downloads files: from the first request to the complete, verified file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from jobs.model import Digest
from jobs.transfer.download_state import DownloadState
from jobs.transfer.ordered_bytes import Listener
from jobs.transfer.responses import NoRanges, StartOver
from jobs.transfer.session import TransferSession
from jobs.transfer.target import Received, Target


class Transfer(TransferSession):
    """Fetches files over at most ``connections`` in total; thread-safe.

    ``max_rate``: bytes a second in total. ``stall_s``: a connection is closed after this many
    seconds with no data, or hardly any. ``tries``: a file fails after this many failures without
    progress. ``backoff_s``: the longest first wait in seconds, which doubles with each further
    failure (``rate_limits.backoff_s``); tests set it near 0.
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
                    return state.finish()
                except StartOver as reason:
                    state.start_over(reason)

    def _bring(self, state: DownloadState) -> None:
        """Download all bytes, in ranges if the server supports them correctly.

        Without a version or a digest they might be of different versions: then in one response.
        """
        from jobs.transfer.scheduler import RangeScheduler  # which loads requests

        if state.ranged:
            try:
                RangeScheduler(self, state, streaming=False).run()
                return
            except NoRanges:
                state.ranged = False
        RangeScheduler(self, state, streaming=True).run()
