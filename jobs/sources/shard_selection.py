"""Makes the dataset's shards of a source's files, in the same way for all sources."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from jobs.errors import Cause, SourceError
from jobs.formats import magic
from jobs.formats.magic import Packing
from jobs.model import Layout, Shard, ShardKind, SourceFile
from jobs.runtime import background
from jobs.sources import file_names, http_probe, split_archives
from jobs.sources.base import RemoteSource, ShardSelection, SourceRequest
from jobs.sources.families import Family, families
from jobs.storage.safe_paths import quoted, quoted_few

JOIN_NOTHING = "none"  # value of --join: no files are pieces
_SHOWN_SETS = 3  # in a note, at most
_SERIES = re.compile(r"[^/]*?[A-Za-z][-_.](?=\d)")  # of a file's name, before its number


@dataclass(frozen=True)
class Look:
    """How to read the first bytes (``magic.HEAD``) of a source's files."""

    read: Callable[[str], bytes | None]  # of the file with that name; None: it is unreadable
    most: int  # files, if none of them shows that others have to be read too
    at_once: int = 16  # files
    free: bool = False  # whether to read also files whose names are unambiguous

    def heads(self, names: Sequence[str]) -> dict[str, bytes]:
        """The first bytes by name, without unreadable files."""
        found = background.map_interruptible(self.read, names, self.at_once)
        return {name: h for name, h in zip(names, found, strict=True) if h is not None}


@dataclass(frozen=True)
class Group:
    """An archive, or a file in pieces."""

    name: str  # of the joined file
    names: tuple[str, ...]  # of its files, in reading order
    packing: Packing | None = None  # None: not packed


@dataclass(frozen=True)
class SortedFiles:
    """A source's files: which are opened, which are copied, which are left out."""

    groups: tuple[Group, ...]
    loose: tuple[SourceFile, ...]
    files: Mapping[str, SourceFile]  # all of them, by name
    extras: Mapping[str, str]  # left-out files, with their kinds
    home: str = ""  # the dataset's folder, with a final slash; empty for the top folder
    images: str = ""  # the images folder, with a final slash; empty if there is none
    lacks_records: bool = False  # whether no file can contain the records that the layout needs
    was_read: bool = False  # whether first bytes of a file could be read


def select(
    files: Sequence[SourceFile],
    request: SourceRequest,
    look: Look,
    *,
    where: str,
    meant: Set[str] | None = None,
) -> ShardSelection:
    """The shards of ``files``; see ``sort_out``."""
    found = sort_out(files, request, look, where=where, meant=meant)
    shards = shards_of(found)
    if shards and not found.was_read:
        look.read(shards[0].files[0].name)  # find out now, not in the job, whether that is allowed
    return ShardSelection(shards, notes_of(found, request, where))


def select_remote(
    source: RemoteSource,
    files: Sequence[SourceFile],
    request: SourceRequest,
    *,
    where: str,
    meant: Set[str] | None = None,
) -> ShardSelection:
    """``select``, with first bytes from the addresses of ``source``."""
    by_name = {file.name: file for file in files}

    def read(name: str) -> bytes:
        try:
            target = source.resolver(by_name[name], "")()
            return http_probe.probe(target.url, target.headers, wire).head
        except SourceError as error:
            raise source.explained(error, by_name[name]) from None

    with http_probe.Connections(source.at_once) as wire:
        look = Look(read, source.most_heads, source.at_once)
        return select(files, request, look, where=where, meant=meant)


