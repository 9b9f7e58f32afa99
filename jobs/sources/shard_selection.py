"""From a source's files to the dataset's shards; the same for every source."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from jobs.errors import Cause, SourceError
from jobs.formats import magic
from jobs.formats.magic import Packing
from jobs.model import Shard, ShardKind, SourceFile
from jobs.sources import file_names, split_archives
from jobs.sources.base import SourceRequest
from jobs.sources.families import Family, families
from jobs.storage.safe_paths import quoted

JOIN_NOTHING = "none"  # with --join: no files are pieces
_OR_TEXTS = (".ar", ".br", ".gpg", ".pgp", ".age")  # also of languages, keys, and other texts


@dataclass(frozen=True)
class Look:
    """How a source is asked for the first bytes (``magic.HEAD``) of its files."""

    read: Callable[[Sequence[str]], Mapping[str, bytes]]  # by name; without those it cannot read
    most: int  # names to ask for
    free: bool = False  # whether to ask also where a name leaves no doubt


@dataclass(frozen=True)
class Group:
    """An archive, or a plain file in pieces."""

    name: str  # of the whole
    names: tuple[str, ...]  # of its files, in reading order
    packing: Packing | None = None  # None: a plain file


@dataclass(frozen=True)
class Found:
    """A source's files, sorted: what is opened, what is taken as it is, what is left out."""

    groups: tuple[Group, ...]
    loose: tuple[SourceFile, ...]
    files: Mapping[str, SourceFile]  # all of them, by name
    extras: Mapping[str, str]  # what is left out, and what it is
    home: str = ""  # the folder, with a slash, that the dataset lies in; empty for the top
    images: str = ""  # the folder of images in the dataset, with a slash; empty where it has none


@dataclass(frozen=True)
class ShardSelection:
    """The shards of a dataset, and what a person should know of how they were chosen."""

    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()


def sort_out(
    files: Sequence[SourceFile],
    request: SourceRequest,
    look: Look,
    *,
    where: str,
    meant: Set[str] | None = None,
) -> Found:
    """Which of ``files`` are archives, by their bytes where ``look`` shows them; pieces together.

    ``meant``: the names that the user gave one by one; of the others just the pieces that belong
    to them are taken. ``where`` is for messages. Raises ``SourceError`` where an archive cannot be
    read, where a piece is missing, and where it is not clear what the user means.
    """
    by_name = {file.name: file for file in files}
    extras = {} if meant is not None else file_names.extras(by_name)
    names = [name for name in by_name if name not in extras]
    file_names.check_finished(names if meant is None else meant, by_name)
    home = file_names.common_folder(
        [n for n in names if meant is None or n in meant], request.layout
    )
    images = _images(names, request, home) if meant is None else ""
    outside = [name for name in names if not (images and name.startswith(images))]
    sets, rest = _joined(outside, request.join)
    candidates = [] if JOIN_NOTHING in request.join else families(rest)
    if meant is not None:
        sets = [chosen for chosen in sets if not meant.isdisjoint(_names(chosen))]
        candidates = [family for family in candidates if not meant.isdisjoint(family.names)]
    single = [name for name in rest if meant is None or name in meant]
    inside = [name for name in names if images and name.startswith(images)]
    heads = _look(look, sets, candidates, [*single, *inside])
    _check_pointers(heads)
    sizes = {name: file.size for name, file in by_name.items()}
    groups = [_joined_group(chosen, heads, sizes) for chosen in sets]
    groups += [
        Group(family.whole, family.names, _packing(family.names[0], heads, family.whole))
        for family in candidates
        if split_archives.are_pieces(family, heads, sizes)
    ]
    taken = {name for group in groups for name in group.names}
    packed = ((name, _packing(name, heads)) for name in single if name not in taken)
    groups += [Group(name, (name,), packing) for name, packing in packed if packing]
    _check_readable(groups, where)
    _check_images(inside, heads, request, where)
    if meant is None and not request.include:
        _check_tables(groups, where)
    taken |= {name for group in groups for name in group.names}
    loose = [by_name[n] for n in [*single, *inside] if n not in taken]
    layout = request.layout
    in_images = f"{layout.images}/" if layout.has_records else ""
    return Found(tuple(groups), tuple(loose), by_name, extras, home, in_images)


def notes_of(found: Found, where: str) -> tuple[str, ...]:
    """What a person should know of how a source's files were sorted."""
    sets = [group for group in found.groups if len(group.names) > 1]
    notes = []
    if sets:
        count = sum(len(group.names) for group in sets)
        whole = f"{len(sets)} archives" if len(sets) > 1 else "one archive"
        notes.append(
            f"{where}: {count} files are read as the pieces of {whole}, of which "
            f"{file_names.first_names(group.names[0] for group in sets)} come first; --join none "
            "takes "
            "each "
            "file by itself"
        )
    return (*notes, *file_names.notes_of(found.extras, where))


def shards_of(found: Found, *, tree: SourceFile | None = None) -> tuple[Shard, ...]:
    """The archives in natural order, then the loose files likewise.

    ``tree``: a local folder that is copied as it is, which comes last.
    """
    home = found.home
    made: list[tuple[str, ShardKind, tuple[SourceFile, ...]]] = []
    below: dict[tuple[SourceFile, ...], str] = {}
    for group in sorted(found.groups, key=lambda group: file_names.natural_key(group.names[0])):
        files = tuple(found.files[name] for name in group.names)
        name = group.name
        if not (group.packing and magic.is_tar_name(name)):  # what comes of it has the shard's name
            name = name.removeprefix(home)
        kind = ShardKind.ARCHIVE if group.packing else ShardKind.FILE
        made.append((name, kind, files))
        below[files] = _below(found, group)
    for file in sorted(found.loose, key=lambda file: file_names.natural_key(file.name)):
        made.append((file.name.removeprefix(home), ShardKind.FILE, (file,)))
    _check_distinct(name for name, kind, _ in made if kind is ShardKind.FILE)
    if tree is not None:
        made.append((tree.name, ShardKind.TREE, (tree,)))
    return tuple(
        Shard(
            file_names.shard_id(index, len(made), name),
            kind,
            files,
            whole=None if len(files) == 1 and files[0].name == name else name,
            below=below.get(files, ""),
        )
        for index, (name, kind, files) in enumerate(made)
    )


