"""Which paths of a part came more than once, or differ from another in case only."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field

from jobs.model import Entry
from jobs.storage.safe_paths import shown

# 2^27 bits are 16 MiB, touched as far as needed. Of a million paths 4,000 are suspected wrongly,
# which costs a look into the manifest at the part's end, and nothing more.
_BITS = 1 << 27
# The first ones are remembered exactly, in some 8 MiB: bits lie so far apart that each costs a page
# fault, and what is suspected wrongly costs a look at the whole manifest.
_FEW = 1 << 17


class Seen:
    """Remembers paths as single bits, so that a million hostile members cost no more memory.

    ``suspects`` holds keys of what may have come twice; ``Twice`` tells for sure.
    """

    def __init__(self) -> None:
        self._few: set[int] = set()
        self._bits = mmap.mmap(-1, _BITS >> 3)  # zeros that cost nothing until they are touched
        self.suspects: set[int] = set()

    def add(self, path: bytes) -> bool:
        """Note ``path``; whether it, or one that differs in case only, may have been there."""
        key = key_of(path)
        if key in self._few:
            self.suspects.add(key)
            return True
        if len(self._few) < _FEW:
            self._few.add(key)
            return False
        byte, bit = (key & _BITS - 1) >> 3, 1 << (key & 7)
        if self._bits[byte] & bit:
            self.suspects.add(key)
            return True
        self._bits[byte] |= bit
        return False

    def close(self) -> None:
        """Give the memory back; ``suspects`` stay."""
        self._bits.close()


def key_of(path: bytes) -> int:
    """A number that paths share which a file system without case would take for one."""
    folded = path.lower() if path.isascii() else _folded(path)
    return hash(folded)


def _folded(path: bytes) -> bytes:
    text = path.decode("utf-8", "surrogateescape").casefold()
    return text.encode("utf-8", "surrogateescape")


def path_of(entry: Entry) -> bytes:
    """The bytes of an entry's path."""
    return bytes.fromhex(entry.raw) if entry.raw is not None else entry.path.encode()


@dataclass
class Twice:
    """What a manifest's entries say about the suspects."""

    # By archive and path, ordinal and line of the entry that counts: within one archive the last
    # one does. Links come later than their ordinals say.
    last: dict[tuple[int | None, bytes], tuple[int, int]] = field(default_factory=dict)
    replaced: int = 0  # entries that a later one of the same archive and path replaces
    example: bytes = b""
    cases: int = 0  # paths that differ from another in case only
    case_example: tuple[bytes, bytes] = (b"", b"")

    @classmethod
    def among(cls, entries: Iterator[Entry], suspects: set[int]) -> Twice:
        """Judge all entries of a part, in the order they were written."""
        found = cls()
        spelled: dict[bytes, bytes] = {}
        for line, entry in enumerate(entries):
            path = path_of(entry)
            if key_of(path) not in suspects:
                continue
            key, here = (entry.origin, path), (entry.member, line)
            if key in found.last:
                found.replaced += 1
                found.example = path
                found.last[key] = max(found.last[key], here)
                continue
            found.last[key] = here
            other = spelled.setdefault(_folded(path), path)
            if other != path:
                found.cases += 1
                found.case_example = (other, path)
        return found

    def counts(self, entry: Entry, line: int) -> bool:
        """Whether ``entry``, in that line, is what is on disk: no later member replaced it."""
        here = (entry.member, line)
        return self.last.get((entry.origin, path_of(entry)), here) == here

    def warnings(self) -> list[str]:
        """What to tell people."""
        lines = []
        if self.replaced:
            example = f", such as {shown(self.example)}" if self.example else ""
            lines.append(
                f"{self.replaced} members were replaced by later ones of the same path{example}"
            )
        if self.cases:
            one, two = map(shown, self.case_example)
            lines.append(f"{self.cases} paths differ from another in case only: {one} and {two}")
        return lines
