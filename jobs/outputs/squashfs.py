"""One squashfs image with all files and the records, which is mounted in place of a tree of files.

``tar2sqfs`` makes it of a tar that is streamed to it, ``sqfs2tar`` reads it back; both are from
squashfs-tools-ng (https://github.com/AgentD/squashfs-tools-ng). No file of the dataset is written
besides. Order, owners, modes and times are fixed, so the same files make the same image with the
same version of the programs, whatever the number of their threads.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import IO

from jobs.errors import Cause, OrchestrateError, UsageError
from jobs.model import Options
from jobs.outputs import tar_writer
from jobs.outputs.base import FinishedShard, PackedOutput
from jobs.outputs.tar_writer import TarWriter
from jobs.runtime.process import cores
from jobs.storage import digest

_MAKE, _READ = "tar2sqfs", "sqfs2tar"
_OLDEST = (1, 0)  # version of both
_BLOCKS = [1 << exponent for exponent in range(12, 21)]  # bytes
_CHUNK = 1 << 20  # bytes that are read at once
_is_compression = re.compile(r"zstd(:([1-9]|1\d|2[0-2]))?|gzip(:[1-9])?|lz4|xz").fullmatch


def missing() -> str | None:
    """Which program this machine lacks, and what to do; None if none."""
    for program in (_MAKE, _READ):
        found = _version(program)
        if found is None:
            return (
                f"--output squashfs needs {program}, which is not on PATH of "
                f"{os.uname().nodename}; install squashfs-tools-ng, or load it in the jobs with "
                "--setup"
            )
        if found[0] < _OLDEST:
            return (
                f"--output squashfs needs {program} {'.'.join(map(str, _OLDEST))} or newer, and "
                f"{os.uname().nodename} has {found[1]}; install a newer squashfs-tools-ng"
            )
    return None


def _version(program: str) -> tuple[tuple[int, ...], str] | None:
    """A program's version as numbers and as text; None where it is absent."""
    path = shutil.which(program)
    if path is None:
        return None
    done = subprocess.run(
        [path, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    text = re.search(rb"\d+(?:\.\d+)+", done.stdout)
    if text is None:
        return (), "an unknown version"
    return tuple(map(int, text[0].split(b"."))), text[0].decode()


class _Contents:
    """A checksum of members that does not depend on their order."""

    def __init__(self) -> None:
        self._sum = 0

    def add(self, name: bytes, size: int, crc32: str) -> None:
        """Add a member."""
        data = b"%s\0%d %s" % (name, size, crc32.encode())
        self._sum += int.from_bytes(blake2b(data, digest_size=16).digest(), "big")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Contents) and self._sum == other._sum

    __hash__ = None  # type: ignore[assignment]


class SquashfsWriter(TarWriter):
    """Streams members to the program that makes the image, then compares the image with them.

    Raises ``OrchestrateError`` where the program is absent or fails, or the image differs.
    """

    def __init__(self, path: Path, options: Options, algorithms: Sequence[str]) -> None:
        if fact := missing():
            raise OrchestrateError(
                f"{fact}; nothing was published, and `resume` continues from here",
                cause=Cause.PREFLIGHT,
            )
        self._path = path
        self._algorithms = algorithms
        self._contents = _Contents()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # until __exit__
        self._maker = subprocess.Popen(
            [shutil.which(_MAKE) or _MAKE, *_arguments(options), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            # It would set the image's time.
            env={k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"},
        )
        self._pipe = _wide(self._maker.stdin)
        super().__init__(self._pipe.fileno(), ())

    def begin(self, name: bytes, size: int, crc32: str) -> None:  # type: ignore[override]
        """See ``ShardWriter.begin``: the image does not contain the content as it is."""
        self._contents.add(name, size, crc32)
        super().begin(name, size, crc32)

    def _flush(self) -> None:
        try:
            super()._flush()
        except BrokenPipeError:
            raise self._failed() from None

    def finish(self) -> FinishedShard:
        """See ``ShardWriter.finish``; reads the whole image back."""
        super().finish()
        self._pipe.close()
        if self._maker.wait() != 0:
            raise self._failed()
        found = _Contents()
        for member in contents(self._path):
            found.add(*member)
        if found != self._contents:
            raise OrchestrateError(
                f"the image that {_MAKE} made does not contain what was written into it; it was "
                "not published, and `resume` makes it again",
                cause=Cause.IO,
            )
        return _finished(self._path, self._algorithms)

    def _failed(self) -> OrchestrateError:
        code = self._maker.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        return OrchestrateError(
            f"{_MAKE} ended with exit code {code}: {said[-1] if said else 'it printed nothing'}; "
            "nothing was published; see that there is space at the destination, then `resume` "
            "makes the image again",
            cause=Cause.IO,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._maker.poll() is None:
            self._maker.kill()
            self._maker.wait()
        with suppress(BrokenPipeError):
            self._pipe.close()
        self._said.close()


def _wide(pipe: IO[bytes] | None) -> IO[bytes]:
    """A pipe of a process, larger if the system allows it: the two then switch less often."""
    assert pipe is not None
    with suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _CHUNK)
    return pipe


def _arguments(options: Options) -> list[str]:
    name, _, level = options.squashfs_compression.partition(":")
    fixed = f"uid=0,gid=0,mode=0755,mtime={tar_writer.TIME}"
    return [
        "--quiet", "--force", "--no-skip", "--no-xattr", f"--defaults={fixed}",
        f"--num-jobs={cores()}", f"--block-size={options.squashfs_block}", f"--compressor={name}",
        *([f"--comp-extra=level={level}"] if level else []),
    ]  # fmt: skip


def contents(image: Path) -> Iterator[tuple[bytes, int, str]]:
    """Path, size and CRC-32 of each file of an image, by reading all of it.

    Raises ``OrchestrateError`` where the image cannot be read.
    """
    if fact := missing():
        raise OrchestrateError(fact, cause=Cause.PREFLIGHT)
    command = [shutil.which(_READ) or _READ, str(image)]
    with tempfile.TemporaryFile() as said:
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said)
        stream = _wide(reader.stdout)
        try:
            yield from _members(stream)
            if reader.wait() != 0:
                said.seek(0)
                raise OrchestrateError(
                    f"{image} cannot be read: {said.read().decode(errors='replace').strip()}",
                    cause=Cause.IO,
                )
        except (tarfile.TarError, EOFError) as error:
            raise OrchestrateError(f"{image} cannot be read: {error}", cause=Cause.IO) from error
        finally:
            reader.kill()
            reader.wait()
            stream.close()


def _members(stream: IO[bytes]) -> Iterator[tuple[bytes, int, str]]:
    with tarfile.open(fileobj=stream, mode="r|", errors="surrogateescape", bufsize=_CHUNK) as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # or it holds all of them
            file = tar.extractfile(member)
            if file is not None:
                hasher = digest.new("crc32")
                while data := file.read(_CHUNK):
                    hasher.update(data)
                name = member.name.encode("utf-8", "surrogateescape")
                yield name, member.size, hasher.hexdigest()
        stream.read()  # to the end, so that the program is not stopped


def _finished(path: Path, algorithms: Sequence[str]) -> FinishedShard:
    hashers = {name: digest.new(name) for name in algorithms}
    size = 0
    with path.open("rb", buffering=0) as file:
        while data := file.read(_CHUNK):
            size += len(data)
            for hasher in hashers.values():
                hasher.update(data)
    return FinishedShard(size, {name: hasher.hexdigest() for name, hasher in hashers.items()})


class Squashfs(PackedOutput):
    """See ``jobs.outputs.base.PackedOutput``."""

    ending = ".squashfs"
    unit = "image"
    single = True
    with_records = True
    options = frozenset({"squashfs_compression", "squashfs_block"})

    def check(self, options: Options) -> None:
        """See ``PackedOutput.check``."""
        if not _is_compression(options.squashfs_compression):
            raise UsageError(
                f"--squashfs-compression {options.squashfs_compression}: give zstd, zstd:1 to "
                "zstd:22, gzip, gzip:1 to gzip:9, lz4 or xz"
            )
        if options.squashfs_block not in _BLOCKS:
            raise UsageError(
                f"--squashfs-block {options.squashfs_block} is in bytes, and must be a power of "
                "two from 4K to 1M"
            )

    def missing_program(self) -> str | None:
        """See ``PackedOutput.missing_program``."""
        return missing()

    def writer(self, path: Path, options: Options, algorithms: Sequence[str]) -> SquashfsWriter:
        """See ``PackedOutput.writer``."""
        return SquashfsWriter(path, options, algorithms)

    def made_by(self) -> str | None:
        """See ``PackedOutput.made_by``."""
        found = _version(_MAKE)
        return found and f"{_MAKE} {found[1]}"

    def contents(self, shard: Path) -> Iterator[tuple[bytes, int, str]]:
        """See ``PackedOutput.contents``."""
        return contents(shard)

    def how_to_read(self, folder: Path, name: str, shards: int) -> tuple[str, ...]:
        """See ``PackedOutput.how_to_read``."""
        image = shlex.quote(str(folder / f"{name}{self.ending}"))
        return f"squashfuse {image} /mnt", f"apptainer exec -B {image}:/data:image-src=/ IMAGE.sif"
