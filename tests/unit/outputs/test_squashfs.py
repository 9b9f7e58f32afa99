"""Squashfs images: what other programs read of them, and that no faulty one is accepted."""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from pathlib import Path

import msgspec
import pytest

from jobs.errors import OrchestrateError, UsageError
from jobs.model import Options, Output
from jobs.outputs import squashfs
from jobs.outputs.squashfs import Squashfs, SquashfsWriter
from jobs.runtime.process import CORES

OPTIONS = Options(output=Output.SQUASHFS)
MEMBERS = {
    b"images/b.png": os.urandom(300_000),
    b"images/a.png": b"x" * 1000,
    b"images/again.png": b"x" * 1000,
    "with space/\u00e4\u2603.txt".encode(): b"not ASCII",
    b"new\nline\\ \"'.txt": b"odd",
    b"not-utf8-\xff.txt": b"bytes",
    b"d/" * 60 + b"deep.txt": b"deep",
    b"empty": b"",
}
with_program = pytest.mark.skipif(
    not shutil.which("tar2sqfs"), reason="tar2sqfs is not installed (squashfs-tools-ng)"
)


def written(path: Path, options: Options = OPTIONS) -> bytes:
    """An image of ``MEMBERS``."""
    with SquashfsWriter(path, options, ["crc32"]) as out:
        for name, data in MEMBERS.items():
            out.begin(name, len(data), f"{zlib.crc32(data):08x}")
            out.put(data)
            out.end()
        size, digests = out.finish()
    made = path.read_bytes()
    assert (size, digests["crc32"]) == (len(made), f"{zlib.crc32(made):08x}")
    return made


@with_program
@pytest.mark.skipif(not shutil.which("unsquashfs"), reason="unsquashfs is not installed")
def test_every_file_is_read_by_another_program(tmp_path: Path) -> None:
    written(tmp_path / "a.squashfs")
    command = ["unsquashfs", "-quiet", "-no-progress", "-dest", "out", "a.squashfs"]
    subprocess.run(command, cwd=tmp_path, check=True)
    root = os.fsencode(tmp_path / "out")
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(os.fsdecode(folder + b"/" + name))
            found[os.fsencode(path.relative_to(tmp_path / "out"))] = path.read_bytes()
            assert (path.stat().st_mtime, path.stat().st_mode) == (315_532_800, 0o100644)
    assert found == MEMBERS


@with_program
@pytest.mark.parametrize("compression", ["zstd:3", "gzip", "lz4"])
def test_an_image_is_the_same_whatever_the_threads_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    options = msgspec.structs.replace(
        OPTIONS, squashfs_compression=compression, squashfs_block=1 << 20
    )
    monkeypatch.setenv(CORES, "1")
    one = written(tmp_path / "one", options)
    monkeypatch.setenv(CORES, "3")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    assert written(tmp_path / "two", options) == one
    assert int.from_bytes(one[12:16], "little") == 1 << 20  # of its superblock: the block size


def _program(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *lines: str) -> None:
    """Put a program of these lines of shell in front of PATH; the real one is $REAL."""
    real = shutil.which(name)
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", f"REAL={real}", *lines, ""]))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def test_a_program_that_is_absent_or_old_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tar2sqfs", "sqfs2tar"):
        _program(tmp_path, monkeypatch, name, "echo 'tool (squashfs-tools-ng) 0.9.1'")
    found = Squashfs().missing_program()
    assert found is not None
    assert found.startswith("--output squashfs needs tar2sqfs 1.0 or newer, and ")
    assert "has 0.9.1; install a newer squashfs-tools-ng" in found
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        OrchestrateError, match=r"needs tar2sqfs, which is not on PATH of .*--setup"
    ):
        written(tmp_path / "a.squashfs")


VERSION = '[ "$1" = --version ] && exec $REAL --version'


@with_program
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["echo 'x: I/O error.' >&2; exit 3"], "exit code 3: x: I/O error.; nothing was publ"),
        (["cat >/dev/null; exit 1"], "exit code 1: it printed nothing"),
        (["cat >/dev/null; head -c 1024 /dev/zero | $REAL \"$@\""], "does not contain what was w"),
        (["$REAL \"$@\" || exit; for a; do :; done; : >\"$a\""], "a.squashfs cannot be read: "),
    ],
    ids=["fails at once", "fails at the end", "leaves files out", "cuts the image"],
)  # fmt: skip
def test_an_image_that_is_not_made_well_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], message: str
) -> None:
    _program(tmp_path, monkeypatch, "tar2sqfs", VERSION, *lines)
    monkeypatch.setitem(MEMBERS, b"large", bytes(6 << 20))  # more than a buffer and a pipe hold
    with pytest.raises(OrchestrateError, match=message) as caught:
        written(tmp_path / "a.squashfs")
    assert caught.value.retryable


@with_program
def test_a_damaged_image_is_not_read_to_its_end(tmp_path: Path) -> None:
    data = bytearray(written(tmp_path / "a.squashfs"))
    data[len(data) - 3000 :] = bytes(3000)
    (tmp_path / "a.squashfs").write_bytes(data)
    with pytest.raises(OrchestrateError, match="cannot be read"):
        list(squashfs.contents(tmp_path / "a.squashfs"))


@with_program
def test_the_program_ends_with_the_writer(tmp_path: Path) -> None:
    with pytest.raises(KeyError), SquashfsWriter(tmp_path / "a", OPTIONS, ["crc32"]) as out:
        out.begin(b"a", 1 << 30, "")
        out.put(b"part of it")
        raise KeyError
    assert out._maker.returncode is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"squashfs_compression": name}
        for name in ("zstd:23", "zstd:0", "gzip:10", "lz4:1", "bzip2", "zstd:", "none")
    ]
    + [{"squashfs_block": size} for size in (3000, 2048, 2 << 20)],
)
def test_options_that_no_image_has_are_refused(changes: dict[str, str | int]) -> None:
    (name,) = changes
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} "):
        Squashfs().check(msgspec.structs.replace(OPTIONS, **changes))
    for fine in ("zstd", "zstd:22", "gzip:9", "lz4", "xz"):
        Squashfs().check(msgspec.structs.replace(OPTIONS, squashfs_compression=fine))
