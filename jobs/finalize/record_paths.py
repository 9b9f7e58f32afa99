"""Which file a record's path means: spellings of paths, and the folder that paths start from.

Also recognizes records that name images without the ending of their files, as many tables do.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from jobs.checks import records
from jobs.finalize.context import FinalizeContext, RecordsPiece
from jobs.formats.pictures import is_named
from jobs.model import Match, OnCollision, ShardKind, placed_path
from jobs.storage import latency
from jobs.storage.manifest import key_of_bytes
from jobs.storage.safe_paths import as_bytes, quoted

_PER_PIECE = 256  # sampled lines, at most, evenly spread over a piece
_IN_ALL = 20_000  # sampled lines of all pieces, at most
_PER_LINE = 4  # sampled paths of a line, at most
_FOLDERS = 3  # stored for one ending of a path, at most
# Of names without endings:
_COMPARED = 16  # lines of a piece, at most
_COMPARED_IN_ALL = 2_000  # lines of all pieces, at most; bounds the memory
_LONGEST_NAME = 200  # characters of a value that may be a name
_is_rooted = re.compile(r"/|\.\./|~|[A-Za-z][A-Za-z0-9+.-]*:/").match


def _unescaped(path: str) -> str:
    """Decode percent-escapes, also escaped ones (``%2520``), unless the result is not UTF-8."""
    decoded = path
    while "%" in decoded:
        path = decoded
        try:
            decoded = unquote_to_bytes(path).decode("utf-8")
        except UnicodeDecodeError:
            return path
        if decoded == path:
            break
    return decoded


def _separated(path: str) -> str:
    """Use ``/`` between components, and remove ``.``, empty and inner ``..`` components."""
    path = path.replace("\\", "/")
    if "//" in path or "./" in path or path.endswith(("/", ".")):
        path = posixpath.normpath(path)
        if path.startswith("//"):  # which ``normpath`` keeps
            path = path[1:]
    return path


def _composed(path: str) -> str:
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _with_lower_ending(path: str) -> str:
    stem, ending = posixpath.splitext(path)
    return stem + ending.lower()


# Paths that no step changes: nearly all are like this.
_is_unified = re.compile(r"(?:[\w -]+/)*[\w -]+(?:\.[a-z0-9]+)?", re.ASCII).fullmatch
_STEPS = (
    ("percent-escapes", _unescaped),
    ("separators", _separated),
    ("Unicode form", _composed),
    ("the case of its ending", _with_lower_ending),
)


def unified(path: str) -> str:
    """The canonical form of all spellings of a path; it may start with ``..`` or ``/``."""
    if _is_unified(path):
        return path
    return _with_lower_ending(transcribed(path))


def transcribed(path: str) -> str:
    """``unified`` except for the ending's case, in which two files of one folder may differ."""
    return _composed(_separated(_unescaped(path)))


def differences(one: str, other: str) -> str:
    """A description of how two spellings of one path differ."""
    found = []
    for word, left_out in _STEPS:
        forms = [one, other]
        for _, step in _STEPS:
            if step is not left_out:
                forms = [step(form) for form in forms]
        if forms[0] != forms[1]:
            found.append(word)
    return " and ".join(found) or "spelling"


class PathError(ValueError):
    """A record's path cannot mean a file of a dataset; the text says why in a few words."""


def path_in(image: records.Image) -> str:
    """The path that a record names, without ``.`` and empty components, as a key.

    Raises ``PathError`` where no file can have such a name.
    """
    path = records.normal_path(image.path)
    if path.isascii() and "\0" not in path:
        return path
    try:
        raw = as_bytes(path)
    except UnicodeEncodeError as error:
        raise PathError("names a path with half a character in it") from error
    if b"\0" in raw:
        raise PathError("names a path with a NUL in it")
    return key_of_bytes(raw)


