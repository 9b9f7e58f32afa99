"""What every reader of archives promises, over the archives of every writer that is here."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest

from jobs.archives.base import MemberKind
from jobs.archives.detect import TARS
from jobs.errors import ArchiveError
from jobs.formats import tar_header
from jobs.model import Format, Layout, Options, Part
from jobs.runtime.process import CORES
from tests.support.archives.one_pass import read_through
from tests.support.archives.reading import digests, fetched, opened, part_digests, reader_of

# Size and MD5 of files by their paths.
Digests = Mapping[str, tuple[int, str]]
Writer = Callable[[Path, Path], None]  # folder that holds `dataset`, archive to make


def _shell(command: str) -> Writer:
    def write(folder: Path, archive: Path) -> None:
        subprocess.run(
            f"set -o pipefail; {command}",
            shell=True,
            check=True,
            cwd=folder,
            env={**os.environ, "OUT": str(archive), "LC_ALL": "C.UTF-8"},
            executable="/bin/bash",
            stdout=subprocess.DEVNULL,
        )

    return write


def _tarfile(format: int, mode: str, **options: int) -> Writer:
    def write(folder: Path, archive: Path) -> None:
        with tarfile.open(archive, mode, format=format, **options) as tar:  # type: ignore[call-overload]
            # ustar has no room for the longest names.
            short = format == tarfile.USTAR_FORMAT
            tar.add(
                folder / "dataset",
                "dataset",
                filter=lambda info: None if short and "nnn" in info.name else info,
            )

    return write


def _zipfile(method: int) -> Writer:
    def write(folder: Path, archive: Path) -> None:
        with zipfile.ZipFile(archive, "w", method) as file:
            for path in sorted((folder / "dataset").rglob("*")):
                file.write(path, path.relative_to(folder))

    return write


def _zipfile_streamed(folder: Path, archive: Path) -> None:
    with (
        archive.open("wb") as out,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=out) as pipe,
    ):
        assert pipe.stdin is not None
        with zipfile.ZipFile(pipe.stdin, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted((folder / "dataset").rglob("*")):
                file.write(path, path.relative_to(folder))


WRITERS: dict[str, tuple[str, str, Writer]] = {  # name: (program, ending, writer)
    **{
        f"GNU tar {format}": ("tar", "tar", _shell(f"tar --format={format} -cf $OUT dataset"))
        for format in ("gnu", "oldgnu", "pax", "posix")
    },
    **{
        f"GNU tar sparse {version}": (
            "tar",
            "tar",
            _shell(f"tar --format=posix -S --sparse-version={version} -cf $OUT dataset"),
        )
        for version in ("0.0", "0.1", "1.0")
    },
    "GNU tar ustar": ("tar", "tar", _shell("tar --format=ustar --exclude='nnn*' -cf $OUT dataset")),
    "GNU tar v7": ("tar", "tar", _shell("tar --format=v7 --exclude='nnn*' -cf $OUT dataset")),
    "GNU tar old sparse": ("tar", "tar", _shell("tar --format=gnu -S -cf $OUT dataset")),
    "GNU tar of dots": ("tar", "tar", _shell("tar -cf $OUT ./dataset")),
    "GNU tar with a label": ("tar", "tar", _shell("tar -V label -cf $OUT dataset")),
    "GNU tar with xattrs": ("tar", "tar", _shell("tar --xattrs --acls -cf $OUT dataset")),
    "GNU tar gz": ("gzip", "tar.gz", _shell("tar -czf $OUT dataset")),
    "GNU tar xz": ("xz", "tar.xz", _shell("tar -c dataset | xz -1 -T2 --block-size=1MiB > $OUT")),
    "GNU tar bz2": ("bzip2", "tar.bz2", _shell("tar -c dataset | bzip2 -1 > $OUT")),
    "GNU tar zst": ("zstd", "tar.zst", _shell("tar -c dataset | zstd -q > $OUT")),
    "GNU tar lzma": ("xz", "tar.lzma", _shell("tar -c dataset | xz --format=lzma -1 > $OUT")),
    "lz4": ("lz4", "tar.lz4", _shell("tar -c dataset | lz4 -q -B7 > $OUT")),
    "lz4 of linked blocks": ("lz4", "tar.lz4", _shell("tar -c dataset | lz4 -qBD > $OUT")),
    "zstd long": ("zstd", "tar.zst", _shell("tar -c dataset | zstd -q --long=27 > $OUT")),
    "pigz": ("pigz", "tar.gz", _shell("tar -c dataset | pigz > $OUT")),
    "pigz independent": ("pigz", "tar.gz", _shell("tar -c dataset | pigz -i -b 128 > $OUT")),
    "bgzip": ("bgzip", "tar.gz", _shell("tar -c dataset | bgzip > $OUT")),
    "igzip": ("igzip", "tar.gz", _shell("tar -c dataset | igzip > $OUT")),
    **{
        f"bsdtar {format}": ("bsdtar", "tar", _shell(f"bsdtar --format={format} -cf $OUT dataset"))
        for format in ("pax", "gnutar", "paxr")
    },
    "bsdtar ustar": (
        "bsdtar",
        "tar",
        _shell("bsdtar --format=ustar --exclude='nnn*' -cf $OUT dataset"),
    ),
    "bsdtar gz": ("bsdtar", "tar.gz", _shell("bsdtar -czf $OUT dataset")),
    "bsdtar zip": ("bsdtar", "zip", _shell("bsdtar --format=zip -cf $OUT dataset")),
    "bsdtar zip streamed": ("bsdtar", "zip", _shell("bsdtar --format=zip -cf - dataset|cat>$OUT")),
    "Python ustar": ("python", "tar", _tarfile(tarfile.USTAR_FORMAT, "w")),
    "Python GNU": ("python", "tar", _tarfile(tarfile.GNU_FORMAT, "w")),
    "Python pax": ("python", "tar", _tarfile(tarfile.PAX_FORMAT, "w")),
    "Python gz": ("python", "tar.gz", _tarfile(tarfile.PAX_FORMAT, "w:gz")),
    "Python xz": ("python", "tar.xz", _tarfile(tarfile.PAX_FORMAT, "w:xz", preset=1)),
    "zip": ("zip", "zip", _shell("zip -qr $OUT dataset")),
    "zip streamed": ("zip", "zip", _shell("zip -qr - dataset | cat > $OUT")),
    "zip stored": ("zip", "zip", _shell("zip -0 -qr $OUT dataset")),
    "zip bzip2": ("zip", "zip", _shell("zip -Z bzip2 -qr $OUT dataset")),
    "7z": ("7z", "zip", _shell("7z a -tzip $OUT dataset")),
    "7z LZMA": ("7z", "zip", _shell("7z a -tzip -mm=LZMA $OUT dataset")),
    "Python zip": ("python", "zip", _zipfile(zipfile.ZIP_DEFLATED)),
    "Python zip LZMA": ("python", "zip", _zipfile(zipfile.ZIP_LZMA)),
    "Python zip streamed": ("python", "zip", _zipfile_streamed),
}
# The programs that a machine lacks have no tests there.
HERE = [name for name, (it, *_) in WRITERS.items() if it == "python" or shutil.which(it)]
# One writer of every structure and compression, for what does not depend on who wrote it.
OF_EACH = [
    name
    for name in (
        *("GNU tar gnu", "GNU tar pax", "GNU tar ustar", "GNU tar old sparse"),
        *("GNU tar sparse 1.0", "GNU tar gz", "GNU tar xz", "GNU tar bz2", "GNU tar zst"),
        *("GNU tar lzma", "lz4", "pigz independent", "zip", "zip streamed", "Python zip LZMA"),
    )
    if name in HERE
]
TARS_HERE = [name for name in HERE if WRITERS[name][1] == "tar"]

OPTIONS = Options(layout=Layout())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with all that file systems and names have in store."""
    root = tmp_path_factory.mktemp("tree")
    images = root / "dataset" / "images"
    images.mkdir(parents=True)
    for number, size in enumerate([0, 1, 511, 512, 513, 1024, 40_000, 200_000] * 4):
        data = hashlib.sha512(b"%d" % number).digest() * (size // 64 + 1)
        (images / f"{number:04d}.png").write_bytes(data[:size])
    (images / "ünï çødé ж.png").write_bytes(b"name")
    (images / ("n" * 120 + ".png")).write_bytes(b"long name")
    deep = root / "dataset" / ("nnn" + "d" * 97) / ("e" * 100) / ("f" * 100)
    deep.mkdir(parents=True)
    (deep / "deep.txt").write_bytes(b"deep")
    (root / "dataset" / "prompts.jsonl").write_bytes(b'{"id": 1}\n' * 500)
    with (root / "dataset" / "holes.bin").open("wb") as file:
        file.write(b"start")
        file.seek(1 << 20)
        file.write(b"middle" * 1000)
        file.truncate(3 << 20)
    (root / "dataset" / "large.bin").write_bytes(os.urandom(1_300_000) + bytes(500_000))
    (root / "dataset" / "empty").mkdir()
    os.link(images / "0007.png", root / "dataset" / "again.png")
    return root


@pytest.fixture(scope="module")
def written(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The archive of a writer, written once."""

    @cache
    def made(name: str) -> Path:
        _, ending, write = WRITERS[name]
        path = tmp_path_factory.mktemp("archive") / f"a.{ending}"
        write(tree, path)
        return path

    return made


@pytest.fixture(scope="module", params=OF_EACH)
def archive(request: pytest.FixtureRequest, written: Callable[[str], Path]) -> Path:
    return written(request.param)


@pytest.fixture(scope="module")
def whole(archive: Path) -> Digests:
    """What is read of it in one part."""
    return digests(archive)


@pytest.fixture(scope="module")
def content(tree: Path) -> Digests:
    """What the tree holds."""
    files = [path for path in tree.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(tree)): (
            len(data),
            hashlib.md5(data, usedforsecurity=False).hexdigest(),
        )
        for path, data in ((path, path.read_bytes()) for path in files)
    }


def _expected(content: Digests, found: Digests) -> Digests:
    """``content`` without the long names where a writer cannot store them."""
    if any("nnn" in name for name in found):
        return content
    return {name: value for name, value in content.items() if "nnn" not in name}


@pytest.mark.parametrize("name", HERE)
def test_every_file_comes_byte_for_byte(
    written: Callable[[str], Path], content: Digests, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(CORES, "2")
    found = digests(written(name))
    assert found == _expected(content, found)


def test_on_one_core_no_thread_reads_ahead_and_the_bytes_are_the_same(
    archive: Path, content: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CORES, "1")
    found = digests(archive)
    assert found == _expected(content, found)


@pytest.mark.parametrize("name", TARS_HERE)
def test_every_file_comes_byte_for_byte_where_the_extension_was_not_built(
    written: Callable[[str], Path], content: Digests, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tar_header, "_scan", tar_header.scan_tar_plain)
    found = digests(written(name))
    assert found == _expected(content, found)


def test_parts_together_are_complete_and_disjoint(archive: Path, whole: Digests) -> None:
    reader, evidence, _ = opened(archive, parts=5)
    parts = [part_digests(reader, Part("s0", index, 5)) for index in range(5)]
    assert sum(map(len, parts)) == len(whole)
    assert {path: value for part in parts for path, value in part.items()} == whole
    assert sum(bool(part) for part in parts) > 1
    if evidence.format in TARS:
        assert len(evidence.cuts) == 6


def test_ordinals_are_in_order_over_all_parts(archive: Path) -> None:
    reader, _, _ = opened(archive, parts=3)
    ordinals = [m.ordinal for index in range(3) for m in reader.members(Part("s0", index, 3))]
    assert ordinals == list(range(len(ordinals)))


def test_the_common_top_folder_is_found_before_the_members_and_with_the_parts(
    archive: Path,
) -> None:
    assert opened(archive)[0].top == "dataset"
    assert opened(archive, parts=4)[0].top == "dataset"
    files = Options(layout=Layout(name="files", records="", images=""))
    assert opened(archive, options=files)[0].top is None


def test_modes_and_times_are_read(archive: Path, tree: Path) -> None:
    reader, _, _ = opened(archive)
    for member in reader.members(Part("s0", 0, 1)):
        if member.name.endswith(b"prompts.jsonl"):
            status = (tree / "dataset" / "prompts.jsonl").stat()
            assert member.mode == status.st_mode & 0o777
            assert abs(member.mtime - status.st_mtime) <= 2
            return
    raise AssertionError("the records file did not come")


def test_a_member_is_found_by_its_path(archive: Path) -> None:
    member = opened(archive)[0].find(b"dataset/prompts.jsonl")
    assert member is not None and member.kind is MemberKind.FILE
    assert b"".join(map(bytes, member.chunks)) == b'{"id": 1}\n' * 500
    assert opened(archive)[0].find(b"dataset/no-such-file") is None


def test_a_member_is_found_while_others_are_read(archive: Path) -> None:
    reader, _, _ = opened(archive)
    plain = [member.name for member in reader.members(Part("s0", 0, 1))]
    names = []
    for member in reader.members(Part("s0", 0, 1)):
        names.append(member.name)
        if member.ordinal % 16 == 0:
            found = reader.find(b"dataset/prompts.jsonl")
            assert found is not None
            assert b"".join(map(bytes, found.chunks)) == b'{"id": 1}\n' * 500
    assert names == plain


@pytest.mark.parametrize("cores", ["1", "2"])
def test_members_before_a_damaged_one_are_yielded_before_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: str
) -> None:
    monkeypatch.setenv(CORES, cores)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("first", "second", "third"):
            file.writestr(name, f"this is the {name}")
    path.write_bytes(path.read_bytes().replace(b"this is the third", b"this is the thief"))
    reader, _, _ = opened(path)
    names = []
    with pytest.raises(ArchiveError, match="third"):
        for member in reader.members(Part("s0", 0, 1)):
            names.append(member.name)
    assert names == [b"first", b"second"]


def test_a_consumer_may_leave_members_unread_or_stop(archive: Path) -> None:
    reader, _, _ = opened(archive)
    names = [member.name for member in reader.members(Part("s0", 0, 1))]
    assert len(names) > 30
    members = reader.members(Part("s0", 0, 1))
    assert next(members).name == names[0]
    members.close()  # type: ignore[attr-defined]
    assert [member.name for member in reader.members(Part("s0", 0, 1))] == names


def test_a_split_archive_reads_as_one(archive: Path, whole: Digests, tmp_path: Path) -> None:
    data = archive.read_bytes()
    pieces = [tmp_path / f"{archive.name}.{index:03d}" for index in range(3)]
    third = len(data) // 3 + 1
    for index, piece in enumerate(pieces):
        piece.write_bytes(data[index * third : (index + 1) * third])
    assert digests(*pieces) == whole


def test_one_pass_writes_a_plain_tar_and_where_its_parts_begin(
    archive: Path, whole: Digests, tmp_path: Path
) -> None:
    evidence, shard = fetched(archive, parts=4)
    if evidence.format not in TARS:
        return  # its reader finds every member without a pass over the content
    plain = tmp_path / "plain.tar"
    followed = read_through(shard, OPTIONS, plain=plain).applied(evidence)
    if evidence.format is Format.TAR:
        assert followed.plain is None and not plain.exists()
    else:
        assert followed.plain == str(plain)
        assert [path.name for path in tmp_path.iterdir()] == ["plain.tar"]
    reader = reader_of(followed, shard, OPTIONS)
    parts = [part_digests(reader, Part("s0", index, 4)) for index in range(4)]
    assert {path: value for part in parts for path, value in part.items()} == whole
    assert followed.members is not None and followed.members >= len(whole)
