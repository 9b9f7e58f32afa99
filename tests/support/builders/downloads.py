"""A file that arrives as a test says, while its parts are extracted."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.errors import Cause, SourceError
from jobs.extract.messages import Stream
from jobs.extract.streaming import ShardStream
from jobs.model import Options
from jobs.runtime.progress import Progress
from jobs.transfer.ordered_bytes import OrderedBytes
from jobs.transfer.ranges import Range
from tests.support.builders.runs import RunBuilder


class Download:
    """A run over one file of several parts, and the download of it."""

    def __init__(self, path: Path, data: bytes, *, parts: int, options: Options) -> None:
        self.data = data
        self.path = path
        self.path.write_bytes(self.data)
        self.run = RunBuilder(path, parts=parts, options=options).on_disk(path.parent)
        self.run.staging.make_folders()
        self.arrivals = OrderedBytes(self._want)
        self.wanted: list[Range] = []
        self._asked = threading.Event()
        self.begin()

    def _want(self, start: int, stop: int) -> None:
        self.wanted.append((start, stop))
        self._asked.set()

    def begin(self) -> None:
        """The download begins, or begins again."""
        fd = os.open(self.path, os.O_RDONLY)
        self.arrivals.begin(fd)
        os.close(fd)

    def arrive(self, *ranges: Range) -> None:
        """These bytes are there."""
        self.arrivals.advance(ranges, len(self.data))

    def finish(self) -> None:
        """All bytes are there, and verified."""
        self.arrive((0, len(self.data)))
        self.arrivals.finish()

    def arrive_until_extracted(self) -> None:
        """All bytes are there; they are not verified before all parts are extracted."""
        self.arrive((0, len(self.data)))
        for part in range(len(self.run.parts)):
            self.wait_for(part)

    def arrive_and_finish(self) -> None:
        """All bytes are there, and are verified once all parts are extracted."""
        self.arrive_until_extracted()
        self.arrivals.finish()

    def stream_in_two_turns(self) -> None:
        """Extract all parts, of which two streams do every second one."""
        other = threading.Thread(target=self.stream, kwargs={"turn": 0, "turns": 2})
        other.start()
        self.stream(self.arrive_and_finish, turn=1, turns=2)
        other.join()

    def stream_a_transfer_that_starts_over(self, data: bytes) -> None:
        """Extract; when only the digest is missing, the download begins again with ``data``."""
        seen: list[dict[str, int]] = []

        def during() -> None:
            self.arrive_until_extracted()
            seen.append(self.manifests())
            self.data = data
            self.path.unlink()
            self.path.write_bytes(data)
            self.begin()
            self.arrive((0, len(data)))
            self.wait_for(len(self.run.parts) - 1, before=seen[0])
            self.arrivals.finish()

        self.stream(during)
        assert len(seen[0]) == len(self.run.parts)
        assert not set(seen[0].values()) & set(self.manifests().values())

    def stream_a_transfer_that_fails(self, *, tail: int) -> None:
        """Extract; the transfer fails after the first part, with half of the bytes and a tail."""
        size = len(self.data)

        def during() -> None:
            self.arrive((0, size // 2), (size - tail, size))
            self.wait_for(0)
            self.arrivals.fail()

        with pytest.raises(SourceError, match="transfer") as caught:
            self.stream(during)
        assert caught.value.cause is Cause.NETWORK
        assert self.run.folder.manifest(self.run.parts[0]).name in self.manifests()

    def stream(
        self, during: Callable[[], None] = lambda: None, *, turn: int = 0, turns: int = 1
    ) -> None:
        """Extract, while ``during`` runs in a thread."""
        thread = threading.Thread(target=during)
        thread.start()
        run = self.run
        try:
            order = Stream(
                run.plan.shards[0].id, (str(self.path),), arriving=True, turn=turn, turns=turns
            )
            ShardStream(run.folder, run.plan, order, [self.arrivals], Progress()).run()
        finally:
            thread.join()

    def manifests(self) -> dict[str, int]:
        """When the manifest of each part was written."""
        found: dict[str, int] = {}
        for path in self.run.folder.manifests.glob("*.jsonl"):
            with contextlib.suppress(FileNotFoundError):  # taken back meanwhile
                found[path.name] = path.stat().st_mtime_ns
        return found

    def wait_for(self, part: int, *, before: dict[str, int] | None = None) -> None:
        """Wait for the manifest of a part, other than that of ``before``."""
        name = self.run.folder.manifest(self.run.parts[part]).name
        for _ in range(6000):
            if self.manifests().get(name) not in (None, (before or {}).get(name)):
                return
            threading.Event().wait(0.01)

    def wait_for_want(self) -> None:
        """Wait until the stream asks for bytes."""
        assert self._asked.wait(60)
