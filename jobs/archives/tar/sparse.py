"""Sparse tar members: the maps of their data, in GNU's old form and in pax 0.0, 0.1 and 1.0.

https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jobs.formats.tar_header import BLOCK, HeaderError, number, pax_size
from jobs.storage.blocks import zeros

Map = list[tuple[int, int]]  # (offset, length) of each piece of data, in bytes

_MOST_PIECES = 1 << 17  # of one member's map; bounds the memory
_MOST_DIGITS = 20

Take = Callable[[int], memoryview]  # the next bytes of the archive


def old_gnu(raw: bytes, take: Take) -> tuple[Map, int]:
    """The map and the real size of a member of type S; ``take`` reads its extension blocks."""
    pieces = _old_entries(raw[386:482])
    more = raw[482]
    while more:
        block = bytes(take(BLOCK))
        pieces += _old_entries(block[:504])
        more = block[504]
        if len(pieces) > _MOST_PIECES:
            raise HeaderError("its sparse map is too long")
    return pieces, number(raw[483:495], "real size")


def _old_entries(data: bytes) -> Map:
    entries = []
    for start in range(0, len(data), 24):
        entry = data[start : start + 24]
        if entry[0] == 0 and entry[12] == 0:
            break
        entries.append((number(entry[:12], "offset"), number(entry[12:], "length")))
    return entries


def pax_0(records: Sequence[tuple[bytes, bytes]]) -> Map:
    """The map in pax records: pairs of them (0.0), or one with all numbers (0.1)."""
    numbers = []
    for key, value in records:
        if key == b"GNU.sparse.map":
            numbers = [pax_size(item, "sparse map") for item in value.split(b",") if item]
        elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            numbers.append(pax_size(value, "sparse map"))
    return _pairs(numbers)


def pax_1(take: Take) -> tuple[Map, int]:
    """The map at the start of the content (1.0), and its length in bytes."""
    used = 0
    data = b""

    def line() -> int:
        nonlocal data, used
        while b"\n" not in data:
            if len(data) > _MOST_DIGITS:
                raise HeaderError("its sparse map is damaged")
            data += bytes(take(BLOCK))
            used += BLOCK
        head, _, data = data.partition(b"\n")
        return pax_size(head, "sparse map")

    count = line()
    if count > _MOST_PIECES:
        raise HeaderError("its sparse map is too long")
    return _pairs([line() for _ in range(2 * count)]), used


def _pairs(numbers: list[int]) -> Map:
    if len(numbers) % 2 or len(numbers) > 2 * _MOST_PIECES:
        raise HeaderError("its sparse map is damaged")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def check(pieces: Map, size: int, stored: int) -> None:
    """Raise unless pieces are ordered, disjoint, within ``size``, and ``stored`` bytes in total."""
    end = total = 0
    for offset, length in pieces:
        if offset < end or offset + length > size:
            raise HeaderError("its sparse map is out of order or beyond its size")
        end = offset + length
        total += length
    if total != stored:
        raise HeaderError(f"its sparse map describes {total} bytes, but {stored} are stored")


def expand(
    pieces: Map, size: int, chunks: Callable[[int], Iterator[memoryview]]
) -> Iterator[memoryview]:
    """All ``size`` bytes, holes as zeros; ``chunks`` returns the next bytes of data."""
    position = 0
    for offset, length in pieces:
        yield from zeros(offset - position)
        yield from chunks(length)
        position = offset + length
    yield from zeros(size - position)
