"""A follower behind a shard that arrives, or behind one that is read to be hashed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from msgspec import structs

from jobs import digest
from jobs.archives.follow import Arriving, Followed, Follower, follow_here
from jobs.archives.sniff import TARS
from jobs.download.hashing import CHUNK
from jobs.errors import OrchestrateError, Stopped, from_os_error
from jobs.memberpath import shown
from jobs.model import Digest, Fetched, Options, Shard
from jobs.progress import Progress
from jobs.transfer import Arrivals


class Following:
    """Follows a shard in a thread of its own while its files arrive."""

    def __init__(
        self,
        shard: Shard,
        outs: Sequence[Path],
        options: Options,
        plain: Path,
        progress: Progress,
    ) -> None:
        self.arrivals = [None if out.is_file() else Arrivals() for out in outs]
        self._shard = shard
        self._options = options
        self._plain = plain
        self._progress = progress
        self._followed: Followed | None = None
        self._error: Exception | None = None
        files = [
            _opener(out) if arrivals is None else arrivals.reader
            for out, arrivals in zip(outs, self.arrivals, strict=True)
        ]
        self._follower = Follower(files, shard, options, plain, progress)
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._followed = self._follower.run()
        except Exception as error:  # noqa: BLE001 - carried to the thread that waits
            self._error = error

    def abandon(self) -> None:
        """The shard does not arrive: end the thread, leave no half plain tar."""
        for arrivals in self.arrivals:
            if arrivals is not None:
                arrivals.fail()
        self._thread.join()

    def finish(self, fetched: Fetched) -> Fetched:
        """``fetched`` with what the follower learnt; all files are whole by now.

        Where it failed on bytes that were replaced later, what is on disk now is followed once
        more, and what that finds is true. Raises as ``Follower.run`` does.
        """
        for arrivals in self.arrivals:
            if arrivals is not None:
                arrivals.finish()
        self._thread.join()
        if isinstance(self._error, Stopped):
            raise self._error
        if self._followed is not None:
            return self._followed.applied(fetched)
        if self._error is not None and not isinstance(self._error, OrchestrateError):
            raise self._error
        if fetched.format not in TARS:
            return fetched
        return follow_here(fetched, self._shard, self._options, self._plain, self._progress)


def hashed_and_followed(
    fetched: Fetched, shard: Shard, options: Options, plain: Path, progress: Progress
) -> Fetched:
    """``fetched``, files in place, with their SHA-256 and the parts' cuts, by one reading."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="hash")  # one file is read at a time
    streams: list[_Hashed] = []
    try:
        streams += (_Hashed(Path(path), pool, progress) for path in fetched.files)
        if fetched.format in TARS:
            files: list[Callable[[], Arriving]] = [stream.opened for stream in streams]
            followed = Follower(files, shard, options, plain, progress).run()
            fetched = followed.applied(fetched)
        digests = tuple(stream.digest() for stream in streams)
    finally:
        pool.shutdown()
        for stream in streams:
            stream.really_close()
    return structs.replace(fetched, digests=digests)


class _Hashed:
    """A file that is hashed, in a thread beside its reader; what nobody read, at the end."""

    def __init__(self, path: Path, pool: ThreadPoolExecutor, progress: Progress) -> None:
        self._path = path
        self._pool = pool
        self._progress = progress
        self._hasher = digest.new("sha256")
        self._hashing: Future[None] | None = None
        self._unhashed: list[bytes] = []
        self._size = 0  # bytes in it
        try:
            self._stream = path.open("rb", buffering=0)
        except OSError as error:
            raise from_os_error(error, doing=f"opening {shown(str(path))}") from error

    def opened(self) -> _Hashed:
        return self

    def read(self, size: int, /) -> bytes:
        try:
            data = self._stream.read(size) or b""
        except OSError as error:
            raise from_os_error(error, doing=f"reading {shown(str(self._path))}") from error
        self._unhashed.append(data)
        self._size += len(data)
        if self._size >= CHUNK or not data:
            self._hash()
        self._progress.add(bytes=len(data))
        return data

    def _hash(self) -> None:
        """Have what was read hashed, once what was read before it is: two chunks in memory."""
        if self._hashing is not None:
            self._hashing.result()
        self._hashing = self._pool.submit(self._update, self._unhashed)
        self._unhashed, self._size = [], 0

    def _update(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._hasher.update(piece)

    def close(self) -> None:
        """The follower is done; the rest is still to be hashed."""

    def really_close(self) -> None:
        self._stream.close()

    def digest(self) -> Digest:
        while self.read(CHUNK):
            self._progress.check()
        if self._hashing is not None:
            self._hashing.result()
        return Digest("sha256", self._hasher.hexdigest())


def _opener(path: Path) -> Callable[[], Arriving]:
    def opened() -> Arriving:
        try:
            return path.open("rb", buffering=0)
        except OSError as error:
            raise from_os_error(error, doing=f"opening {shown(str(path))}") from error

    return opened
