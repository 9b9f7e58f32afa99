"""Which file a record's path means: its spelling, and the folder below which paths start."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from jobs.checks import records
from jobs.finalize.context import FinalizeContext, RecordsPiece, key_of_bytes
from jobs.model import Match, OnCollision, placed_path
from jobs.storage.safe_paths import quoted

_PER_PIECE = 256  # lines, at most, evenly spread over a piece
_IN_ALL = 20_000  # lines
_PER_LINE = 4  # paths
_FOLDERS = 3  # that are remembered for one ending of a path
_is_rooted = re.compile(r"/|\.\./|~|[A-Za-z][A-Za-z0-9+.-]*:/").match


def _unescaped(path: str) -> str:
    """With percent-escapes decoded, unless that does not give UTF-8."""
    if "%" not in path:
        return path
    try:
        return unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        return path


def _separated(path: str) -> str:
    """With ``/`` between components, and without ``.``, empty and inner ``..`` components."""
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


# Paths that no step changes, as nearly all are.
_is_unified = re.compile(r"(?:[\w -]+/)*[\w -]+(?:\.[a-z0-9]+)?", re.ASCII).fullmatch
_STEPS = (
    ("percent-escapes", _unescaped),
    ("separators", _separated),
    ("Unicode form", _composed),
    ("the case of its ending", _with_lower_ending),
)


def unified(path: str) -> str:
    """The form that all spellings of one path share; ``..`` and ``/`` may stay at its start."""
    if _is_unified(path):
        return path
    return _with_lower_ending(transcribed(path))


def transcribed(path: str) -> str:
    """``unified`` but for the case of the ending, by which two files of one folder may differ."""
    return _composed(_separated(_unescaped(path)))


def differences(one: str, other: str) -> str:
    """In what two spellings of one path differ, in words."""
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
    """A record's path can mean no file of a dataset; the text says why in a few words."""


def path_in(image: records.Image) -> str:
    """The path that a record names, without ``.`` and empty components, as a key.

    Raises ``PathError`` where no file can have such a name.
    """
    path = records.normal_path(image.path)
    if path.isascii() and "\0" not in path:
        return path
    try:
        raw = path.encode("utf-8", "surrogateescape")  # Python's spelling of what is not UTF-8
    except UnicodeEncodeError as error:
        raise PathError("names a path with half a character in it") from error
    if b"\0" in raw:
        raise PathError("names a path with a NUL in it")
    return key_of_bytes(raw)


def literal_paths(
    ground: FinalizeContext, piece: RecordsPiece, path: str
) -> tuple[str, str | None]:
    """Where a record's path leads as it is, and its other meaning: below the images folder."""
    images = f"{ground.plan.options.layout.images}/"
    first = placed_path(ground.plan, piece.shard, path)
    if path.startswith(images):
        return first, None
    return first, placed_path(ground.plan, piece.shard, images + path)


def changes_folder(ground: FinalizeContext, path: str, form: str) -> bool:
    """Whether a path and its unified form are placed in different folders of a shard's own."""
    options = ground.plan.options
    images = f"{options.layout.images}/"
    return options.on_collision is OnCollision.PER_SHARD and (
        form.startswith(images) is not path.startswith(images)
    )


def moved_path(ground: FinalizeContext, piece: RecordsPiece, path: str) -> str | None:
    """Where a record's unified path leads that starts from another folder than the dataset's.

    None where it does not. A path from the root of a file system that no move knows is taken from
    its last images folder on.
    """
    end = len(path)
    while end > 0 and piece.moves:
        end = path.rfind("/", 0, end) + 1
        if path[:end] in piece.moves and (end or not _is_rooted(path)):
            return piece.moves[path[:end]] + path[end:]
        end -= 1
    at = path.rfind(f"/{ground.plan.options.layout.images}/")
    if at < 0 or not _is_rooted(path):
        return None
    return placed_path(ground.plan, piece.shard, path[at + 1 :])


