"""A dataset of WebSight-v2's size, packed in the ways that datasets are published in.

The SHA-256 of every file is taken from the bytes as they are made, before anything is packed:
whatever is compared with it cannot share a fault with the packing or with the tool.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from examples.samples import IMAGES, RECORDS, make_dataset, marked

WEBSIGHT_V2 = 79_413  # records, and as many images
SMALLEST = 12_000  # bytes of an image, about: no page is made smaller than it comes out
TEXT_BYTES = 1_200  # of a record
PARQUET_FILES = 8

_ROWS = 1_000  # of a row group
_BLOCK = 1 << 20  # bytes
_WORDS = ("shop", "garden", "bakery", "museum", "clinic", "school", "harbour", "weather", "studio")


@dataclass(frozen=True)
class Dataset:
    """``folder`` with ``prompts.jsonl`` and ``images/``, and its packings beside it."""

    root: Path
    records: int = WEBSIGHT_V2
    shards: int = 40
    image_bytes: tuple[int, ...] = (SMALLEST, 16_000, 24_000, 40_000, 70_000)
    """Sizes of the images, about; as many have each."""

    @property
    def folder(self) -> Path:
        return self.root / "folder"

    @property
    def bytes(self) -> int:
        """About how large it is."""
        return self.records * (sum(self.image_bytes) // len(self.image_bytes) + TEXT_BYTES)

    def make(self) -> None:
        """Write it, unless it is there already in this size."""
        sums = _sums_file(self.folder)
        if sums.exists() and len(read_sums(sums)) == self.records + 1:
            return
        for left in (self.folder, sums, *(self.root / name for name in PACKINGS)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        bases = _bases(self.root, self.image_bytes, max(20, min(300, self.records // 20)))
        (self.folder / IMAGES).mkdir(parents=True)
        digests = {}
        lines = []
        for number in range(self.records):
            base, suffix = bases[number % len(bases)]
            name = f"{IMAGES}/{number:06d}{suffix}"
            digests[name] = _write(self.folder / name, marked(base, f"page {number:06d}"))
            lines.append(json.dumps(_record(number, name), ensure_ascii=False) + "\n")
        digests[RECORDS] = _write(self.folder / RECORDS, "".join(lines).encode())
        _write_sums(sums, digests)

    def packed(self, name: str) -> Path:
        """The dataset in one of ``PACKINGS``: a file, or a folder of files; made if need be."""
        path = self.root / name
        if not path.exists():
            unfinished = self.root / f"unfinished-{name}"
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            PACKINGS[name](self, unfinished)
            unfinished.rename(path)
        return path

    def expected(self, name: str) -> dict[str, str]:
        """SHA-256 of each file, by its path, that comes out of that packing."""
        own = _sums_file(self.root / name)
        return read_sums(own if own.exists() else _sums_file(self.folder))


def _bases(root: Path, sizes: tuple[int, ...], count: int) -> list[tuple[bytes, str]]:
    """So many different pages, as PNG and JPEG, with their names' endings."""
    found = []
    for seed, size in enumerate(sizes):
        made = root / f"pages-{seed}"
        make_dataset(made, records=count // len(sizes), seed=seed, image_bytes=size)
        found += [(path.read_bytes(), path.suffix) for path in sorted((made / IMAGES).iterdir())]
        shutil.rmtree(made)
    random.Random(1).shuffle(found)
    return found


def _record(number: int, image: str) -> dict[str, str]:
    rng = random.Random(number)
    title = " ".join(rng.choices(_WORDS, k=3))
    text = f"<html><h1>{title} №{number}</h1>"
    while len(text) < TEXT_BYTES:
        text += f'<p class="mt-4">{" ".join(rng.choices(_WORDS, k=12))}</p>'
    return {"id": f"{number:06d}", "image": image, "prompt": f"A page: {title}", "text": text}


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


# Packing -------------------------------------------------------------------------------------


def _tar(dataset: Dataset, out: Path) -> None:
    _shell(f"tar cf {out} --sort=name -C {dataset.folder} {IMAGES} {RECORDS}")


def _tar_gz(dataset: Dataset, out: Path) -> None:
    _shell(f"tar c --sort=name -C {dataset.folder} {IMAGES} {RECORDS} | {_gzip()} > {out}")


def _zip(dataset: Dataset, out: Path) -> None:
    # zip adds its ending to a name without one.
    _shell(f"cd {dataset.folder} && zip -qr {out}.zip {IMAGES} {RECORDS} && mv {out}.zip {out}")


def _zip_without_zip64(dataset: Dataset, out: Path) -> None:
    shutil.copyfile(dataset.packed("websight.zip"), out)
    without_zip64(out)


def without_zip64(path: Path) -> None:
    """Rewrite a zip's end as programs do that know no zip64, such as macOS Finder.

    The zip64 records go, and the end record counts entries modulo 65,536 (APPNOTE.TXT, 4.3.14 to
    4.3.16). The zip must be without a comment and below 4 GiB.
    """
    end, locator, record = 22, 20, 56  # bytes
    with path.open("r+b") as file:
        file.seek(-end, os.SEEK_END)
        at = file.tell()
        fields = list(struct.unpack("<4s4H2LH", file.read(end)))
        assert fields[0] == b"PK\x05\x06", "a comment, or no zip"
        file.seek(max(0, at - locator))
        if not file.read(locator).startswith(b"PK\x06\x07"):
            return  # few entries: there is no zip64 in it
        at -= locator + record
        file.seek(at)
        wide = struct.unpack("<4sQ2H2L4Q", file.read(record))
        entries, size, start = wide[7:]
        fields[3:7] = [entries % 65_536, entries % 65_536, size, start]
        file.seek(at)
        file.write(struct.pack("<4s4H2LH", *fields))
        file.truncate()


def _shards_of(ending: str) -> Callable[[Dataset, Path], None]:
    """Archives that hold a slice of the records each, with its images."""

    def pack(dataset: Dataset, out: Path) -> None:
        out.mkdir()
        lines = (dataset.folder / RECORDS).read_bytes().splitlines(keepends=True)
        for index in range(dataset.shards):
            mine = _slice(lines, index, dataset.shards)
            own = out / f"slice-{index}"
            own.mkdir()
            (own / RECORDS).write_bytes(b"".join(mine))
            (own / "list").write_text("".join(f"{json.loads(line)['image']}\n" for line in mine))
            tar = f"tar c -C {own} {RECORDS} -C {dataset.folder} -T {own}/list"
            packer = _gzip() if ending == ".tar.gz" else "cat"
            _shell(f"{tar} | {packer} > {out}/websight-{index:05d}{ending}")
            shutil.rmtree(own)

    return pack


def _huge(dataset: Dataset, out: Path) -> None:
    """A folder with a few huge files, as of embeddings or raw video; one of them has a hole."""
    out.mkdir()
    blocks = max(4, dataset.bytes // 3 // _BLOCK)
    noise = bytearray(random.Random(1).randbytes(_BLOCK))
    digests = {"README.md": _write(out / "README.md", b"# A few huge files\n")}
    for number in range(3):
        name = f"part-{number}.bin"
        digest = hashlib.sha256()
        with (out / name).open("wb") as file:
            for block in range(blocks):
                noise[:8] = struct.pack("<LL", number, block)
                file.write(noise)
                digest.update(noise)
            if number == 0:
                file.truncate((blocks + 200) * _BLOCK)
                digest.update(bytes(200 * _BLOCK))
        digests[name] = digest.hexdigest()
    _write_sums(_sums_file(out.with_name("huge")), digests)


def _parquet(dataset: Dataset, out: Path) -> None:
    """Files as the Hub's viewer makes them: the image as a struct of its bytes and its name."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = [(name, pa.string()) for name in ("id", "prompt", "text")]
    schema = pa.schema([("image", image), *texts])
    out.mkdir()
    lines = (dataset.folder / RECORDS).read_text(encoding="utf-8").splitlines()
    for index in range(PARQUET_FILES):
        mine = _slice(lines, index, PARQUET_FILES)
        path = out / f"train-{index:05d}-of-{PARQUET_FILES:05d}.parquet"
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, len(mine), _ROWS):
                rows = [json.loads(line) for line in mine[start : start + _ROWS]]
                for row in rows:
                    file = dataset.folder / row["image"]
                    row["image"] = {"bytes": file.read_bytes(), "path": file.name}
                writer.write_table(pa.Table.from_pylist(rows, schema))


PACKINGS: dict[str, Callable[[Dataset, Path], None]] = {
    "websight.tar": _tar,
    "websight.tar.gz": _tar_gz,
    "websight.zip": _zip,
    "finder.zip": _zip_without_zip64,
    "shards.tar": _shards_of(".tar"),
    "shards.tar.gz": _shards_of(".tar.gz"),
    "huge": _huge,
    "parquet": _parquet,
}
"""By the name of the file or folder that each one makes beside the dataset's own."""


def _gzip() -> str:
    return "pigz -6" if shutil.which("pigz") else "gzip -6"


def _slice(lines: list[Any], index: int, count: int) -> list[Any]:
    return lines[len(lines) * index // count : len(lines) * (index + 1) // count]


def _shell(command: str) -> None:
    subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], check=True)


# Comparing -----------------------------------------------------------------------------------


def tree_digests(folder: Path, *, leave: frozenset[str] = frozenset()) -> dict[str, str]:
    """SHA-256 of each file below a folder by its path, but for the names in ``leave``."""
    paths = [path for path in _files(folder) if path.partition("/")[0] not in leave]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda path: _digest(folder / path), paths, chunksize=64)
        return dict(zip(paths, found, strict=True))