def sort_out(
    files: Sequence[SourceFile],
    request: SourceRequest,
    look: Look,
    *,
    where: str,
    meant: Set[str] | None = None,
    left: Collection[str] = (),
) -> SortedFiles:
    """Find the archives among ``files``, by their bytes if ``look`` reads them, and join pieces.

    ``meant``: the names that the user listed; of other files only pieces that belong to them are
    used. ``left``: see ``file_names.extras``. ``where`` is for messages. Raises ``SourceError`` if
    an archive is not supported, if a piece is missing, and if the request is ambiguous.
    """
    by_name = {file.name: file for file in files}
    extras = {} if meant is not None else file_names.extras(by_name, left)
    names = [name for name in by_name if name not in extras]
    wanted = set(names) if meant is None else meant
    listed = [name for name in names if name in wanted]
    home = file_names.common_folder(listed, request.layout)
    images = _images(names, request, home) if meant is None else ""
    declared, rest = _joined(names, request.join)
    declared = [pieces for pieces in declared if not wanted.isdisjoint(_names(pieces))]
    # In a large folder the names of most files say that they are data: they need no other look.
    undecided = {name for name in rest if not magic.is_never_packed(name)}
    file_names.check_finished([n for n in rest if n in undecided and n in wanted], by_name)
    inside = [name for name in rest if images and name.startswith(images)]
    outside = [name for name in rest if not (images and name.startswith(images))]
    candidates: list[Family] = []
    if JOIN_NOTHING not in request.join:
        for some in (outside, inside) if request.nested else (outside,):
            candidates += families([n for n in some if n in undecided], some)
    candidates = [family for family in candidates if not wanted.isdisjoint(family.names)]
    single = [name for name in outside if name in wanted]
    opened = [name for name in single if name in undecided]
    hidden = [name for name in inside if name in undecided]
    heads = _look(look, declared, candidates, [*opened, *hidden])
    _check_pointers(heads)
    candidates = [family for family in candidates if _may_be_pieces(family, images, heads)]
    sizes = {n: by_name[n].size for each in (*declared, *candidates) for n in _names(each)}
    groups = _groups(declared, candidates, opened, heads, sizes, look)
    if meant is not None and not groups and list(map(magic.packing_named, single)) == [magic.ZIP]:
        # A file that is data beside others (x.zarr.zip) is an archive if it is named alone.
        groups = [Group(single[0], (single[0],), magic.ZIP)]
    _check_readable(groups, where)
    taken = {name for group in groups for name in group.names}
    _check_images([name for name in hidden if name not in taken], heads, request, where)
    if meant is None and not request.include:
        _check_tables(groups, where)
    loose = [by_name[name] for name in [*single, *inside] if name not in taken]
    in_images = f"{request.layout.images}/" if request.layout.has_records else ""
    lacks_records = not groups and _lack_records(listed, request.layout)
    return SortedFiles(
        tuple(groups), tuple(loose), by_name, extras, home, in_images, lacks_records, bool(heads)
    )


def notes_of(found: SortedFiles, request: SourceRequest, where: str) -> tuple[str, ...]:
    """Notes on how a source's files were interpreted."""
    sets = [group for group in found.groups if len(group.names) > 1]
    notes = []
    unused = [glob for glob in request.include if not file_names.chosen(found.files, (glob,), ())]
    if unused:
        notes.append(f"{where}: --include {quoted_few(unused, _SHOWN_SETS)} matches no file")
    for folder in (glob.strip("/") for glob in request.exclude):
        if any(f"/{folder}/" in f"/{name}" for name in found.files):
            notes.append(
                f"{where}: --exclude {quoted(folder)} is the name of a folder, whose files are not "
                f"excluded; if they should be, write {quoted(f'{folder}/*')}"
            )
    if sets:
        count = sum(len(group.names) for group in sets)
        what = f"{len(sets)} archives" if len(sets) > 1 else "one archive"
        notes.append(
            f"{where}: {count} files are read as the pieces of {what}, beginning with "
            f"{file_names.first_names(group.names[0] for group in sets)}. Use --join none to read "
            "each file separately"
        )
    if found.lacks_records:
        notes.append(
            f"{where}: no file can contain records, so the verification will fail; launch with "
            "--layout files to publish the files without records"
        )
    single = [group.name for group in found.groups if len(group.names) == 1]
    single += [file.name for file in found.loose]
    return (
        *notes,
        *file_names.notes_on_lists(single, request.layout, where),
        *_notes_on_sets(found, where),
        *file_names.notes_of(found.extras, where),
    )


