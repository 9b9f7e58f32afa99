"""Sample datasets: real pages as PNG and JPEG with their records, and archives made of them.

As a program: `python -m examples.samples OUT --records 2000`.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import io
import json
import lzma
import random
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from PIL import Image, ImageDraw

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RECORDS = "prompts.jsonl"
IMAGES = "images"
MTIME = 1_700_000_000  # seconds; the same for all files, so that archives are identical every time
SUFFIX = {"zip": ".zip"}  # of the others: a dot and the format's name
FORMATS = ("tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst", "zip")
# The smallest image: one white pixel as PNG (signature and IHDR, IDAT, IEND).
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000d494441547801010200fdff00ff01010100608712b5"
    "0000000049454e44ae426082"
)
_NOT_DATA = ("RECEIPT", "MANIFEST", ".incoming")
_TEXT = (
    "shop garden bakery museum clinic school harbour weather travel music studio bank hotel "
    "library market theatre gallery river mountain coffee bicycle camera orchard kitchen"
)
_WORDS = _TEXT.split()


def make_dataset(
    folder: Path, *, records: int = 60, seed: int = 1, image_bytes: int | None = None
) -> Path:
    """Write `prompts.jsonl` and `images/` into `folder`, the same for the same seed.

    Every third page is a JPEG, the others are PNG. `image_bytes` is the approximate size of
    each image (default: a few kB).
    """
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(1, records + 1):
        rng = random.Random(f"{seed}/{number}")
        kind = "jpg" if number % 3 == 0 else "png"
        name = f"{IMAGES}/{number:06d}.{kind}"
        (folder / name).write_bytes(_encoded(_page(rng, number), rng, kind, image_bytes))
        lines.append(json.dumps(_record(rng, number, name), ensure_ascii=False))
    (folder / RECORDS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def _record(rng: random.Random, number: int, image: str) -> dict[str, str]:
    first, second, third = rng.sample(_WORDS, 3)
    return {
        "id": f"{number:06d}",
        "image": image,
        "prompt": f"A page about a {first} – with a {second} and, beneath it, a {third}.",
        "text": f"<html><h1>{first} №{number}</h1><p>{second}</p><p>{third}</p></html>",
    }


def _page(rng: random.Random, number: int) -> Image.Image:
    """A page like a browser's: a bar, a heading, a picture, lines of text."""
    page = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, 320, 28), fill=_colour(rng, 60, 180))
    draw.text((8, 8), f"{rng.choice(_WORDS)} {rng.choice(_WORDS)} {number}", fill="white")
    left = rng.randrange(8, 160)
    draw.rectangle((left, 40, left + rng.randrange(40, 150), 110), fill=_colour(rng, 120, 240))
    for row in range(10):
        draw.text((8, 116 + 12 * row), " ".join(rng.choices(_WORDS, k=6)), fill="black")
    return page


def _colour(rng: random.Random, low: int, high: int) -> tuple[int, int, int]:
    return (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))


def _encoded(page: Image.Image, rng: random.Random, kind: str, wanted: int | None) -> bytes:
    plain = _saved(page, kind)
    if wanted is None or len(plain) >= wanted:
        return plain
    # No codec can compress noise: measure the size of a row of it, then add rows.
    sample = _saved(_with_noise(page, rng, 16), kind)
    rows = 16 * (wanted - len(plain)) // max(len(sample) - len(plain), 1)
    return _saved(_with_noise(page, rng, max(rows, 1)), kind)


def _with_noise(page: Image.Image, rng: random.Random, rows: int) -> Image.Image:
    longer = Image.new("RGB", (page.width, page.height + rows))
    longer.paste(page, (0, 0))
    noise = Image.frombytes("RGB", (page.width, rows), rng.randbytes(page.width * rows * 3))
    longer.paste(noise, (0, page.height))
    return longer