def packed_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a packed dataset by its path, read by others' code from its shards.

    The image of a sample has the path that its record names.
    """
    packed = json.loads((folder / "RECEIPT.json").read_bytes())["packed"]
    found = {RECORDS: _digest(folder / RECORDS)}
    if packed["kind"] == "webdataset":
        for image, record in _tar_pairs(sorted(folder.glob("*-*.tar"))):
            found[json.loads(record)["image"]] = hashlib.sha256(image).hexdigest()
        shards = sorted((folder / "other").glob("*.tar"))
    elif packed["kind"] == "zip":
        for path in sorted(folder.glob("*.zip")):
            with zipfile.ZipFile(path) as file:
                found |= {
                    name: hashlib.sha256(file.read(name)).hexdigest() for name in file.namelist()
                }
        shards = []
    else:
        shards = [folder / packed["shards"][0]]
    for path in shards:
        command = ["sqfs2tar" if path.suffix == ".squashfs" else "cat", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
            for name, data in _members(reader.stdout):
                found[name] = hashlib.sha256(data).hexdigest()
    return found


def _tar_pairs(tars: Sequence[Path]) -> Iterator[tuple[bytes, bytes]]:
    """The image and the record of each sample."""
    for path in tars:
        with path.open("rb") as file:
            members = _members(file)
            for (name, image), (record_name, record) in zip(members, members, strict=True):
                assert record_name == f"{name.partition('.')[0]}.json", name
                yield image, record


def _members(stream: IO[bytes] | None) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK) as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # or it holds all of them
            file = archive.extractfile(member)
            if file is not None:
                yield member.name, file.read()


def _files(folder: Path) -> Iterator[str]:
    for at, _, names in os.walk(folder):
        for name in names:
            yield os.path.relpath(f"{at}/{name}", folder)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def difference(found: dict[str, str], expected: dict[str, str]) -> str:
    """In a line, how two trees differ; empty where they do not."""
    kinds = {
        "missing": [path for path in expected if path not in found],
        "not of the source": [path for path in found if path not in expected],
        "of other bytes": [
            path for path in expected if found.get(path, expected[path]) != expected[path]
        ],
    }
    return "; ".join(
        f"{len(paths):,} {kind}, such as {min(paths)}" for kind, paths in kinds.items() if paths
    )


def by_record(folder: Path, digests: dict[str, str]) -> dict[str, str]:
    """What the records of a dataset name, whatever its images are called.

    The digest of each record's image by the record without it, and of every other file by its
    path; so that two datasets are equal whose images have other names.
    """
    left = dict(digests)
    left.pop(RECORDS, None)
    found = {}
    for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        image = record.pop("image")
        found[json.dumps(record, sort_keys=True)] = digests.get(image, f"no image {image}")
        left.pop(image, None)
    return found | left


def read_sums(path: Path) -> dict[str, str]:
    """A file as ``sha256sum`` writes it: digest by path."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _write_sums(path: Path, digests: dict[str, str]) -> None:
    path.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


def _sums_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.sha256")