class Sample:
    """Paths that records name, looked for among all files of the dataset.

    ``see`` every file, then ``conclude``. Memory is bounded by the sample, which is the same
    whenever it is taken.
    """

    def __init__(self, ground: FinalizeContext) -> None:
        self._ground = ground
        self._images = f"{ground.plan.options.layout.images}/"
        self._paths = [set(_sampled(ground, piece)) for piece in ground.pieces]
        self._literal: dict[str, bool] = {}  # whether a file of that path was seen
        # For each ending of a path, of whole components: the folders of the files that have it in
        # common with the path, and no longer one.
        self._folders: dict[str, set[str]] = {}
        for piece, paths in zip(ground.pieces, self._paths, strict=True):
            for path in paths:
                literals = [unified(piece.folder + path), *self._literals(piece, path)]
                self._literal.update(dict.fromkeys(literals, False))
                self._folders.update((ending, set()) for ending in _endings(path))

    def _literals(self, piece: RecordsPiece, path: str) -> list[str]:
        return [unified(key) for key in literal_paths(self._ground, piece, path) if key]

    def see(self, path: str) -> None:
        """Take a file into account; ``path`` is unified."""
        if path in self._literal:
            self._literal[path] = True
        found = None
        for ending in _endings(path):
            folders = self._folders.get(ending)
            if folders is None:
                break
            found, common = folders, ending
        if found is not None and len(found) < _FOLDERS:
            found.add(path[: len(path) - len(common)])

    def conclude(self) -> None:
        """Give each piece its moves, and say what is not clear."""
        ground = self._ground
        ground.pieces = tuple(
            replace(piece, moves=self._moves(piece, paths))
            for piece, paths in zip(ground.pieces, self._paths, strict=True)
        )

    def _moves(self, piece: RecordsPiece, paths: set[str]) -> dict[str, str]:
        rooted = {path for path in paths if _is_rooted(path)}
        relative = paths - rooted
        starts: defaultdict[str, set[str]] = defaultdict(set)  # folders of files by what is named
        if piece.folder and any(self._literal[unified(piece.folder + path)] for path in relative):
            starts[""], relative = {f"{unified(piece.folder)}/"}, set()
        elif any(self._literal[key] for path in relative for key in self._literals(piece, path)):
            relative = set()
        for path in (*rooted, *relative):
            for ending in reversed([*_endings(path)]):
                if folders := self._folders[ending]:
                    starts[path[: len(path) - len(ending)]] |= folders
                    break
        moves = {}
        for named, folders in sorted(starts.items()):
            folder = self._images if self._images in folders else min(folders)
            if folder != self._images and len(folders) > 1:
                self._say(piece, named, folders, "if it is one of these, name it with --images-dir")
            elif self._may_mean(named, folder):
                moves[named] = folder
            else:
                self._say(piece, named, folders, "if it is, launch with --match any-folder")
        return moves

    def _may_mean(self, named: str, folder: str) -> bool:
        """Whether one folder is the other one without, or with another, top folder.

        A folder of another name often holds other pictures under the same names: smaller ones, or
        another split.
        """
        if self._ground.plan.options.match is Match.ANY_FOLDER:
            return True
        if _is_rooted(named):
            return folder in ("", self._images)
        return "" in (named, folder)

    def _say(self, piece: RecordsPiece, named: str, folders: set[str], remedy: str) -> None:
        found = " or ".join(quoted(folder or "./") for folder in sorted(folders))
        self._ground.unclear.append(
            f"what {piece.shard.name} names below {quoted(named or './')} may be what is below "
            f"{found}; {remedy}"
        )


def _endings(path: str) -> Iterator[str]:
    """The last component of ``path``, its last two, and so on."""
    end = len(path)
    while end > 0:
        end = path.rfind("/", 0, end)
        yield path[end + 1 :]


def _sampled(ground: FinalizeContext, piece: RecordsPiece) -> Iterator[str]:
    field = ground.plan.options.layout.image_field
    count = max(1, min(_PER_PIECE, _IN_ALL // len(ground.pieces)))
    with piece.path.open("rb") as file:
        for line in _spread(file, count):
            try:
                images = records.parse(line, field).images
            except records.BadLineError:
                continue
            for image in [image for image in images if image.required][:_PER_LINE]:
                with suppress(PathError):
                    yield unified(path_in(image))


def _spread(file: BinaryIO, count: int) -> Iterator[bytes]:
    """``count`` lines from all over a file; of a short file some come several times."""
    size = file.seek(0, 2)
    for index in range(count):
        file.seek(size * index // count)
        if index:
            file.readline(records.MAX_LINE)  # the rest of a line
        yield file.readline(records.MAX_LINE + 1)