def _saved(page: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "jpg":
        page.save(out, "JPEG", quality=75)
    else:
        page.save(out, "PNG", compress_level=1)
    return out.getvalue()


def marked(image: bytes, text: str) -> bytes:
    """The same picture in other bytes: `text` (Latin-1) becomes a comment in a PNG or JPEG.

    JPEG: a COM segment after APP0, which has to be first in JFIF (ITU-T T.81, B.2.4.5).
    """
    comment = text.encode("latin-1")
    if image.startswith(b"\x89PNG"):
        return with_chunk(image, b"tEXt", b"Comment\0" + comment)
    at = 4 + int.from_bytes(image[4:6], "big") if image[2:4] == b"\xff\xe0" else 2
    return image[:at] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + image[at:]


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk after IHDR (https://www.w3.org/TR/png/#5Chunk-layout)."""
    at = 8 + 25  # the signature and IHDR
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return png[:at] + struct.pack(">I", len(data)) + kind + data + crc + png[at:]


# Archives ------------------------------------------------------------------------------------


def pack_shards(
    dataset: Path, out: Path, count: int = 4, fmt: str = "tar.gz", *, top: str = ""
) -> list[Path]:
    """Spread a dataset over `count` archives `shard-0000.…` in `out`.

    Each has a slice of the records and their images; the slices in order are the original
    records file. `top` is a folder that contains all members of each archive.
    """
    lines = (dataset / RECORDS).read_bytes().splitlines(keepends=True)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for index in range(count):
        mine = lines[len(lines) * index // count : len(lines) * (index + 1) // count]
        images = [str(json.loads(line)["image"]) for line in mine]
        members = [(RECORDS, b"".join(mine)), *_read(dataset, images)]
        path = out / f"shard-{index:04d}{suffix(fmt)}"
        write_archive(path, _below(top, members), fmt)
        made.append(path)
    return made


def pack_one(dataset: Path, out: Path, fmt: str = "tar.gz", *, top: str = "") -> Path:
    """The complete dataset as one archive `websight.…` in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(str(p.relative_to(dataset)) for p in dataset.rglob("*") if p.is_file())
    path = out / f"websight{suffix(fmt)}"
    # The records file last, as in archives whose members are sorted by name.
    write_archive(path, _below(top, list(_read(dataset, names))), fmt)
    return path


def suffix(fmt: str) -> str:
    """The file name suffix of archives of that format."""
    return SUFFIX.get(fmt, f".{fmt}")


def write_archive(path: Path, members: Sequence[tuple[str, bytes]], fmt: str) -> None:
    """Write these files, in this order, with their parent folders."""
    if fmt == "zip":
        _write_zip(path, members)
        return
    with _compressed(path, fmt) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        for folder in _folders(members):
            info = tarfile.TarInfo(folder)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, MTIME
            archive.addfile(info)
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), MTIME
            archive.addfile(info, io.BytesIO(data))


def _write_zip(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    date = time.gmtime(MTIME)[:6]
    with zipfile.ZipFile(path, "w") as archive:
        for folder in _folders(members):
            archive.writestr(zipfile.ZipInfo(f"{folder}/", date), b"")
        for name, data in members:
            info = zipfile.ZipInfo(name, date)
            info.external_attr = 0o100644 << 16
            packed = name.endswith(".jsonl")  # images are compressed already
            info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            archive.writestr(info, data)


@contextmanager
def _compressed(path: Path, fmt: str) -> Iterator[IO[bytes]]:
    if fmt == "tar":
        with path.open("wb") as stream:
            yield stream
    elif fmt == "tar.gz":
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=MTIME) as packed:
            yield cast(IO[bytes], packed)
    elif fmt == "tar.bz2":
        with bz2.open(path, "wb") as bzipped:
            yield bzipped
    elif fmt == "tar.xz":
        with lzma.open(path, "wb", preset=1) as xzipped:
            yield xzipped
    elif fmt == "tar.zst":
        with zstd.open(path, "wb") as zipped:
            yield cast(IO[bytes], zipped)
    else:
        raise ValueError(f"{fmt!r} is none of {', '.join(FORMATS)}")


def _read(dataset: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        yield name, (dataset / name).read_bytes()


def _below(top: str, members: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [(f"{top}/{name}" if top else name, data) for name, data in members]


def _folders(members: Sequence[tuple[str, bytes]]) -> list[str]:
    found: set[str] = set()
    for name, _ in members:
        while "/" in name:
            name = name.rpartition("/")[0]
            found.add(name)
    return sorted(found)


# Comparing -----------------------------------------------------------------------------------


def tree_digest(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by its path: equal for the original and the published dataset.

    Leaves out the receipt, the manifest and unpublished files.
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(_NOT_DATA)
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Make a dataset, and archives of it if requested."""
    parser = argparse.ArgumentParser(prog="python -m examples.samples", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the dataset")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bytes", type=int, help="approximate size of each image")
    parser.add_argument("--shards", type=Path, help="folder for the dataset as several archives")
    parser.add_argument("--count", type=int, default=8, help="how many archives")
    parser.add_argument("--one", type=Path, help="folder for the dataset as one archive")
    parser.add_argument("--format", choices=FORMATS, default="tar.gz")
    asked = parser.parse_args(argv)
    dataset = make_dataset(
        asked.out, records=asked.records, seed=asked.seed, image_bytes=asked.bytes
    )
    print(f"{asked.records} records with their images: {dataset}")
    if asked.shards:
        made = pack_shards(dataset, asked.shards, asked.count, asked.format)
        print(f"{len(made)} {asked.format} archives: {asked.shards}")
    if asked.one:
        print(f"one archive: {pack_one(dataset, asked.one, asked.format)}")


if __name__ == "__main__":
    main()
