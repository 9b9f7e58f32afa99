"""What an archive's members show together: their top folder, those that later ones replace, sizes.

``MemberIndex`` collects all of it in one pass over a tar, with where it is cut into parts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from msgspec import Struct, structs

from jobs.archives.base import Member, MemberKind, size_of
from jobs.model import Cut, Fetched, Format, Options
from jobs.storage.safe_paths import junk_kind

_TOGETHER = 1024  # names that are hashed together, which is faster
# In what a name is in before it is ``normalized``, if a NUL follows it.
_NOT_NORMALIZED = (b"./", b"//", b"/\0", b".\0")
_BUCKET = 250_000  # names compared at a time; bounds the memory


def normalized(name: bytes) -> bytes:
    """``name`` without ``.``, empty components and a final slash, for comparisons."""
    if b"./" in name or b"//" in name or name[-1:] in (b"/", b"."):
        return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))
    return name


class TopFolder:
    """Finds the common folder of all members that directly contains the layout's files."""

    def __init__(self, options: Options) -> None:
        layout = options.layout
        self._wanted = options.strip_components is None and layout.has_records
        self._images = layout.images.encode()
        self._below = self._images + b"/"
        self._records = layout.records.encode()
        self._prefix: bytes | None = None
        self._found = False
        self.decided_by = b""  # the name of the member that has changed the answer last

    @property
    def settled(self) -> bool:
        """Whether only a member outside of the folder can still change the answer."""
        return not self._wanted or self._found

    @property
    def final(self) -> bool:
        """Whether no member can change the answer."""
        return not self._wanted

    @property
    def top(self) -> str | None:
        if not (self._wanted and self._found and self._prefix):
            return None
        try:
            return self._prefix[:-1].decode("utf-8")
        except UnicodeDecodeError:
            return None  # JSON cannot contain such a name; its files keep the folder

    def add_all(self, members: Sequence[Member]) -> None:
        """Add several members."""
        prefix = self._prefix
        for member in members if self._wanted else ():
            # Those below the folder that was found change nothing, and are most.
            if not (self._found and prefix and member.name.startswith(prefix)):
                self.add(member.name, member.kind)

    def add(self, name: bytes, kind: MemberKind) -> None:
        """Add one member."""
        if not self._wanted:
            return
        if self._prefix is None or not name.startswith(self._prefix):
            name = normalized(name)
            if not name or junk_kind(name):
                return
            first, slash, _ = name.partition(b"/")
            if self._prefix is None:
                self._prefix = first + b"/"
            if first + b"/" != self._prefix or not (slash or kind is MemberKind.FOLDER):
                self._wanted = False
                self.decided_by = name
                return
        if not self._found:
            rest = normalized(name[len(self._prefix) :])
            if rest.startswith(self._below) or rest in (self._images, self._records):
                self._found = True
                self.decided_by = name


class NameHashes:
    """Stores names in 24 bytes each, to find members that a later one replaces."""

    def __init__(self) -> None:
        self._names: list[bytes] = []  # that are not hashed yet
        self._hashes = (array("q"), array("q"))
        self._ordinals = array("q")

    def add(self, name: bytes, ordinal: int) -> None:
        self._names.append(name)
        self._ordinals.append(ordinal)
        if len(self._names) >= _TOGETHER:
            self._hash()

    def add_all(self, names: Sequence[bytes], first: int) -> None:
        """Add members, the first of which has that ordinal, the next one the next."""
        self._names += names
        self._ordinals.extend(range(first, first + len(names)))
        if len(self._names) >= _TOGETHER:
            self._hash()

    def _hash(self) -> None:
        names = self._names[:]
        together = b"\0".join(names) + b"\0"
        if any(part in together for part in _NOT_NORMALIZED):
            names = [normalized(name) for name in names]
        self._names.clear()
        self._hashes[0].extend(map(hash, names))
        self._hashes[1].extend([hash(b"\0" + name) for name in names])

    def superseded(self) -> tuple[int, ...]:
        """Ordinals of the members that a later one with the same name replaces, in order."""
        self._hash()
        buckets = min(16, 1 + len(self._ordinals) // _BUCKET)
        found: list[int] = []
        for bucket in range(buckets):
            own: Sequence[int] = self._hashes[0]
            if buckets > 1:
                own = [one for one in own if one % buckets == bucket]
            if len(set(own)) == len(own):
                continue
            last: dict[tuple[int, int], int] = {}
            for one, two, ordinal in zip(*self._hashes, self._ordinals, strict=True):
                if one % buckets == bucket:
                    key = (one, two)
                    if key in last:
                        found.append(last[key])
                    last[key] = ordinal
        return tuple(sorted(found))


class Streamed(Struct, frozen=True):
    """The result of one pass over a shard: fields of ``Fetched``; all but the first are a tar's."""

    format: Format
    plain: str | None = None
    plain_start: int = 0
    cuts: tuple[Cut, ...] = ()
    members: int | None = None
    data_bytes: int | None = None
    superseded: tuple[int, ...] = ()
    top: str | None = None

    def applied(self, fetched: Fetched) -> Fetched:
        """``fetched`` with the result."""
        return structs.replace(fetched, **structs.asdict(self))


class MemberIndex:
    """Collects a tar's members in their order, in bounded memory."""

    def __init__(self, options: Options) -> None:
        self._names = NameHashes()
        self._data_bytes = 0
        self.top_folder = TopFolder(options)
        self.members = 0
        self.links = 0  # symbolic

    def add(self, batch: Sequence[Member]) -> None:
        """Add the next members: one, or several files."""
        kind = batch[0].kind
        if kind is not MemberKind.FOLDER:
            self._names.add_all([member.name for member in batch], self.members)
        self.top_folder.add_all(batch)
        self.members += len(batch)
        self.links += kind is MemberKind.LINK
        self._data_bytes += size_of(batch)

    def result(
        self, format: Format, cuts: tuple[Cut, ...], plain: str | None = None, plain_start: int = 0
    ) -> Streamed:
        """The result for all members; ``cuts``: where the parts begin, and the end."""
        return Streamed(
            format,
            plain,
            plain_start,
            cuts,
            self.members,
            self._data_bytes,
            self._names.superseded(),
            self.top_folder.top,
        )
