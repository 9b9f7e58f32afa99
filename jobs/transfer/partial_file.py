"""The partial file: which bytes of which version are on disk, and their hash."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from jobs.errors import StorageError, as_storage_error, from_os_error
from jobs.model import SCHEMA, Digest
from jobs.storage import atomic, presence
from jobs.storage import digest as digests
from jobs.storage.digest import Hasher
from jobs.storage.latency import OneBehind
from jobs.transfer.ranges import InMemory, Range, Ranges, Window
from jobs.transfer.responses import Validator

_SAVE_BYTES = 4 << 20
_SAVE_S = 1.0
_SYNC_BYTES = 128 << 20
_SYNC_S = 10.0
_CHUNK = 1 << 20
_SYNCED = "synced"  # a line of the sidecar: everything before it is durable
_TINY = 1 << 16  # bytes, up to which a file is downloaded again rather than continued


@dataclass(frozen=True)
class FileVersion:
    """Identifies the version of a file."""

    size: int | None
    validator: Validator
    digest: Digest | None  # published


@cache
def _boot() -> str:
    """An id of this boot of this host; written data are only at risk if it changes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class PartialFile:
    """``NAME.part`` and ``NAME.part.json`` beside ``out``; thread-safe.

    ``window``: only some of the bytes are stored at a time, and the file is removed once it is
    complete; with a window of all bytes only after ``use_memory``. There is no sidecar of a tiny
    file, because creating it takes longer than it could save, nor of one whose size is not known,
    because only a complete response shows whether everything is here. Raises ``StorageError`` for
    errors of the file system.
    """

    def __init__(self, out: Path, window: Window | None = None) -> None:
        self.out = out
        self._window = None if window is not None and window.is_all else window
        self.memory: InMemory | None = None
        self._memory_fd = -1
        self._allowed = 0  # where the bytes end that may be on disk, or will be soon
        self.path = out.with_name(out.name + ".part")
        self.sidecar = out.with_name(out.name + ".part.json")
        self._ranges = Ranges()
        self._durable = Ranges()  # of an earlier attempt: bytes that no crash has lost
        self._durable_end = 0  # offset in the sidecar: what it has before is durable
        self.identity: FileVersion | None = None
        self._lock = threading.Lock()
        self._unsaved = Ranges()
        self._unsaved_bytes = 0
        self._saved_at = self._synced_at = time.monotonic()
        self._unsynced_bytes = 0
        self._syncing = OneBehind()
        self._log = -1
        self._failed: StorageError | None = None
        self._has_sidecar = True  # perhaps
        try:
            self.fd = self._open(os.O_CREAT | os.O_EXCL)
            self._is_new = True  # no other process has it open
        except FileExistsError:
            self.fd = self._open(os.O_CREAT)
            self._is_new = False
        if self.is_stored and not self._is_new:
            self._load()

    # Bytes ------------------------------------------------------------------------------

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write bytes; returns how many are new. The sidecar is updated a little later."""
        if self._failed is not None:
            raise self._failed
        view = memoryview(data)
        at = offset
        with self._disk(f"writing {self.path}"):
            while view:
                fd, place, most = self._place(at)
                count = os.pwrite(fd, view[:most], place)
                view, at = view[count:], at + count
        with self._lock:
            new = self._ranges.add(offset, at)
            on_disk = at if self.memory is None else min(at, max(offset, self.memory.start))
            self._unsaved.add(offset, on_disk)
            self._unsaved_bytes += on_disk - offset
            due = self._unsaved_bytes >= _SAVE_BYTES or time.monotonic() - self._saved_at > _SAVE_S
            # While a sync is running it is not known which bytes it will have written out.
            syncs = due and self._log >= 0 and not self._syncing.busy and self._save()
        if syncs:
            with as_storage_error(f"writing {self.sidecar}"):
                self._syncing.start(self._sync)
        return new

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Read bytes of the file into ``buffer``; returns how many."""
        fd, place, most = self._place(offset)
        try:
            return os.preadv(fd, [buffer[:most]], place)
        except OSError as error:
            raise from_os_error(error, doing=f"reading {self.path}") from error

    def _place(self, offset: int) -> tuple[int, int, int | None]:
        """In which file a byte is stored, where, and how many follow it there."""
        if self.memory is not None:
            in_memory = offset >= self.memory.start
            return (self._memory_fd if in_memory else self.fd, *self.memory.place(offset))
        return (
            (self.fd, offset, None)
            if self._window is None
            else (self.fd, *self._window.place(offset))
        )

    @property
    def is_stored(self) -> bool:
        """Whether all bytes are on disk, once they have arrived."""
        return self._window is None and self.memory is None

    def may_store(self, stop: int) -> bool:
        """Whether bytes up to ``stop`` may be written at once, because they will be on disk."""
        with self._lock:
            if self.is_stored:
                self._allowed = max(self._allowed, stop)
            return self.is_stored

    def use_memory(self, size: int, on_use: Callable[[InMemory], None]) -> bool:
        """Store bytes that have not arrived in ``size`` bytes of memory, not on disk.

        ``on_use`` is called before any of them is there. False if that was done before, or is not
        possible.
        """
        try:
            fd = os.memfd_create(self.out.name)
        except OSError:
            return False
        path = f"/proc/{os.getpid()}/fd/{fd}"
        with self._lock:
            if self.memory is not None or not presence.exists(path):
                os.close(fd)
                return False
            self._memory_fd = fd
            on_disk = max([self._allowed, *(stop for _, stop in self._ranges)])
            memory = InMemory(on_disk, Window(size), path)
            on_use(memory)
            self.memory = memory
        return True

    @property
    def prefix(self) -> int:
        """How many bytes from the start are on disk."""
        with self._lock:
            return self._ranges.prefix

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The bytes that are on disk, in order."""
        with self._lock:
            return tuple(self._ranges)

    @property
    def total(self) -> int:
        """How many bytes are on disk."""
        with self._lock:
            return self._ranges.total

    def missing(self, start: int, stop: int) -> list[Range]:
        """The parts of a range that are missing."""
        with self._lock:
            return self._ranges.outside(start, stop)

    # The sidecar ------------------------------------------------------------------------

    def identify(self, identity: FileVersion) -> None:
        """Store the version in the sidecar; the bytes on disk are of this version."""
        self._syncing.close()
        with self._lock:
            self.identity = identity
            if not self.is_stored:
                return  # another attempt cannot use the bytes
            if identity.size is None or identity.size <= _TINY:
                return
            self._has_sidecar = True
            header = {"schema": SCHEMA, "boot": _boot(), **asdict(identity)}
            durable = [header, list(self._durable), _SYNCED]
            lines = [msgspec.json.encode(line) + b"\n" for line in (*durable, list(self._ranges))]
            self._durable_end = sum(map(len, lines[:-1]))
            with as_storage_error(f"writing {self.sidecar}"):
                # Renamed when complete, so that the first line is never incomplete.
                atomic.write_bytes(self.sidecar, b"".join(lines), durable=False)
                if self._log >= 0:
                    before, self._log = self._log, -1  # in case the next step fails
                    os.close(before)
                self._log = os.open(self.sidecar, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._unsaved = Ranges()
            self._unsaved_bytes = 0

    def _save(self) -> bool:
        """Append the new ranges to the sidecar; returns whether to make their bytes durable."""
        now = time.monotonic()
        line = msgspec.json.encode(list(self._unsaved)) + b"\n"
        self._unsynced_bytes += self._unsaved_bytes
        self._unsaved, self._unsaved_bytes, self._saved_at = Ranges(), 0, now
        with as_storage_error(f"writing {self.sidecar}"):
            os.write(self._log, line)
        syncs = self._unsynced_bytes >= _SYNC_BYTES or now - self._synced_at > _SYNC_S
        if syncs:
            self._unsynced_bytes, self._synced_at = 0, now
        return syncs

    def _sync(self) -> None:
        """Make the bytes in the sidecar durable, and note it there: a crash cannot lose them."""
        with self._disk(f"writing {self.path}"):
            os.fdatasync(self.fd)
        with self._lock:
            if self._log >= 0:
                os.write(self._log, msgspec.json.encode(_SYNCED) + b"\n")
                os.fdatasync(self._log)
                self._durable_end = os.fstat(self._log).st_size

    @contextmanager
    def _disk(self, doing: str) -> Iterator[None]:
        """Raise an ``OSError`` as ``StorageError``; another attempt uses only durable bytes then.

        The system reports once that bytes written earlier did not reach the disk, and forgets them.
        """
        try:
            yield
        except OSError as error:
            failed = from_os_error(error, doing=doing)
            with self._lock:
                if self._log >= 0:
                    with suppress(OSError):
                        os.ftruncate(self._log, self._durable_end)
                    os.close(self._log)
                    self._log = -1
            self._failed = failed  # now that the sidecar has none of these bytes
            raise failed from error

    def _load(self) -> None:
        try:
            header, *lines = atomic.read_bytes(self.sidecar).split(b"\n")
            value: dict[str, Any] = msgspec.json.decode(header, type=dict[str, Any])
            validator = msgspec.convert(value["validator"], Validator)
            digest = msgspec.convert(value["digest"], Digest | None)
            size = msgspec.convert(value["size"], int)
            here = os.fstat(self.fd).st_size
        except (OSError, KeyError, ValueError, msgspec.MsgspecError):
            return  # missing or unusable: start from the beginning
        if value.get("schema") != SCHEMA or not (validator or digest):
            return
        self.identity = FileVersion(size, validator, digest)
        durable, others = _journaled(lines)
        self._durable = Ranges((start, min(stop, here)) for start, stop in durable)
        same_boot = value.get("boot") == _boot()  # then the others are not lost
        known = [*durable, *others] if same_boot else durable
        self._ranges = Ranges((start, min(stop, here)) for start, stop in known)

    # The end ----------------------------------------------------------------------------

    def start_over(self) -> None:
        """Create a new, empty file; an older process keeps writing to the old one."""
        self._drop_log()
        if self._is_new and not self.total:
            with as_storage_error(f"removing {self.sidecar}"):
                self.sidecar.unlink(missing_ok=True)
        else:
            self._remove()
            with as_storage_error(f"opening {self.path}"):
                fresh = self._open(os.O_CREAT | os.O_EXCL)
            os.close(self.fd)
            self.fd = fresh
        self._is_new = self._has_sidecar = False
        with self._lock:
            self._ranges, self._durable, self.identity = Ranges(), Ranges(), None
            self._allowed = 0
            self._close_memory()

    def finish(self, size: int) -> None:
        """Rename the complete file, durably."""
        if not self.is_stored:
            self._remove()
            return
        with self._disk(f"finishing {self.out}"):
            if os.fstat(self.fd).st_size != size:
                os.ftruncate(self.fd, size)
            self._syncing.wait()
            os.fsync(self.fd)
            here = os.fstat(self.fd)
            try:
                there = self.path.stat()
                ours = (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
            except FileNotFoundError:
                done = self.out.stat()  # another process finished the same file
                if (here.st_dev, here.st_ino) == (done.st_dev, done.st_ino):
                    return
                raise
            if not ours:
                raise StorageError(f"{self.path} was replaced by another process; run `resume`")
            self.path.replace(self.out)
            if self._has_sidecar:
                self.sidecar.unlink(missing_ok=True)
            atomic.fsync_folder(self.out.parent)

    def close(self) -> None:
        """Close the files; bytes in the sidecar can be used by another attempt."""
        self._syncing.close()
        try:
            with self._disk(f"closing {self.path}"):
                os.close(self.fd)
        finally:
            with self._lock:
                self._close_memory()
                try:
                    if self._log >= 0 and self._unsaved_bytes:
                        self._save()
                finally:
                    if self._log >= 0:
                        os.close(self._log)
                    self._log = -1

    def _close_memory(self) -> None:
        if self.memory is not None:
            os.close(self._memory_fd)
        self.memory = None

    def _drop_log(self) -> None:
        self._syncing.close()
        with self._lock:
            if self._log >= 0:
                os.close(self._log)
            self._log = -1
            self._unsaved, self._unsaved_bytes = Ranges(), 0

    def _remove(self) -> None:
        with as_storage_error(f"removing {self.path}"):
            self.sidecar.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def _open(self, flags: int) -> int:
        """Open the partial file; with ``O_EXCL`` it may raise ``FileExistsError``."""
        try:
            return os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o666)
        except OSError as error:
            if flags & os.O_EXCL and isinstance(error, FileExistsError):
                raise
            raise from_os_error(error, doing=f"opening {self.path}") from error


def _journaled(lines: list[bytes]) -> tuple[list[Range], list[Range]]:
    """The durable ranges of a journal, and the others; ignores an incomplete last line."""
    durable: list[Range] = []
    others: list[Range] = []
    for line in lines:
        try:
            value = msgspec.json.decode(line, type=list[tuple[int, int]] | str)
        except msgspec.MsgspecError:
            break
        if isinstance(value, str):
            durable += others
            others = []
        else:
            others += value
    return durable, others


class RunningHash:
    """SHA-256, and the published algorithm if it is a different one, of a partial file.

    Bytes that arrive in order are hashed directly; for a large file a thread reads them back from
    the page cache, so that many connections may write out of order.
    """

    def __init__(self, partial: PartialFile, expected: Digest | None, size: int | None) -> None:
        self._partial = partial
        self._sha256 = digests.new("sha256")
        self._hashers: dict[str, Hasher] = {"sha256": self._sha256}
        # A blob id needs the size first; if that is known late, the file is read again.
        if expected is not None and not (expected.algorithm == "git-sha1" and size is None):
            new = digests.new(expected.algorithm, size=size)
            self._hashers.setdefault(expected.algorithm, new)
        self._at = 0
        self._grown = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: StorageError | None = None

    def start(self) -> None:
        """Start hashing in a thread."""
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def feed(self, offset: int, data: bytes) -> None:
        """Note that these bytes were written to the file."""
        if self._thread is not None:
            if self._partial.prefix - self._at >= _CHUNK:
                self._grown.set()
        elif offset == self._at:
            self._update(data)

    @property
    def hashed(self) -> int:
        """How many bytes from the start are hashed; raises ``StorageError`` if it has failed."""
        if self._error is not None:
            raise self._error
        return self._at

    def finish(self) -> dict[str, Digest]:
        """The digests of the complete file, by algorithm."""
        self.stop()
        if self._error is not None:
            raise self._error
        self._catch_up(lambda: False)
        return {name: Digest(name, one.hexdigest()) for name, one in self._hashers.items()}

    def stop(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._ending.set()
            self._grown.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._grown.wait()
                self._grown.clear()
                self._catch_up(self._ending.is_set)
        except StorageError as error:
            self._error = error

    def _catch_up(self, stopped: Callable[[], bool]) -> None:
        buffer = memoryview(bytearray(_CHUNK))
        while not stopped() and (left := self._partial.prefix - self._at) > 0:
            count = self._partial.read_into(buffer[: min(left, _CHUNK)], self._at)
            if not count:
                raise StorageError(f"{self._partial.path} has become shorter; run `resume`")
            self._update(buffer[:count])

    def _update(self, data: bytes | memoryview) -> None:
        for hasher in self._hashers.values():
            hasher.update(data)
        self._at += len(data)