def literal_paths(
    context: FinalizeContext, piece: RecordsPiece, path: str
) -> tuple[str, str | None]:
    """The path that a record's path means literally, and the one below the images folder."""
    images = f"{context.plan.options.layout.images}/"
    first = placed(context, piece, path)
    if path.startswith(images):
        return first, None
    return first, placed(context, piece, images + path)


def placed(context: FinalizeContext, piece: RecordsPiece, path: str) -> str:
    """``placed_path`` of a record's path; one that has the shard's folder already stays."""
    if piece.is_placed:
        outer = piece.shard.id.partition("/")[0]
        if path.startswith((f"{outer}/", f"{context.plan.options.layout.images}/{outer}/")):
            return path
    return placed_path(context.plan, piece.shard, path)


def as_named(context: FinalizeContext, piece: RecordsPiece, path: str, key: str) -> str:
    """A file's path ``key`` without those folders that a record's ``path`` leaves out."""
    options, folder = context.plan.options, f"{piece.shard.id}/"
    images = f"{options.layout.images}/"
    if options.on_collision is OnCollision.PER_SHARD and folder not in path:
        key = key.replace(folder, "", 1)
    return key if unified(path).startswith(images) else key.removeprefix(images)


def changes_folder(context: FinalizeContext, path: str, form: str) -> bool:
    """Whether ``PER_SHARD`` places a path and its unified form in different folders."""
    options = context.plan.options
    images = f"{options.layout.images}/"
    return options.on_collision is OnCollision.PER_SHARD and (
        form.startswith(images) is not path.startswith(images)
    )


def moved_path(context: FinalizeContext, piece: RecordsPiece, path: str) -> str | None:
    """What a record's unified path means if it starts from a folder other than the dataset's.

    None where it does not. Of an absolute path that matches no move, the rest from the last images
    folder on is used.
    """
    end = len(path)
    while end > 0 and piece.moves:
        end = path.rfind("/", 0, end) + 1
        if path[:end] in piece.moves and (end or not _is_rooted(path)):
            return piece.moves[path[:end]] + path[end:]
        end -= 1
    at = path.rfind(f"/{context.plan.options.layout.images}/")
    if at < 0 or not _is_rooted(path):
        return None
    return placed(context, piece, path[at + 1 :])


class Seen(NamedTuple):
    """What a ``Sample`` has learned from some of the files."""

    literal: list[str]  # sampled paths that are those of files
    folders: dict[str, list[str]]  # of files, by the ending that they share with a sampled path
    images: Mapping[str, str]  # the first one with each name without its ending