def _notes_on_sets(found: SortedFiles, where: str) -> Iterator[str]:
    """Notes on archives that may be different sets, such as training and test.

    Of the place of a file at the source nothing remains but what is in an archive; and records have
    no sign of the parquet file that they are from.
    """
    folders: set[str] = set()
    series: set[str] = set()  # of tars
    tables: set[str] = set()
    for group in found.groups:
        start = group.name.rfind("/") + 1
        folder = group.name[:start]
        numbered = _SERIES.match(group.name, start)
        if group.packing is magic.PARQUET:
            has_number = any(map(str.isdigit, group.name[start:]))
            tables.add(f"{folder}{numbered[0] if numbered else ''}*" if has_number else group.name)
        elif magic.is_container(group.name, group.packing):
            folders.add(f"{folder}*")
            if numbered and magic.is_tar_name(group.name):
                series.add(f"{folder}{numbered[0]}*")
    archives = folders if len(folders) > 1 else series
    if len(archives) > 1:
        fact = (
            "are extracted into one dataset, which may mix their files; to keep them apart, use "
            "--on-collision per-shard (a folder for each archive), or"
        )
        yield _note_on_sets(where, "archives", archives, fact)
    if len(tables) > 1 and found.images:
        fact = "become one list of records if they have pictures; to keep them apart,"
        yield _note_on_sets(where, "parquet files", tables, fact)


def _note_on_sets(where: str, kind: str, globs: Set[str], fact: str) -> str:
    shown = sorted(globs, key=file_names.natural_key)
    example = next(each for each in shown if each != "*")
    return (
        f"{where}: {kind} that may be different sets ({quoted_few(shown, _SHOWN_SETS)}) {fact} "
        f"launch once for each set, with --include {quoted(example)} and another --dest"
    )


def shards_of(found: SortedFiles, *, tree: SourceFile | None = None) -> tuple[Shard, ...]:
    """The archives in natural order, then the single files in natural order.

    Ids of archives contain the folders in which they differ: the names may be those of sets.
    ``tree``: a local folder that is copied as it is; it comes last.
    """
    home = found.home
    made: list[tuple[str, ShardKind, tuple[SourceFile, ...]]] = []
    below: dict[tuple[SourceFile, ...], str] = {}
    for group in sorted(found.groups, key=lambda group: file_names.natural_key(group.names[0])):
        files = tuple(found.files[name] for name in group.names)
        name = group.name
        if not (group.packing and magic.is_tar_name(name)):  # its member has the shard's name
            name = name.removeprefix(home)
        kind = ShardKind.ARCHIVE if group.packing else ShardKind.FILE
        made.append((name, kind, files))
        below[files] = _below(found, group)
    folder = posixpath.commonpath([posixpath.dirname(name) for name, _, _ in made] or [""])
    in_ids = {name: name.removeprefix(f"{folder}/") for name, _, _ in made}
    for file in sorted(found.loose, key=lambda file: file_names.natural_key(file.name)):
        made.append((file.name.removeprefix(home), ShardKind.FILE, (file,)))
    _check_distinct(name for name, kind, _ in made if kind is ShardKind.FILE)
    if tree is not None:
        made.append((tree.name, ShardKind.TREE, (tree,)))
    return tuple(
        Shard(
            file_names.shard_id(index, len(made), in_ids.get(name) or posixpath.basename(name)),
            kind,
            files,
            joined_name=None if len(files) == 1 and files[0].name == name else name,
            below=below.get(files, ""),
        )
        for index, (name, kind, files) in enumerate(made)
    )


def _below(found: SortedFiles, group: Group) -> str:
    """The folder for an archive's files: its own folder, if that is within the images."""
    name = group.name.removeprefix(found.home)
    if not (
        found.images and name.startswith(found.images) and magic.is_container(name, group.packing)
    ):
        return ""
    return name[: name.rfind("/") + 1]


# Steps ------------------------------------------------------------------------------------------


