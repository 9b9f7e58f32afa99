"""A position in a stream of blocks: reads, skips, and returns content without copying it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

ONE_PIECE = 1 << 20  # bytes in one piece, at most


class ShortError(EOFError):
    """The stream ended ``missing`` bytes before the end of the requested range."""

    def __init__(self, missing: int) -> None:
        super().__init__(f"{missing} bytes are missing")
        self.missing = missing


class Cursor:
    """Reads ``blocks`` in order; ``start`` is the offset of their first byte."""

    __slots__ = ("_base", "_blocks", "_end", "_pos", "_view")

    def __init__(self, blocks: Iterator[memoryview], start: int = 0) -> None:
        self._blocks = blocks
        self._view = memoryview(b"")
        self._pos = 0
        self._end = 0
        self._base = start

    @property
    def offset(self) -> int:
        """The offset of the next byte in the stream."""
        return self._base + self._pos

    def _next(self) -> memoryview | None:
        """The next block; None at the end of the stream."""
        return next(self._blocks, None)

    def _more(self) -> bool:
        """Make at least one byte available; False at the end of the stream."""
        while self._pos >= self._end:
            block = self._next()
            if block is None:
                return False
            self._base += self._end
            self._view, self._pos, self._end = block, 0, len(block)
        return True

    def at_end(self) -> bool:
        return self._pos >= self._end and not self._more()

    def held(self) -> tuple[memoryview, int]:
        """The current block, and the next byte's index in it."""
        return self._view[: self._end], self._pos

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes, at most 1 MiB, in one piece; raises ``ShortError``.

        They are copied only if they are in two blocks.
        """
        pos = self._pos
        end = pos + size
        if end <= self._end:
            self._pos = end
            return self._view[pos:end]
        if size > ONE_PIECE:
            raise ValueError(f"{size} bytes in one piece are too many")
        joined = bytearray(size)
        filled = 0
        for chunk in self.chunks(size):
            joined[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return memoryview(joined)

    def chunks(self, size: int) -> Iterator[memoryview]:
        """The next ``size`` bytes in chunks; raises ``ShortError``."""
        while size > 0:
            if self._pos >= self._end and not self._more():
                raise ShortError(size)
            pos = self._pos
            step = min(size, self._end - pos)
            self._pos = pos + step
            size -= step
            yield self._view[pos : pos + step]

    def skip_to(self, offset: int) -> None:
        """Skip to ``offset``, which must not be before the current one; raises ``ShortError``."""
        size = offset - self._base - self._pos
        if size > self._end - self._pos:
            for _ in self.chunks(size):
                pass
        else:
            self._pos += size

    def peek(self, size: int) -> memoryview:
        """The next ``size`` bytes, fewer at the end of the stream, without advancing."""
        while self._end - self._pos < size:
            block = self._next()
            if block is None:
                break
            joined = memoryview(bytes(self._view[self._pos : self._end]) + bytes(block))
            self._base += self._pos
            self._view, self._pos, self._end = joined, 0, len(joined)
        return self._view[self._pos : min(self._pos + size, self._end)]

    def skip_zeros(self, step: int) -> memoryview:
        """Skip zeros, ``step`` bytes at a time; returns what follows, without advancing."""
        while head := self.peek(step):
            if bytes(head).strip(b"\0"):
                break
            held = bytes(self._view[self._pos : self._end])
            zeros = len(held) - len(held.lstrip(b"\0"))
            self._pos += max(len(head), zeros - zeros % step)
        return head


class SeekingCursor(Cursor):
    """A cursor over a complete file: skipped bytes are not read.

    ``pread(size, offset)`` reads from it; ``length``: its size in bytes.
    """

    __slots__ = ("_length", "_pread", "_step")

    _FIRST = 4096  # bytes read after a jump; enough for a header

    def __init__(self, pread: Callable[[int, int], bytes], length: int, start: int) -> None:
        super().__init__(iter(()), start)
        self._pread = pread
        self._length = length
        self._step = self._FIRST

    def _next(self) -> memoryview | None:
        offset = self._base + self._end
        if offset >= self._length:
            return None
        block = memoryview(self._pread(self._step, offset))
        # Sequential reads get larger blocks.
        self._step = min(self._step * 4, ONE_PIECE)
        return block

    def skip_to(self, offset: int) -> None:
        size = offset - self._base - self._pos
        if size <= self._end - self._pos:
            self._pos += size
            return
        if offset > self._length:
            raise ShortError(offset - self._length)
        self._base, self._pos, self._end = offset, 0, 0
        self._step = self._FIRST