def _below(found: Found, group: Group) -> str:
    """The folder that an archive's files go to: the one that it lies in, within the images."""
    name = group.name.removeprefix(found.home)
    if not (found.images and name.startswith(found.images) and _is_container(name, group.packing)):
        return ""
    return name[: name.rfind("/") + 1]


# Steps ------------------------------------------------------------------------------------------


def _images(names: Sequence[str], request: SourceRequest, home: str) -> str:
    """The folder of images, with a slash, whose files are data; empty where there is none.

    Where neither records nor archives lie beside it, or nothing but archives in it, its archives
    are the dataset's.
    """
    layout = request.layout
    images, records = f"{home}{layout.images}/", f"{home}{layout.records}"
    beside = [name for name in names if not name.startswith(images)]
    has_data = any(
        magic.decompressed_name(name) == records or _is_container(name, magic.packing_named(name))
        for name in beside
    )
    inside = [name for name in names if name.startswith(images)]
    has_images = any(magic.is_data_name(n) or not posixpath.splitext(n)[1] for n in inside)
    return images if layout.has_records and has_data and has_images else ""


def _is_container(name: str, packing: Packing | None) -> bool:
    """Whether an archive holds files, be it compressed or not."""
    return packing in (magic.TAR, magic.ZIP) or (packing is not None and magic.is_tar_name(name))


def _joined(
    names: Sequence[str], globs: Sequence[str]
) -> tuple[list[Family | tuple[str, ...]], list[str]]:
    """What the user says is in pieces, and the other names.

    Several sets may match one glob, as long as their names tell them apart.
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


def _joined_group(
    chosen: Family | tuple[str, ...], heads: Mapping[str, bytes], sizes: split_archives.Sizes
) -> Group:
    names = _names(chosen)
    whole = names[0]
    if isinstance(chosen, Family):
        split_archives.check_whole(chosen, sizes)
        whole = chosen.whole
    packing = _packing(names[0], heads, whole)
    if packing is None and not magic.is_data_name(whole):
        raise SourceError(
            f"{quoted(names[0])} is the first of the {len(names)} files that --join puts "
            "together, and does not begin like an archive; check the glob, and that the first "
            "piece exists",
            cause=Cause.USAGE,
        )
    return Group(whole, names, packing)


def _look(
    look: Look,
    sets: Sequence[Family | tuple[str, ...]],
    candidates: Sequence[Family],
    single: Sequence[str],
) -> Mapping[str, bytes]:
    """First bytes where they matter, the most telling ones first."""
    wanted = [_names(chosen)[0] for chosen in sets]
    for family in candidates:
        wanted += [family.names[0], *family.names[1:2], family.names[-1]]
    of_a_kind = look.most if look.free else look.most // 4  # so that there is room for others
    seen: Counter[str] = Counter()
    for name in single:
        packing = magic.packing_named(name)
        if (packing is None or not packing.is_read) and not magic.is_data_name(name):
            ending = posixpath.splitext(name)[1]
            seen[ending] += 1
            if seen[ending] <= of_a_kind:
                wanted.append(name)
    if look.free:
        wanted += [name for name in single if magic.packing_named(name)]
    return look.read(list(dict.fromkeys(wanted))[: look.most])


def _packing(name: str, heads: Mapping[str, bytes], whole: str = "") -> Packing | None:
    """How a file is packed, by its bytes; by its name where they are not known or tell nothing."""
    whole = whole or name
    if magic.is_data_name(whole):
        return None
    head = heads.get(name)
    named = magic.packing_named(whole)
    if head is None:
        return named
    packing = magic.packing_of(head)
    is_text = whole.lower().endswith(_OR_TEXTS) and split_archives.is_text(head)
    return packing or (None if is_text else named)


def _check_pointers(heads: Mapping[str, bytes]) -> None:
    pointers = [name for name, head in heads.items() if head.startswith(magic.LFS_POINTER)]
    if pointers:
        raise SourceError(
            f"some files are Git LFS pointers ({file_names.first_names(pointers)}); run `git lfs "
            "pull` in "
            "the cloned repository, or ask its publisher to add the files"
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
    """Raise ``SourceError`` where archives lie among the images, which nothing would open."""
    found = [name for name in inside if _is_container(name, _packing(name, heads))]
    if found and not request.nested:
        raise SourceError(
            f"{where}: the images folder contains archives ({file_names.first_names(found)}); "
            "launch with "
            "--nested to extract each into its own folder, or exclude them with --exclude"
        )


def _check_tables(groups: Sequence[Group], where: str) -> None:
    """Raise ``SourceError`` where archives and parquet files may be the same data twice."""
    tables = sum(group.packing is magic.PARQUET for group in groups)
    archives = sum(_is_container(group.name, group.packing) for group in groups)
    if tables and archives:
        raise SourceError(
            f"{where} contains archives ({archives}) and parquet files ({tables}), which may be "
            "the same data twice; choose one kind with --exclude '*.parquet' or --include "
            "'*.parquet', or, if they belong together, take both with --include '*'",
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
