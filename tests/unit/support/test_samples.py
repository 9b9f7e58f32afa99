"""The sample datasets are real, the same every time, and complete in every archive."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from examples import samples

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def _unpack(archive: Path, out: Path) -> None:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(out)
    else:
        with tarfile.open(archive) as opened:
            _extract_tar(opened, out)


def _extract_tar(opened: tarfile.TarFile, out: Path) -> None:
    # Older patch releases know no `filter=`, newer ones warn where none is set; this suits both.
    opened.extraction_filter = lambda member, path: member
    opened.extractall(out)


def test_the_same_seed_makes_the_same_dataset_and_another_seed_another(tmp_path: Path) -> None:
    trees = [
        samples.tree_digest(samples.make_dataset(tmp_path / name, records=5, seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert trees[0] == trees[1]
    assert trees[0] != trees[2]


def test_every_page_is_a_real_image_and_no_two_are_the_same(tmp_path: Path) -> None:
    dataset = samples.make_dataset(tmp_path, records=12)
    kinds = []
    for path in sorted((dataset / "images").iterdir()):
        with Image.open(path) as image:
            image.load()
            kinds.append(image.format)
    assert kinds == ["PNG", "PNG", "JPEG"] * 4
    tree = samples.tree_digest(dataset)
    assert len(set(tree.values())) == len(tree) == 13


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_an_image_is_about_as_big_as_asked(tmp_path: Path, kind: str) -> None:
    dataset = samples.make_dataset(tmp_path, records=3, image_bytes=60_000)
    for path in dataset.glob(f"images/*.{kind}"):
        assert 45_000 < path.stat().st_size < 75_000


@pytest.mark.parametrize("fmt", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_the_shards_in_order_are_the_original(tmp_path: Path, fmt: str) -> None:
    dataset = samples.make_dataset(tmp_path / "dataset", records=10)
    shards = samples.pack_shards(dataset, tmp_path / "shards", 3, fmt)
    merged = b""
    for shard in shards:
        _unpack(shard, tmp_path / "out")
        merged += (tmp_path / "out" / samples.RECORDS).read_bytes()
    (tmp_path / "out" / samples.RECORDS).write_bytes(merged)
    assert samples.tree_digest(tmp_path / "out") == samples.tree_digest(dataset)


@pytest.mark.parametrize("fmt", ["tar.gz", "zip"])
def test_one_archive_holds_all_below_its_top_folder(tmp_path: Path, fmt: str) -> None:
    dataset = samples.make_dataset(tmp_path / "dataset", records=4)
    _unpack(samples.pack_one(dataset, tmp_path, fmt, top="websight"), tmp_path / "out")
    assert samples.tree_digest(tmp_path / "out" / "websight") == samples.tree_digest(dataset)


def test_archives_are_the_same_every_time(tmp_path: Path) -> None:
    dataset = samples.make_dataset(tmp_path / "dataset", records=4)
    for fmt in ("tar.gz", "zip"):
        first = samples.pack_one(dataset, tmp_path / "1", fmt).read_bytes()
        assert samples.pack_one(dataset, tmp_path / "2", fmt).read_bytes() == first


def test_receipt_manifest_and_unpublished_files_are_no_data(tmp_path: Path) -> None:
    dataset = samples.make_dataset(tmp_path, records=1)
    before = samples.tree_digest(dataset)
    (dataset / "RECEIPT.json").write_text("{}")
    (dataset / "MANIFEST.jsonl.gz").write_bytes(b"")
    (dataset / ".incoming" / "run").mkdir(parents=True)
    (dataset / ".incoming" / "run" / "file").write_bytes(b"")
    assert samples.tree_digest(dataset) == before


def test_a_tar_zst_holds_the_dataset(tmp_path: Path) -> None:
    dataset = samples.make_dataset(tmp_path / "dataset", records=3)
    packed = samples.pack_one(dataset, tmp_path, "tar.zst")
    with zstd.open(packed) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        _extract_tar(archive, tmp_path / "out")
    assert samples.tree_digest(tmp_path / "out") == samples.tree_digest(dataset)
