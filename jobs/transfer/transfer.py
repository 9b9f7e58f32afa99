"""The transfer itself: a file from its first request to its name, whole and verified."""

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
    """Fetches files over at most ``connections`` in all; may be used from several threads.

    ``max_rate`` is in bytes a second, for all together; no byte for ``stall_s`` seconds is a
    break; ``tries`` failures without progress in between are the end of a file; ``backoff_s`` is
    the mean of the first wait, twice.
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
    ) -> Received:
        """Bring a file to ``out``, whole and verified; goes on from a partial file beside it.

        ``resolve`` is asked at every attempt. ``size`` (bytes) and ``digest`` are the published
        ones, if any. ``expect`` gets the first bytes and raises ``SourceError`` if they are wrong.
        A file of more than ``most`` bytes is not stored (``SourceError``, ``TOO_LARGE``).
        Raises ``SourceError``, ``DigestError``, ``StorageError``; ``Stopped`` when told to stop.
        """
        draft = DownloadState(
            self.progress, resolve, out, name, size, digest, expect, arrivals, most
        )
        with contextlib.closing(draft):
            draft.take_up()
            while True:
                try:
                    self._bring(draft)
                    return draft.finish()
                except StartOver as reason:
                    draft.start_over(reason)

    def _bring(self, draft: DownloadState) -> None:
        """Have every byte there, in ranges if the server does them rightly."""
        from jobs.transfer.scheduler import RangeScheduler  # which loads requests

        if draft.ranged:
            try:
                RangeScheduler(self, draft, streaming=False).run()
                return
            except NoRanges:
                draft.ranged = False
        RangeScheduler(self, draft, streaming=True).run()
