"""What archives hold: WebSight pages, each a PNG and a record, as values and as tars."""

from __future__ import annotations

import functools
import io
import json
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jobs.model import ShardKind


@functools.cache
def noise(seed: int = 0) -> bytes:
    """12 MiB of random bytes, the same ones for everybody: to make them takes time and memory."""
    return random.Random(seed).randbytes(12 << 20)


def png(seed: int = 0) -> bytes:
    """A complete PNG of a few dozen bytes, a different one for each seed."""
    rows = b"".join(b"\0" + struct.pack(">I", seed + y)[1:] * 4 for y in range(4))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        )
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its CRC."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def line(image: str, **more: object) -> bytes:
    """A record's line."""
    return json.dumps({"image": image, "text": "<html>…</html>", **more}).encode() + b"\n"


def tarred(files: Mapping[str, bytes] | Mapping[bytes | str, bytes]) -> bytes:
    """A plain tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, data in files.items():
            info = tarfile.TarInfo(raw(path).decode("utf-8", "surrogateescape"))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def raw(path: bytes | str) -> bytes:
    """A path as an archive has it."""
    return path if isinstance(path, bytes) else path.encode()


def images(numbers: Iterable[int], colour: int | None = None) -> dict[str, bytes]:
    """The images of pages, by their paths."""
    return {f"images/{n:04d}.png": png(n if colour is None else colour) for n in numbers}


def records(numbers: Iterable[int], note: str = "") -> bytes:
    """The records of pages, as JSON lines."""
    lines = (
        json.dumps({"id": f"{n:04d}", "image": f"images/{n:04d}.png", "prompt": f"{note}{n} é"})
        for n in numbers
    )
    return "".join(f"{line}\n" for line in lines).encode()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip of these files, which are not compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def page_tar(numbers: Iterable[int], note: str = "", colour: int | None = None) -> bytes:
    """A tar of pages."""
    numbers = list(numbers)
    return tarred({**images(numbers, colour), "prompts.jsonl": records(numbers, note)})


@dataclass
class Content:
    """What a shard holds: each file by its path, and its records."""

    files: dict[bytes | str, bytes]
    records: bytes | None = None
    name: str = ""
    parts: int = 1
    kind: ShardKind = ShardKind.ARCHIVE
    left_out: dict[str, int] = field(default_factory=dict)

    def data(self) -> bytes:
        """The bytes of its archive, or of its only file."""
        if self.kind is not ShardKind.ARCHIVE:
            return next(iter(self.files.values()), self.records or b"")
        files = dict(self.files)
        if self.records is not None:
            files["prompts.jsonl"] = self.records
        return tarred(files)


def pages(first: int, count: int) -> Content:
    """The PNGs ``first`` … with a record for each."""
    names = [f"images/{number:06d}.png" for number in range(first, first + count)]
    files: dict[bytes | str, bytes] = {
        name: png(number) for number, name in enumerate(names, first)
    }
    return Content(files, b"".join(line(name, id=name) for name in names))


def page_tars(folder: Path, count: int) -> list[Path]:
    """So many tars in ``folder``, each with three pages."""
    paths = [folder / f"{number:03d}.tar" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(page_tar(range(3 * number, 3 * number + 3)))
    return paths


def in_pieces(data: bytes, *names: str) -> dict[str, bytes]:
    """``data`` cut into as many pieces as there are names, all of one size but for the last."""
    size = len(data) // len(names) + 1
    return {name: data[i * size : (i + 1) * size] for i, name in enumerate(names)}


def flip(path: Path) -> None:
    """Change a byte in the middle, as a failing disk does: the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by its path, but for the times and hosts in a receipt."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "RECEIPT.json"
    }
