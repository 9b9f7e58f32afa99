"""A body in gzip that nobody asked for: whether to unwrap it, and the unwrapping."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from jobs.errors import Cause, SourceError
from jobs.transfer.responses import Again, content_length, encoding

MOST_CODED = 1 << 16  # bytes to hand over at once: they may become a thousand times as many
_GZIP = b"\x1f\x8b"
_CODINGS = {"gzip": 31, "deflate": 47}  # zlib's window bits


class Body:
    """Turns what arrives into the bytes of the file; mostly it changes nothing."""

    def __init__(self, headers: Mapping[str, str], *, name: str, size: int | None) -> None:
        self._name = name
        self._coding = encoding(headers)
        self._inflater: Any = None
        self._decided = not self._coding
        # Servers label a .tar.gz as "gzip" though its gzip is the file's own: the size tells.
        if self._coding and size is not None and content_length(headers) == size:
            self._decided = True
        elif self._coding and self._coding not in _CODINGS:
            raise SourceError(
                f"{name}: the server sends it as {self._coding!r} although plain bytes were "
                "requested, and this coding is not supported; use another address"
            )
        self._asked_size = size

    @property
    def changes(self) -> bool:
        """Whether the length of the file is not that of the body."""
        return self._inflater is not None or not self._decided

    def file_bytes(self, data: bytes) -> bytes:
        """The file's next bytes."""
        if not self._decided:
            self._decide(data)
        if self._inflater is None:
            return data
        plain = b""
        try:
            while data:
                if self._inflater.eof:  # a coding may be of several members (RFC 1952, 2.2)
                    data = data.lstrip(b"\0")  # behind a member, as gzip(1) lets them pass
                    if not data:
                        break
                    self._inflater = zlib.decompressobj(_CODINGS[self._coding])
                plain += self._inflater.decompress(data)
                data = self._inflater.unused_data
        except zlib.error as error:
            raise Again(self._broken("is damaged")) from error
        return plain

    def end(self) -> None:
        """The body has ended; raises ``Again`` where it was cut."""
        if self._inflater is not None and not self._inflater.eof:
            raise Again(self._broken("was cut short"))

    def _decide(self, data: bytes) -> None:
        self._decided = True
        inflater = zlib.decompressobj(_CODINGS[self._coding])
        try:
            head = inflater.decompress(data, 4096)
        except zlib.error:
            return  # not coded at all, whatever the header says
        is_gz = self._name.lower().endswith((".gz", ".tgz"))
        # One layer of gzip on a name that ends so: it is the file's own, as browsers hold too.
        if is_gz and self._asked_size is None and not head.startswith(_GZIP):
            return
        self._inflater = zlib.decompressobj(_CODINGS[self._coding])

    def _broken(self, fact: str) -> SourceError:
        return SourceError(
            f"{self._name}: the {self._coding} coding that the server applied {fact}; try again",
            cause=Cause.NETWORK,
        )