class Sample:
    """Compares a sample of the records' paths with all files, to learn which folders they mean.

    Also compares values of some records with the names of images without their endings.

    Call ``add`` with all files, then ``conclude``. Where several processes see a part of them each,
    ``take`` adds what another one has seen. Memory is bounded by the sample, which is
    deterministic.
    """

    def __init__(self, context: FinalizeContext) -> None:
        self._context = context
        self._images = f"{context.plan.options.layout.images}/"
        # Of each piece some lines only, so the time does not depend on its size.
        sampled = list(latency.each(partial(_sampled, context), context.pieces))
        # Corrected paths, which are those of files, say nothing on the folders of others.
        self._paths = [
            set(filter(_is_rooted, paths)) if piece.is_corrected else paths
            for piece, (paths, _) in zip(context.pieces, sampled, strict=True)
        ]
        self._literal: dict[str, bool] = {}  # whether a file of that path was seen
        # By ending of a path, in whole components: the folders of files that share this ending
        # with the path, and no longer one.
        self._folders: dict[str, dict[str, None]] = {}  # in the order of the files
        # Values that may be names without endings, if none of the records has a complete name.
        self._values = [values for _, values in sampled]
        every = (names for fields in self._values for names in fields.values())
        self._wanted = frozenset(chain.from_iterable(every))
        self._bare: dict[str, str] = {}  # the first image, by its name without the ending
        for piece, paths in zip(context.pieces, self._paths, strict=True):
            for path in paths:
                literals = [unified(piece.folder + path), *self._literals(piece, path)]
                self._literal.update(dict.fromkeys(literals, False))
                self._folders.update((ending, {}) for ending in _endings(path))

    def _literals(self, piece: RecordsPiece, path: str) -> list[str]:
        return [unified(key) for key in literal_paths(self._context, piece, path) if key]

    def add(self, paths: Collection[str]) -> None:
        """Add files of the dataset; their paths are unified."""
        folders = self._folders  # has the last component of every sampled path
        for path in paths:
            if path.rpartition("/")[2] in folders:
                self._add(path)
        for path in paths if self._wanted else ():
            name = path.rpartition("/")[2].rpartition(".")[0]
            if name in self._wanted and is_named(path):
                self._bare.setdefault(name, path)

    def _add(self, path: str) -> None:
        if path in self._literal:
            self._literal[path] = True
        found = None
        for ending in _endings(path):
            folders = self._folders.get(ending)
            if folders is None:
                break
            found, common = folders, ending
        if found is not None and len(found) < _FOLDERS:
            found[path[: len(path) - len(common)]] = None

    def seen(self) -> Seen:
        """What was seen so far."""
        return Seen(
            [path for path, is_seen in self._literal.items() if is_seen],
            {ending: list(folders) for ending, folders in self._folders.items() if folders},
            self._bare,
        )

    def take(self, seen: Seen) -> None:
        """Add what was seen of later files."""
        self._literal.update(dict.fromkeys(seen.literal, True))
        for ending, folders in seen.folders.items():
            found = self._folders[ending]
            for folder in folders:
                if len(found) < _FOLDERS:
                    found[folder] = None
        self._bare = {**seen.images, **self._bare}

    def conclude(self) -> None:
        """Set the moves of each piece, and add messages on paths that may mean several files."""
        context = self._context
        context.pieces = tuple(
            replace(piece, moves=self._moves(piece, paths))
            for piece, paths in zip(context.pieces, self._paths, strict=True)
        )
        for piece, fields in zip(context.pieces, self._values, strict=True):
            named = {
                field: [name for name in names if name in self._bare]
                for field, names in fields.items()
            }
            best = max(named, key=lambda field: len(named[field]), default=None)
            if best is not None and 2 * len(named[best]) > len(fields[best]):
                self._say_bare(piece, best, named[best], len(fields[best]))

    def _stripped_moves(self, piece: RecordsPiece, paths: set[str]) -> dict[str, str]:
        """Moves out of the top folders of archives, if the records name some of these.

        Needed where not all archives have such a folder, so that other paths are literal.
        """
        own = {f"{unified(top)}/{self._images}" for top in self._context.tops if top}
        named = {start: [path for path in paths if path.startswith(start)] for start in own}
        if self._context.plan.options.on_collision is OnCollision.PER_SHARD or not any(
            named.values()
        ):
            return {}
        return {
            start: self._images
            for start, some in named.items()
            if not any(self._literal[key] for path in some for key in self._literals(piece, path))
        }

    def _moves(self, piece: RecordsPiece, paths: set[str]) -> dict[str, str]:
        rooted = {path for path in paths if _is_rooted(path)}
        relative = paths - rooted
        starts: defaultdict[str, set[str]] = defaultdict(set)  # files' folders by records' folder
        if piece.folder and any(self._literal[unified(piece.folder + path)] for path in relative):
            starts[""], relative = {f"{unified(piece.folder)}/"}, set()
        elif any(self._literal[key] for path in relative for key in self._literals(piece, path)):
            relative = set()
        for path in (*rooted, *relative):
            for ending in reversed([*_endings(path)]):
                if seen := self._folders[ending]:
                    starts[path[: len(path) - len(ending)]].update(seen)
                    break
        moves = self._stripped_moves(piece, paths)
        for named, folders in sorted(starts.items()):
            folder = self._images if self._images in folders else min(folders)
            if folder != self._images and len(folders) > 1:
                self._say(piece, named, folders, self._remedy_for_several(piece))
            elif self._may_mean(named, folder):
                moves[named] = folder
            else:
                self._say(piece, named, folders, "if so, run `resume` with --match any-folder")
        return moves

    def _remedy_for_several(self, piece: RecordsPiece) -> str:
        per_shard = self._context.plan.options.on_collision is OnCollision.PER_SHARD
        if per_shard and piece.shard.kind is ShardKind.FILE:
            folder = "unpack each archive into the folder that the records name"
            return f"{folder}, and launch with --local-path on the whole"
        return "if so, run `resume` with --images-dir"

    def _may_mean(self, named: str, folder: str) -> bool:
        """Whether the two folders differ only in their top folder.

        A folder of another name often contains different pictures with the same names: smaller
        ones, or another split.
        """
        if self._context.plan.options.match is Match.ANY_FOLDER:
            return True
        if _is_rooted(named):
            return folder in ("", self._images)
        return "" in (named, folder)

    def _say(self, piece: RecordsPiece, named: str, folders: set[str], remedy: str) -> None:
        found = " or ".join(quoted(folder or "./") for folder in sorted(folders))
        self._context.unclear.append(
            f"the files that {piece.shard.name} names in {quoted(named or './')} may be those in "
            f"{found}; {remedy}"
        )

    def _say_bare(self, piece: RecordsPiece, field: str, names: list[str], of: int) -> None:
        self._context.unclear.append(
            f"the field {quoted(field)} of {piece.shard.name} seems to name images without their "
            f"endings: {len(names)} of {of} values that were compared, such as {quoted(names[0])} "
            f"for {quoted(self._bare[names[0]])}; launch with complete names in it (the endings "
            "appended, and --image-field), or publish the images and the table as they are: "
            f"{self._context.with_layout_files}"
        )


