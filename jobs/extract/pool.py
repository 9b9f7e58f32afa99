"""Extraction beside a download: a few processes that take shards as they arrive or are complete."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from jobs.archives.tar.stream import Streamed
from jobs.extract.arriving import Feed
from jobs.extract.extractor import Extractor
from jobs.extract.messages import Stream
from jobs.model import Part, Shard
from jobs.runtime.progress import Progress
from jobs.storage.run_folder import RunFolder


class ExtractionPool:
    """At most ``workers`` processes that extract, each with one order at a time.

    ``spills``: a stream that is slower than its download leaves the rest to other tasks.
    """

    def __init__(
        self, folder: RunFolder, progress: Progress, *, workers: int, spills: bool
    ) -> None:
        self._folder = folder
        self._progress = progress
        self._spills = spills
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="extract")
        self._own = threading.local()
        self._extractors: list[Extractor] = []
        self._queued: list[Future[None]] = []

    def stream(
        self, shard: Shard, files: Sequence[Path], feeds: Sequence[Feed], *, extracts: bool = True
    ) -> Future[Streamed]:
        """Read a shard in one pass; what it teaches, or an ``OrchestrateError``.

        ``feeds``, one a file, say what arrives; without any all ``files`` are complete.
        """
        order = Stream(
            shard.id,
            tuple(map(str, files)),
            arriving=bool(feeds),
            extracts=extracts,
            spills=self._spills,
        )
        return self._threads.submit(lambda: self._extractor().stream(order, feeds))

    def offer(self, parts: Sequence[Part]) -> None:
        """Extract parts of a shard that is here, each once there is a process free for it.

        What goes wrong is left to the extract stage, which tries again and reports.
        """
        for part in parts:
            self._queued.append(self._threads.submit(self._extract, part))

    def _extract(self, part: Part) -> None:
        self._extractor().extract((part,))

    def _extractor(self) -> Extractor:
        extractor: Extractor | None = getattr(self._own, "extractor", None)
        if extractor is None:
            extractor = self._own.extractor = Extractor(self._folder, self._progress, beside=True)
            self._extractors.append(extractor)
        return extractor

    def close(self, *, drains: bool) -> None:
        """Finish what is in hand, and (``drains``) what is queued; the rest is left."""
        if not drains:
            for future in self._queued:
                future.cancel()
        self._threads.shutdown()
        for extractor in self._extractors:
            extractor.close()
