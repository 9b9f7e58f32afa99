"""The hash of a file, taken while its bytes arrive, in order, behind the transfer."""

from __future__ import annotations

import threading
from collections.abc import Callable

from jobs.errors import StorageError
from jobs.model import Digest
from jobs.storage import digest as digests
from jobs.storage.digest import Hasher
from jobs.transfer.partial_file import Partial

_CHUNK = 1 << 20


class Frontier:
    """SHA-256, and the published algorithm where it is another one, of a partial file's prefix.

    Bytes that come in order are hashed as they pass; a big file's are read back from the page
    cache by a thread of its own, so that many connections may write out of order.
    """

    def __init__(self, partial: Partial, expected: Digest | None, size: int | None) -> None:
        self._partial = partial
        self._sha256 = digests.new("sha256")
        self._hashers: dict[str, Hasher] = {"sha256": self._sha256}
        # A blob id needs the size first: where that comes late, the file is read once more.
        if expected is not None and not (expected.algorithm == "git-sha1" and size is None):
            new = digests.new(expected.algorithm, size=size)
            self._hashers.setdefault(expected.algorithm, new)
        self._at = 0
        self._grown = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: StorageError | None = None

    def start(self) -> None:
        """Hash in a thread from now on."""
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def feed(self, offset: int, data: bytes) -> None:
        """These bytes are in the file now."""
        if self._thread is not None:
            if self._partial.prefix - self._at >= _CHUNK:
                self._grown.set()
        elif offset == self._at:
            self._update(data)

    def finish(self) -> dict[str, Digest]:
        """The digests of the whole file, by algorithm."""
        self.stop()
        if self._error is not None:
            raise self._error
        self._catch_up(lambda: False)
        return {name: Digest(name, one.hexdigest()) for name, one in self._hashers.items()}

    def stop(self) -> None:
        """Let the thread end."""
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
                return  # shorter than the sidecar says; the digest will tell
            self._update(buffer[:count])

    def _update(self, data: bytes | memoryview) -> None:
        for hasher in self._hashers.values():
            hasher.update(data)
        self._at += len(data)
