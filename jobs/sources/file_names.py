"""Interprets names of published files: which are data, shard ids, lists of digests."""

from __future__ import annotations

import fnmatch
import glob
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from jobs.errors import SourceError
from jobs.formats import magic
from jobs.model import Digest, Layout, SourceFile
from jobs.sources.base import SourceRequest
from jobs.sources.families import families
from jobs.storage import presence
from jobs.storage.safe_paths import all_safe, as_bytes, junk_kind, quoted, quoted_few
from jobs.storage.staging import MANIFEST, RECEIPT

# Lists of digests and signatures of the archives.
_LIST = re.compile(
    r".+\.(sha\d+|sha\d+sums?|md5|md5sums?)"
    r"|(sha\d+|md5|b3|check)sums?([._-]\w+)?(\.(txt|md5|sha\d+))?",
    re.IGNORECASE,
)
# Files that may be such lists, or data; they are published, too.
_PERHAPS_LIST = re.compile(r"(.+[._-])?((sha\d+|md5)(sums?)?|checksums?)\.txt", re.IGNORECASE)
_SIGNATURES = (".asc", ".sig", ".minisig", ".sfv", ".b3")  # beside the file itself
# In lower case: each of our own files, lists and signatures has one of these in its name.
_EXTRA_MARKS = (RECEIPT.lower(), MANIFEST.lower(), ".sha", ".md5", "sum", *_SIGNATURES)
_TOGETHER = 1_000  # names that are examined together
_OF_THE_HUB = ".cache/huggingface/"  # files of the Hub's client in a download folder
_UNFINISHED = (".aria2", ".crdownload", ".opdownload", ".incomplete", ".!ut", ".!qb")
_PERHAPS_UNFINISHED = (".part", ".partial", ".download", ".filepart", ".tmp")  # of an archive
_GIT = re.compile(r"(^|/)\.git(/|$|attributes$|ignore$|modules$)")
_DIGITS = re.compile(r"(\d{1,1000})")  # Python converts at most 4,300 to an integer
_LISTS = (".jsonl", ".ndjson")  # of records, one on each line
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_ID_NAME = 60  # characters of a name in an id, at most; the id is used in file names
_NEAR = 3  # names in a message, at most
# Kinds of files that are left out of a source.
GIT, NOTES = "git's own", "notes of an earlier download"
LEFTOVERS = "desktop leftovers"
# Names that lists have on servers, beside the files that they list.
DIGEST_LISTS = ("SHA256SUMS", "sha256sums.txt", "SHA256SUMS.txt", "md5sum.txt")
MOST_DIGEST_LIST = 16 << 20  # bytes, at most
# The format of coreutils, `HEX  name` or `HEX *name`; `name: HEX` and `name,HEX`; and that of BSD,
# `SHA256 (name) = HEX`.
_DIGEST_LINE = re.compile(r"\\?([0-9a-fA-F]{32,128})(?:[ \t]+\*?(.+))?")
_NAME_FIRST = re.compile(r"(\S.*?)[ \t:;,=]+([0-9a-fA-F]{32,128})")
_BSD_DIGEST_LINE = re.compile(r"(?:MD5|SHA\d+(?:-\d+)?) ?\((.+)\) ?= ?([0-9a-fA-F]{32,128})")
_ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}  # by the number of digits
_ALGORITHM = re.compile(r"md5|sha\d+|b3", re.IGNORECASE)  # in the name of a list
_DIGEST = re.compile(r"(?:(?P<name>md5|sha1|sha256|sha512)[:=])?(?P<hex>[0-9a-f]{32,128})")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key with ``part2`` before ``part10``, and numbers before text."""
    pieces = _DIGITS.split(name)
    return tuple((0, int(p), p) if p.isdecimal() else (1, 0, p) for p in pieces if p)


def chosen(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """The names that the globs select; a glob is matched with the path and the last component."""
    if not (include or exclude):
        return list(names)

    def matches(name: str, globs: Sequence[str]) -> bool:
        last = posixpath.basename(name)
        return any(fnmatch.fnmatchcase(n, glob) for glob in globs for n in (name, last))

    return [
        name
        for name in names
        if (not include or matches(name, include)) and not matches(name, exclude)
    ]


def chosen_files(files: Iterable[SourceFile], request: SourceRequest) -> list[SourceFile]:
    """The files that the globs of a request select."""
    by_name = {file.name: file for file in files}
    return [by_name[name] for name in chosen(by_name, request.include, request.exclude)]


def is_git(name: str) -> bool:
    """Whether a file belongs to git (``.gitattributes``, ``.git/…``) and not to the dataset.

    ``.gitkeep`` does not count: it is there to keep its folder.
    """
    return ".git" in name and _GIT.search(name) is not None


def extras(names: Collection[str], left: Collection[str] = ()) -> dict[str, str]:
    """The files of a repository that are not data, with their kinds; they are not published.

    The card and the licence count as data. ``left``: files that are left out already.
    """
    found: dict[str, str] = {}
    left_over = iter(names)
    while some := list(islice(left_over, _TOGETHER)):
        if _may_be_extras(some):
            found |= {name: kind for name in some if (kind := _extra_kind(name, names))}
    indexes = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    if RECEIPT in (*found, *left) and any(f"{name}-000000.tar" in names for name in indexes):
        # It was published with --output webdataset: its tars have all records, too.
        tables = {name for name in names if "/" not in name and name.endswith(magic.RECORDS)}
        found |= dict.fromkeys(tables - found.keys(), "records and index of its tars")
    return found


def _may_be_extras(names: Sequence[str]) -> bool:
    """Whether ``_extra_kind`` has to look at each of the names; a few calls for all of them.

    None of them is git's, the Hub's or a desktop's if ``all_safe``: no component begins with a
    dot.
    """
    lower = "\n".join(names).lower()
    return any(mark in lower for mark in _EXTRA_MARKS) or not all_safe(
        [as_bytes(name) for name in names]
    )


def _extra_kind(name: str, names: Collection[str]) -> str | None:
    if is_git(name):
        return GIT
    if name.startswith(_OF_THE_HUB) or name in (RECEIPT, MANIFEST):
        return NOTES
    ending = magic.last_ending(name)
    is_signature = ending in _SIGNATURES and name.removesuffix(ending) in names
    if is_signature or _LIST.fullmatch(name[name.rfind("/") + 1 :]):
        return "digests and signatures"
    return LEFTOVERS if junk_kind(as_bytes(name)) else None


def notes_of(left: Mapping[str, str], where: str) -> tuple[str, ...]:
    """A line that lists left-out files, from ``extras``."""
    kinds: dict[str, list[str]] = {}
    for name, kind in left.items():
        kinds.setdefault(kind, []).append(name)
    listed = "; ".join(f"{first_names(names)} ({kind})" for kind, names in sorted(kinds.items()))
    return (f"{where}: left out because they are not part of the data: {listed}",) if left else ()


def notes_on_lists(names: Collection[str], layout: Layout, where: str) -> Iterator[str]:
    """Notes on records in several files, if no file has the name of the records file."""
    plain = {name: magic.decompressed_name(name) for name in names}
    if not layout.has_records or any(p.endswith(layout.records_names) for p in plain.values()):
        return
    counts = Counter(
        _DIGITS.sub("*", glob.escape(name))
        for name, own in plain.items()
        if own.lower().endswith(_LISTS)
    )
    for pattern, count in counts.items():
        if count > 1:
            yield (
                f"{where}: {count} files may be one list of records, and are not merged; to read "
                f"them as one file, launch with --join {quoted(pattern)}"
            )


def check_finished(names: Iterable[str], known: Collection[str]) -> None:
    """Raise ``SourceError`` if a file belongs to an unfinished download."""
    for name in names:
        ending = magic.last_ending(name)
        stem, ending = name.removesuffix(ending), ending.lower()
        perhaps = ending in _PERHAPS_UNFINISHED and magic.ending(stem)
        if ending in _UNFINISHED or perhaps or (ending == ".st" and stem in known):
            raise SourceError(
                f"{quoted(name)} is an unfinished download; finish it, or exclude it with "
                f"--exclude {quoted(f'{glob.escape(posixpath.basename(stem))}*')}"
                + _join_hint(stem, ending, known)
            )


def _join_hint(stem: str, ending: str, known: Collection[str]) -> str:
    """What to do if a file with that ending is one of several pieces (``x_aa.zip.part``)."""
    stems = [name[: -len(ending)] for name in known if name.lower().endswith(ending)]
    for family in families(stems):
        if stem in family.names and len(family.names) > 1:
            joined = quoted(family.glob + ending)
            return f"; if these files are the pieces of one archive, launch with --join {joined}"
    return ""


def common_folder(names: Sequence[str], layout: Layout) -> str:
    """The folder of the dataset's single files, with a final slash; empty for the top folder.

    Some sources have everything in one folder: the one with the records file, which may be
    compressed.
    """
    if not layout.has_records:
        return ""
    ending = f"/{layout.records}"
    holders = {
        plain[: -len(layout.records)]
        for name in names
        if layout.records in name
        for plain in [magic.decompressed_name(name)]
        if f"/{plain}".endswith(ending)
    }
    return holders.pop() if len(holders) == 1 else ""


def exclude_glob(name: str, *, pieces: bool) -> str:
    """A glob for that archive and similar ones, or for all of its ``pieces``."""
    ending = magic.ending(name)
    if pieces or not ending:
        return glob.escape(posixpath.basename(name)) + "*" * pieces
    return f"*{glob.escape(ending)}"


def shard_id(index: int, count: int, name: str) -> str:
    """An id that starts with a unique number, sorts in plan order and contains the name.

    Its characters are valid on every file system and need no quoting in a shell.
    """
    stem = name.removesuffix(magic.ending(name))
    clean = _UNSAFE.sub("-", stem).strip(".-")[:_ID_NAME].rstrip(".-")
    width = max(4, len(str(count - 1)))
    return f"{index:0{width}d}-{clean}" if clean else f"{index:0{width}d}"


def similar_names(wanted: str, names: Iterable[str]) -> str:
    """``; did you mean 'a' or 'b'?`` for a message; empty if no name is similar."""
    import difflib

    known = list(names)
    found = difflib.get_close_matches(wanted, known, _NEAR, 0.6)
    if not found:
        last = posixpath.basename(wanted).lower()
        found = [name for name in known if posixpath.basename(name).lower() == last][:_NEAR]
    return f"; did you mean {' or '.join(map(quoted, found))}?" if found else ""


def first_names(names: Iterable[str]) -> str:
    """The first names and the number of the others, for a message."""
    return quoted_few(sorted(names), _NEAR)


def is_digest_list(name: str) -> bool:
    """Whether a file has the name of a list of digests."""
    return _LIST.fullmatch(posixpath.basename(name)) is not None


def may_list_digests(name: str) -> bool:
    """Whether a file may be a list of digests, by its name."""
    return is_digest_list(name) or _PERHAPS_LIST.fullmatch(posixpath.basename(name)) is not None


def digest_of(word: str) -> Digest | None:
    """The digest that ``word`` is, such as ``sha256:HEX`` or only ``HEX``; None if it is none."""
    match = _DIGEST.fullmatch(word.lower())
    algorithm = _ALGORITHMS.get(len(match["hex"])) if match else None
    if match is None or algorithm is None or match["name"] not in (None, algorithm):
        return None
    return Digest(algorithm, match["hex"])


def parse_digest_list(text: str, name: str) -> dict[str, Digest]:
    """Digests by name (without a leading ``./``; empty for a line with only a digest).

    ``name``: of the list; digests by another algorithm than it names, if any, are not used.
    """
    named = _ALGORITHM.search(posixpath.basename(name))
    found = {}
    for line in text.removeprefix("\ufeff").splitlines():
        line = line.strip()
        if match := _BSD_DIGEST_LINE.fullmatch(line):
            own, value = match.groups()
        elif match := _DIGEST_LINE.fullmatch(line):
            value, own = match[1], match[2] or ""
        elif match := _NAME_FIRST.fullmatch(line):
            own, value = match.groups()
        else:
            continue
        digest = digest_of(value)
        if digest and (named is None or named[0].lower() == digest.algorithm):
            found[own.strip().removeprefix("./")] = digest
    return found


def listed_digests(
    read: Callable[[str], str | None], lists: Iterable[str], names: Collection[str]
) -> tuple[dict[str, Digest], list[str]]:
    """The digests of ``names`` in ``lists``, files of the same source; unused lists.

    ``read`` returns the text of a list, or None. A list is for files below its own folder (or any,
    if there are none); ``NAME.md5``, for example, is also for ``NAME``. If no name in it is a
    file's, its author may have had the files in other folders. Of two digests of a file the longer
    one is used.
    """
    found: dict[str, Digest] = {}
    unused = []
    folders = {file[: at + 1] for file in names for at, mark in enumerate(file) if mark == "/"}
    for name in lists:
        folder, last = name[: name.rfind("/") + 1], posixpath.basename(name)
        listed = parse_digest_list(read(name) or "", last)
        stem = name.removesuffix(magic.last_ending(name))
        pairs = [(folder + own, digest) for own, digest in listed.items()]
        pairs += [(stem, digest) for digest in listed.values() if len(listed) == 1]
        if not any(file in names for file, _ in pairs):
            base = folder if folder in folders else ""
            pairs = list(_of_author(listed, base, names).items())
        if not any(file in names for file, _ in pairs):
            unused.append(name)
        for file, digest in pairs:
            if file in names and (file not in found or len(digest.hex) > len(found[file].hex)):
                found[file] = digest
    return found, unused


def digests_of(listed: Mapping[str, Digest], names: Collection[str]) -> dict[str, Digest]:
    """The digests of ``names``, in the folder of a list and below, by ``listed``, what it says.

    If no name in it is a file's, its author may have had the files in other folders.
    """
    found = {name: listed[name] for name in names if name in listed}
    return found or _of_author(listed, "", names)


def _of_author(
    listed: Mapping[str, Digest], base: str, names: Collection[str]
) -> dict[str, Digest]:
    moved = {own: _without_folders(own, base, names) for own in listed}
    times = Counter(moved.values())
    return {file: listed[own] for own, file in moved.items() if file and times[file] == 1}


def _without_folders(path: str, base: str, names: Collection[str]) -> str:
    """The one of ``names`` below ``base`` that ``path`` ends with; empty if there is none."""
    parts = path.split("/")
    ends = (base + "/".join(parts[index:]) for index in range(len(parts)))
    return next((end for end in ends if end in names), "")


def local_text(path: Path) -> str | None:
    """The text of a list of digests; None if there is none."""
    try:
        if not presence.is_file(path) or path.stat().st_size > MOST_DIGEST_LIST:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