def _images(names: Sequence[str], request: SourceRequest, home: str) -> str:
    """The images folder, with a final slash, whose files are data; empty if there is none.

    If there are neither records nor archives beside it, or only archives in it, its archives are
    the dataset's.
    """
    layout = request.layout
    if not layout.has_records:
        return ""
    images, records = f"{home}{layout.images}/", f"{home}{layout.records}"
    inside = (name for name in names if name.startswith(images))
    if not any(magic.is_data_name(name) or not magic.last_ending(name) for name in inside):
        return ""
    beside = (name for name in names if not name.startswith(images))
    has_data = any(
        magic.decompressed_name(name) == records
        or magic.is_container(name, magic.packing_named(name))
        for name in beside
    )
    return images if has_data else ""


def _may_be_pieces(family: Family, images: str, heads: Mapping[str, bytes]) -> bool:
    """Whether files may be pieces; in the images folder only those that begin like an archive."""
    first = family.names[0]
    if not (images and first.startswith(images)):
        return True
    return magic.is_container(family.joined_name, _packing(first, heads, family.joined_name))


def _lack_records(names: Sequence[str], layout: Layout) -> bool:
    """Whether none of these files, which are no archives, can contain records."""
    if layout.name not in ("auto", "websight"):
        return False
    endings = (*magic.RECORDS, layout.records.lower())
    return not any(name.lower().endswith(endings) for name in names)


def _joined(
    names: Sequence[str], globs: Sequence[str]
) -> tuple[list[Family | tuple[str, ...]], list[str]]:
    """The sets of pieces that the user declared, and the other names.

    Several sets may match one glob, if their names distinguish them.
    """
    sets: list[Family | tuple[str, ...]] = []
    left = list(names)
    for pattern in globs:
        matched = file_names.chosen(left, (pattern,), ()) if pattern != JOIN_NOTHING else []
        if not matched and pattern != JOIN_NOTHING:
            raise SourceError(
                f"--join {quoted(pattern)} matches no file of the source; check the pattern",
                cause=Cause.USAGE,
            )
        found = families(matched)
        if sum(len(family.names) for family in found) == len(matched):
            sets += found
        else:
            sets.append(tuple(sorted(matched, key=file_names.natural_key)))
        taken = set(matched)
        left = [name for name in left if name not in taken]
    return sets, left


def _names(chosen: Family | tuple[str, ...]) -> tuple[str, ...]:
    return chosen.names if isinstance(chosen, Family) else chosen


def _groups(
    declared: Sequence[Family | tuple[str, ...]],
    candidates: Sequence[Family],
    single: Sequence[str],
    heads: Mapping[str, bytes],
    sizes: split_archives.Sizes,
    look: Look,
) -> list[Group]:
    """The archives: those in pieces that the user declared, in other pieces, and in one file.

    If one file with an ending that says nothing is an archive, all others with it are examined.
    """
    groups = [_joined_group(pieces, heads, sizes) for pieces in declared]
    for family in candidates:
        if split_archives.are_pieces(family, heads, sizes):
            packing = _packing(family.names[0], heads, family.joined_name)
            groups.append(Group(family.joined_name, family.names, packing))
    taken = {name for group in groups for name in group.names}
    left = [name for name in single if name not in taken]
    packed = [name for name in left if name in heads and magic.packing_of(heads[name])]
    if kinds := {_kind(name) for name in packed} - {None}:
        unseen = [name for name in left if name not in heads and _kind(name) in kinds]
        heads = {**heads, **look.heads(unseen)}
    for name in left:
        if packing := _packing(name, heads):
            groups.append(Group(name, (name,), packing))
    return groups


def _kind(name: str) -> str | None:
    """The ending of a file whose bytes decide whether it is an archive; None for others."""
    packing = magic.packing_named(name)
    is_known = (packing is not None and packing.is_read) or magic.is_data_name(name)
    return None if is_known else magic.last_ending(name)


