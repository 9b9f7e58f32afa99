"""One shard: downloaded or read in place, hashed, its format detected, its parts cut."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from jobs.archives.base import DamagedError
from jobs.archives.detect import read_head, sniff
from jobs.archives.member_index import Streamed
from jobs.errors import (
    ArchiveError,
    Cause,
    DigestError,
    OrchestrateError,
    SourceError,
    TooLargeError,
    as_storage_error,
    from_os_error,
)
from jobs.extract.arriving import AbandonedError, Feed, has_directory
from jobs.extract.extractor import ExtractionPool
from jobs.formats import magic
from jobs.model import Digest, Fetched, Format, Plan, Shard, ShardKind, SourceFile
from jobs.runtime.progress import Progress
from jobs.sources.base import LocalFiles, RemoteSource, Source, key_of
from jobs.storage import digest, presence
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import Staging
from jobs.transfer.ranges import Window
from jobs.transfer.target import Received
from jobs.transfer.transfer import Transfer

log = logging.getLogger(__package__)

# Why an archive cannot be read in one pass, or parts of it cannot be extracted: of one that is
# stored, the extract stage tries all parts, and reports them.
_BY_CONTENT = frozenset(
    {Cause.BAD_ARCHIVE, Cause.UNSAFE_MEMBER, Cause.TOO_LARGE, Cause.UNSUPPORTED, Cause.CHANGED}
)
# Why the attempt not to store it has failed; the last one: all of it had arrived, and was gone,
# before a process opened it.
_IF_NOT_STORED = _BY_CONTENT | {Cause.NETWORK}
_TRIES = 10  # consecutive failures without progress until a file has failed
_CHUNK = 1 << 20  # bytes


class DamagedTwiceError(DamagedError):
    """Two downloads of an archive that is not stored were damaged; neither digest was compared."""


class _NotComparedError(Exception):
    """The extraction of an archive that is not stored ended for ``reason``: the transfer may have
    damaged it (its digest was not compared), or it is possible once it is stored."""

    def __init__(self, reason: OrchestrateError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class ShardDownloader:
    """Makes the ``Fetched`` of shards; threads may share it.

    ``pool`` extracts tars while they arrive.
    """

    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        source: Source,
        progress: Progress,
        pool: ExtractionPool,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._pool = pool
        self._staging = Staging(plan)
        self._source = source
        self._progress = progress
        options = plan.options
        self._transfer = Transfer(
            connections=options.connections,
            max_rate=options.max_rate,
            stall_s=options.stall_s,
            progress=progress,
            tries=_TRIES,
        )

    @property
    def answered(self) -> bool:
        """Whether any server has responded so far."""
        return self._transfer.answered

    def fetch(
        self,
        shard: Shard,
        *,
        streams: bool,
        extracts: bool,
        repaired: bool = False,
        most: int | None = None,
        window: Window | None = None,
    ) -> Fetched:
        """Download ``shard``, or read it where it is; safe to call again.

        ``streams``: read a tar in the same pass; ``extracts``: and extract its parts. ``repaired``:
        the size of a local file may differ from that at launch, because its owner may have replaced
        a damaged one. ``most``: bytes that a download may store; ``window``: which of them, of a
        file that is extracted without being stored. If that turns out to be impossible, a file that
        there is space for (``Window.of_all``) is downloaded again, and stored.
        """
        if isinstance(self._source, LocalFiles):
            if shard.kind is ShardKind.TREE:
                return self._tree(self._source, shard)
            return self._in_place(shard, streams=streams, extracts=extracts, repaired=repaired)
        once = partial(self._fetched_once, shard, streams=streams, extracts=extracts, most=most)
        return self._fetched(shard, once, window)

    # Folders with a dataset ----------------------------------------------------------------

    def _tree(self, source: LocalFiles, shard: Shard) -> Fetched:
        out = self._folder.listing(shard.id)
        listed = source.list_tree(shard, out, self._progress.check)
        self._progress.add(bytes=listed.data_bytes)
        with as_storage_error(f"reading the size of {quoted(str(out))}"):
            return listed.evidence(shard.id, out)

    # Local files ---------------------------------------------------------------------------

    def _in_place(self, shard: Shard, *, streams: bool, extracts: bool, repaired: bool) -> Fetched:
        """Hash local files, which stay where they are.

        The receipt records the hash of what was imported. Hashing also finds unreadable files
        before any task starts, and shares its pass with the one that cuts parts.
        """
        paths = [Path(file.locator) for file in shard.files]
        marks = [size_and_mtime(path) for path in paths]
        for path, (size, _), file in zip(paths, marks, shard.files, strict=True):
            if size == 0 and shard.kind is ShardKind.ARCHIVE:
                raise SourceError(f"{quoted(str(path))} is empty; replace it with the archive")
            if file.size not in (None, size) and not repaired:
                raise SourceError(
                    f"{quoted(str(path))} has {size} bytes, but had {file.size} at launch; wait "
                    "until its writer has finished, then launch again",
                    cause=Cause.CHANGED,
                )
        format = _format(shard, paths)
        fetched = Fetched(
            shard.id,
            format,
            tuple(str(path) for path in paths),
            tuple(size for size, _ in marks),
            (),
            tuple(mtime_ns for _, mtime_ns in marks),
            in_place=True,
        )
        streaming = self._pool.stream(shard, paths, (), extracts=extracts) if streams else None
        hashes = [
            hash_file(path, file, self._progress)
            for path, file in zip(paths, shard.files, strict=True)
        ]
        fetched = structs.replace(fetched, digests=tuple(found.sha256 for found in hashes))
        if streaming is not None:
            wait([streaming])
        for file, found in zip(shard.files, hashes, strict=True):
            check_digest(file, found)  # before what was found in the archive, which follows from it
        if streaming is not None:
            fetched = streaming.result().applied(fetched)
        check_unchanged(fetched)
        return structs.replace(
            fetched, verified=all(file.digest is not None for file in shard.files)
        )

    # Remote files --------------------------------------------------------------------------

    def _fetched(
        self, shard: Shard, once: Callable[..., Fetched], window: Window | None
    ) -> Fetched:
        try:
            return once(window=window)
        except _NotComparedError as error:
            log.info("%s: %s; downloading it again", shard.id, error.reason.message)
        try:
            return once(window=None if window is not None and window.is_all else window)
        except _NotComparedError as error:
            reason = error.reason
            if isinstance(reason, DamagedError):
                raise DamagedTwiceError(reason.message, member=reason.member) from error
            raise reason from error

    def _fetched_once(
        self,
        shard: Shard,
        *,
        streams: bool,
        extracts: bool,
        most: int | None,
        window: Window | None,
    ) -> Fetched:
        outs = self._staging.archives_of(shard)
        self._staging.archives.mkdir(parents=True, exist_ok=True)
        # Removes damaged files of earlier attempts before anything reads them.
        there = [self._there(file, out) for file, out in zip(shard.files, outs, strict=True)]
        if there[0] is not None:
            window = None  # it is stored already
        feeds: list[Feed] = []
        streaming: Future[Streamed] | None = None
        if streams:
            feeds = _feeds(shard, there, extracts=extracts, window=window)
            streaming = self._pool.stream(shard, outs, feeds, extracts=extracts)
            if window is not None:
                streaming.add_done_callback(lambda _: feeds[0].abandon())
        try:
            # Of a window the limit holds, whatever the size of the file.
            most = most if window is None or window.is_all else None
            files = self._received(shard, outs, there, feeds, most=most)
        except BaseException as error:
            for feed in feeds:
                feed.fail()
            if streaming is not None:
                streaming.exception()
                if isinstance(error, AbandonedError):
                    self._progress.check()
                    self._check_stream(streaming, feeds[0], compared=False)
            if window is not None and window.is_all and isinstance(error, TooLargeError):
                self._progress.add(bytes=-feeds[0].arrived)
                raise _NotComparedError(error) from error
            raise
        stored = window is None or (window.is_all and presence.is_file(outs[0]))
        fetched = Fetched(
            shard.id,
            _format(shard, outs) if stored else Format.TAR,
            tuple(str(out) for out in outs),
            tuple(one.size for one in files),
            tuple(one.sha256 for one in files),
            tuple(size_and_mtime(out)[1] if stored else 0 for out in outs),
            verified=all(one.verified for one in files),
        )
        if streaming is None:
            return fetched
        if window is not None:
            self._check_stream(streaming, feeds[0], compared=fetched.verified)
        try:
            streamed = streaming.result()
        except DamagedError:
            # Another pass, over the complete files.
            streamed = self._pool.stream(shard, outs, (), extracts=extracts).result()
        return streamed.applied(fetched)

    def _check_stream(self, streaming: Future[Streamed], feed: Feed, *, compared: bool) -> None:
        """Raise why the extraction of an archive that is not stored has failed, if it has.

        ``compared``: its digest is the published one.
        """
        reason = streaming.exception()
        if isinstance(reason, OrchestrateError) and (
            (feed.window is not None and feed.window.is_all and reason.cause in _IF_NOT_STORED)
            or reason.cause is Cause.CHANGED
            or (isinstance(reason, DamagedError) and not compared)
        ):
            self._progress.add(bytes=-feed.arrived)
            raise _NotComparedError(reason) from reason
        if reason is not None:
            raise reason

    def _received(
        self,
        shard: Shard,
        outs: Sequence[Path],
        there: Sequence[Received | None],
        feeds: Sequence[Feed],
        *,
        most: int | None,
    ) -> list[Received]:
        """The files of a shard, of which those are downloaded, in their order, that are not there.

        ``most``: bytes that all of them together may have.
        """
        assert isinstance(self._source, RemoteSource)  # the other kind is read in place
        left = None if most is None else most - sum(one.size for one in there if one is not None)
        files: list[Received] = []
        for index, (file, out, received) in enumerate(zip(shard.files, outs, there, strict=True)):
            if received is None:
                received = self._source.fetch(
                    file,
                    key_of(shard.id, index),
                    self._transfer,
                    out,
                    expect=_expected(shard, file) if index == 0 else None,
                    arrivals=feeds[index] if feeds else None,
                    most=left,
                    is_piece=len(shard.files) > 1,
                )
                left = None if left is None else left - received.size
            files.append(received)
        return files

    def _there(self, file: SourceFile, out: Path) -> Received | None:
        """A complete file of an earlier attempt that wrote no ``Fetched``; None if damaged."""
        if not presence.is_file(out):
            return None
        size = out.stat().st_size
        if file.size in (None, size):
            found = hash_file(out, file, self._progress)
            if file.digest in (None, found.same):
                return Received(size, found.sha256, verified=file.digest is not None)
            self._progress.add(bytes=-size)
        out.unlink()
        return None


def _format(shard: Shard, paths: Sequence[Path]) -> Format:
    """The format, from the first bytes, which may be in several files of a split archive."""
    if shard.kind is ShardKind.FILE:
        return Format.FILE

    def first(size: int) -> bytes:
        head = b""
        for path in paths:
            if len(head) == size:
                break
            with path.open("rb") as stream:
                head += stream.read(size - len(head))
        return head

    return sniff(read_head(first), shard.name)


def _feeds(
    shard: Shard, there: Sequence[Received | None], *, extracts: bool, window: Window | None
) -> list[Feed]:
    """What tells the extraction how much of each file has arrived; of those there, everything."""
    tail_first = extracts and has_directory(shard)
    feeds = []
    for index, received in enumerate(there):
        feed = Feed(index, tail_first=tail_first, window=window)
        if received is not None:
            feed.note_complete(received.size)
        feeds.append(feed)
    return feeds


def _expected(shard: Shard, file: SourceFile) -> Callable[[bytes], None]:
    """The check of a shard's first bytes: they must be of an archive, not of a pointer to it.

    The first file of a split archive may be too short for more than the pointer check.
    """

    def expect(head: bytes) -> None:
        if head.startswith(magic.LFS_POINTER):
            raise SourceError(
                f"{quoted(file.name)} is a Git LFS pointer, not the file itself; contact its "
                "publisher, or exclude it with --exclude"
            )
        if shard.kind is ShardKind.FILE or len(shard.files) > 1:
            return
        try:
            sniff(head, shard.name)
        except ArchiveError as error:
            cause = error.cause if error.cause is Cause.UNSUPPORTED else Cause.BAD_SOURCE
            raise SourceError(error.message, cause=cause) from error

    return expect


# Files on disk -----------------------------------------------------------------------------------


class Hashes(NamedTuple):
    """The digests of a file."""

    sha256: Digest
    same: Digest  # by the algorithm of the published digest; without one, as ``sha256``


def hash_file(path: Path, file: SourceFile, progress: Progress) -> Hashes:
    """The digests of ``file`` in ``path``; its bytes are added to the progress."""
    algorithm = file.digest.algorithm if file.digest is not None else "sha256"
    doing = f"reading {quoted(str(path))}"
    with as_storage_error(doing), path.open("rb", buffering=0) as stream:
        size = path.stat().st_size
        hashers = {name: digest.new(name, size=size) for name in ("sha256", algorithm)}
        buffer = memoryview(bytearray(_CHUNK))
        while count := stream.readinto(buffer):
            progress.check()
            for hasher in hashers.values():
                hasher.update(buffer[:count])
            progress.add(bytes=count)
    found = {name: Digest(name, hasher.hexdigest()) for name, hasher in hashers.items()}
    return Hashes(found["sha256"], found[algorithm])


def check_digest(file: SourceFile, found: Hashes) -> None:
    """Raise ``DigestError`` if the published digest differs from the one that was ``found``."""
    wanted = file.digest
    if wanted not in (None, found.same):
        raise DigestError(
            f"{quoted(file.name)}: the published digest is {wanted}, but the file has "
            f"{found.same}; if the file is damaged, get it again and run `resume`; if the list of "
            "digests is wrong, correct it or leave it out (--exclude), and launch again"
        )


def size_and_mtime(path: Path | str) -> tuple[int, int]:
    """A file's size in bytes and its modification time in nanoseconds.

    Raises ``SourceError`` (``NOT_FOUND``) if it is missing, ``StorageError`` for other errors.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise SourceError(
            f"{quoted(str(path))} no longer exists; put it back, or launch again with its new "
            "location",
            cause=Cause.NOT_FOUND,
        ) from error
    except OSError as error:
        raise from_os_error(error, doing=f"reading the size of {quoted(str(path))}") from error
    return status.st_size, status.st_mtime_ns


def check_unchanged(fetched: Fetched) -> None:
    """Raise ``SourceError`` (``CHANGED``) if a file of the shard changed since it was fetched.

    Call it after the last read; then everything read before is known to be of one version.
    """
    for path, size, mtime_ns in zip(fetched.files, fetched.sizes, fetched.mtimes_ns, strict=True):
        if size_and_mtime(path) != (size, mtime_ns):
            raise SourceError(
                f"{quoted(path)} changed while it was being read; do not modify the source during "
                "a run. Wait until the writer has finished, then run `resume`",
                cause=Cause.CHANGED,
                shard=fetched.shard,
            )