def _endings(path: str) -> Iterator[str]:
    """The last component of ``path``, the last two, and so on."""
    end = len(path)
    while end > 0:
        end = path.rfind("/", 0, end)
        yield path[end + 1 :]


def _sampled(
    context: FinalizeContext, piece: RecordsPiece
) -> tuple[set[str], dict[str, list[str]]]:
    """The paths in some lines of a piece, and its ``last_components``."""
    field = context.plan.options.layout.image_field
    count = max(1, min(_PER_PIECE, _IN_ALL // len(context.pieces)))
    with piece.path.open("rb") as file:
        lines = list(records.spread(file, count))
    return set(_paths(lines, field)), last_components(lines, field, len(context.pieces))


def _paths(lines: Iterable[bytes], field: str | None) -> Iterator[str]:
    for line in lines:
        try:
            images = records.parse(line, field).images
        except records.BadLineError:
            continue
        for image in [image for image in images if image.required][:_PER_LINE]:
            with suppress(PathError):
                yield unified(path_in(image))


# Names without endings ----------------------------------------------------------------------------


def last_components(
    lines: Sequence[bytes], image_field: str | None, pieces: int
) -> dict[str, list[str]]:
    """By field, the last components of its values in some of the lines; none if one names an image.

    ``lines``: a sample of a piece; ``pieces``: their number.
    """
    fields: dict[str, list[str]] = {}
    count = min(_COMPARED, _COMPARED_IN_ALL // pieces, len(lines))
    for line in (lines[index * len(lines) // count] for index in range(count)):
        try:
            values = records.values_of(line)
        except records.BadLineError:  # no record
            continue
        try:
            images = records.parse(line, image_field).images
        except records.BadLineError:  # it names no image
            images = ()
        if any(is_named(image.path) for image in images):
            return {}
        for field, value in values.items():
            if isinstance(value, (str, int)) and len(text := str(value)) <= _LONGEST_NAME:
                name = text.replace("\\", "/").rpartition("/")[2]
                fields.setdefault(field, []).extend([name] if name else [])
    return fields
