"""Reads an archive as a task would, without writing: what it gives, or how it is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from jobs.archives.base import Archive, MemberKind
from jobs.archives.detect import sniff
from jobs.archives.registry import open_archive
from jobs.errors import ArchiveError, Cause, UnsafeMemberError
from jobs.model import Fetched, Options, Part, Shard, ShardKind, SourceFile
from jobs.storage.safe_paths import is_folder_itself, safe_path, text_of
from tests.support.archives.one_pass import read_through
from tests.support.builders.runs import RunBuilder


def fetched(*paths: Path, parts: int = 1, name: str | None = None) -> tuple[Fetched, Shard]:
    """The evidence of a shard in ``paths``; its bytes decide the format."""
    with paths[0].open("rb") as file:
        format = sniff(file.read(65536), name or paths[0].name)
    sizes = tuple(path.stat().st_size for path in paths)
    files = tuple(
        SourceFile(name or path.name, str(path), size)
        for path, size in zip(paths, sizes, strict=True)
    )
    evidence = Fetched("s0", format, tuple(map(str, paths)), sizes, (), (0,) * len(paths))
    return evidence, Shard("s0", ShardKind.ARCHIVE, files, parts)


def opened(
    *paths: Path, parts: int = 1, options: Options | None = None
) -> tuple[Archive, Fetched, Shard]:
    options = options or Options()
    evidence, shard = fetched(*paths, parts=parts)
    if parts > 1:
        evidence = read_through(shard, options).applied(evidence)
    return reader_of(evidence, shard, options), evidence, shard


def reader_of(evidence: Fetched, shard: Shard, options: Options | None = None) -> Archive:
    """The reader of a shard, in a plan of its own."""
    return open_archive(evidence, shard, RunBuilder(shard, options=options).plan)


def digests(
    *paths: Path, parts: int = 1, options: Options | None = None
) -> dict[str, tuple[int, str]]:
    """Size and MD5 of each file by its safe path; the parts one after the other.

    A hard link has its target's. Raises what the reader raises, and ``UnsafeMemberError`` for
    names and links that nobody writes.
    """
    archive, _, _ = opened(*paths, parts=parts, options=options)
    out: dict[str, tuple[int, str]] = {}
    for index in range(parts):
        out.update(part_digests(archive, Part("s0", index, parts)))
    return out


def assert_damaged(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, which is then refused in a printable message."""
    path.write_bytes(data)
    with pytest.raises(ArchiveError) as caught:
        digests(path)
    assert caught.value.cause is Cause.BAD_ARCHIVE, caught.value.message
    assert caught.value.message.isprintable()


def part_digests(archive: Archive, part: Part) -> dict[str, tuple[int, str]]:
    out: dict[str, tuple[int, str]] = {}
    for member in archive.members(part):
        if member.kind is MemberKind.FOLDER and is_folder_itself(member.name):
            continue
        path = text_of(safe_path(member.name, archive="archive"))[0]
        if member.kind is MemberKind.LINK:
            raise UnsafeMemberError(f"{path} is a link")
        if member.kind is MemberKind.HARD_LINK:
            target = safe_path(member.target, archive="archive")
            found = archive.find(target)
            if found is None:
                raise UnsafeMemberError(f"{path} links to nothing")
            member.chunks, member.size = found.chunks, found.size
        if member.kind is not MemberKind.FOLDER and not member.superseded:
            digest, size = hashlib.md5(usedforsecurity=False), 0
            for chunk in member.chunks:
                digest.update(chunk)
                size += len(chunk)
            assert size == member.size, f"{path}: {size} bytes instead of {member.size}"
            out[path] = (size, digest.hexdigest())
    return out