def _joined_group(
    chosen: Family | tuple[str, ...], heads: Mapping[str, bytes], sizes: split_archives.Sizes
) -> Group:
    names = _names(chosen)
    joined_name = names[0]
    if isinstance(chosen, Family):
        split_archives.check_complete(chosen, sizes)
        joined_name = chosen.joined_name
    packing = _packing(names[0], heads, joined_name)
    if packing is None and not magic.is_data_name(joined_name):
        raise SourceError(
            f"{quoted(names[0])} is the first of the {len(names)} files that --join "
            "concatenates, but does not begin like an archive; check the glob, and that the first "
            "piece exists",
            cause=Cause.USAGE,
        )
    return Group(joined_name, names, packing)


def _look(
    look: Look,
    sets: Sequence[Family | tuple[str, ...]],
    candidates: Sequence[Family],
    single: Sequence[str],
) -> Mapping[str, bytes]:
    """First bytes where they matter, the most significant ones first."""
    wanted = [_names(chosen)[0] for chosen in sets]
    for family in candidates:
        wanted += [family.names[0], *family.names[1:2], family.names[-1]]
    of_a_kind = look.most if look.free else look.most // 4  # leave some for other kinds
    seen: Counter[str] = Counter()
    for name in single:
        if (kind := _kind(name)) is not None:
            seen[kind] += 1
            if seen[kind] <= of_a_kind:
                wanted.append(name)
    if look.free:
        wanted += [name for name in single if magic.packing_named(name)]
    return look.heads(list(dict.fromkeys(wanted))[: look.most])


def _packing(name: str, heads: Mapping[str, bytes], joined_name: str = "") -> Packing | None:
    """A file's packing, by its bytes; by its name if they are unknown or ambiguous."""
    joined_name = joined_name or name
    if magic.is_data_name(joined_name):
        return None
    head = heads.get(name)
    named = magic.packing_named(joined_name)
    if head is None:
        return named
    packing = magic.packing_of(head)
    is_text = joined_name.lower().endswith(magic.OR_TEXTS) and split_archives.is_text(head)
    return packing or (None if is_text else named)


def _check_pointers(heads: Mapping[str, bytes]) -> None:
    pointers = [name for name, head in heads.items() if head.startswith(magic.LFS_POINTER)]
    if pointers:
        raise SourceError(
            f"some files are Git LFS pointers ({file_names.first_names(pointers)}); run `git lfs "
            "pull` in the cloned repository, or ask its publisher to add the files"
        )


def _check_readable(groups: Iterable[Group], where: str) -> None:
    for group in sorted(groups, key=lambda group: file_names.natural_key(group.name)):
        if group.packing is not None and not group.packing.is_read:
            glob = file_names.exclude_glob(group.name, pieces=group.names != (group.name,))
            raise SourceError(
                f"{where}: {quoted(group.name)} cannot be extracted: {group.packing.remedy} (or "
                f"exclude it with --exclude {quoted(glob)})",
                cause=Cause.UNSUPPORTED,
            )


def _check_images(
    inside: Sequence[str], heads: Mapping[str, bytes], request: SourceRequest, where: str
) -> None:
    """Raise ``SourceError`` for archives among the images, which nothing would open."""
    found = [name for name in inside if magic.is_container(name, _packing(name, heads))]
    if found and not request.nested:
        raise SourceError(
            f"{where}: the images folder contains archives ({file_names.first_names(found)}); "
            "launch with --nested to extract each into the folder that it is in, or exclude them "
            "with --exclude"
        )


def _check_tables(groups: Sequence[Group], where: str) -> None:
    """Raise ``SourceError`` if archives and parquet files may be the same data."""
    tables = sum(group.packing is magic.PARQUET for group in groups)
    archives = sum(magic.is_container(group.name, group.packing) for group in groups)
    if tables and archives:
        raise SourceError(
            f"{where} contains archives ({archives}) and parquet files ({tables}), which may be "
            "the same data; choose one kind with --exclude '*.parquet' or --include "
            "'*.parquet', or, if they belong together, use both with --include '*'",
            cause=Cause.USAGE,
        )


def _check_distinct(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SourceError(
                f"two loose files are named {quoted(name)}; a dataset cannot contain both, so "
                "exclude one with --exclude"
            )
        seen.add(name)
