"""A training loop over a published dataset, whatever its output.

    python train.py /scratch/me/websight            # --output files, webdataset or zip
    mkdir -p /tmp/websight && squashfuse /scratch/me/websight/websight.squashfs /tmp/websight
    python train.py /tmp/websight

With PyTorch its DataLoader reads ahead in other processes; without, pages are read one by one.
``webdataset`` needs the package webdataset, the others nothing.
"""

from __future__ import annotations

import json
import os
import random
import sys
import zipfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

BATCH = 32
WORKERS = min(4, len(os.sched_getaffinity(0)))  # processes that read ahead
Page = tuple[bytes, dict[str, Any]]  # an image, and its record


class Files:
    """Pages by their number, of ``--output files`` or of a mounted image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with (root / "prompts.jsonl").open(encoding="utf-8") as lines:
            self.records = [json.loads(line) for line in lines if line.strip()]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Page:
        record = self.records[number]
        return self.read(record["image"]), record

    def read(self, path: str) -> bytes:
        """The file with that path in the dataset."""
        return (self.root / path).read_bytes()


class Zips(Files):
    """Pages by their number, of ``--output zip``."""

    opened_by = 0  # a ZipFile is not shared between processes: each worker opens its own

    def read(self, path: str) -> bytes:
        """The file with that path in the dataset."""
        if self.opened_by != os.getpid():
            zips = map(zipfile.ZipFile, sorted(self.root.glob("*.zip")))
            self.files = {name: file for file in zips for name in file.namelist()}
            self.opened_by = os.getpid()
        return self.files[path].read(path)


def samples(root: Path, index: str) -> Iterable[Page]:
    """All pages in their order, of ``--output webdataset``."""
    import webdataset

    shards = json.loads((root / index).read_bytes())["shardlist"]
    urls = [str(root / shard["url"]) for shard in shards]
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    pages: Iterable[Page] = dataset.shuffle(1000).map(_page)
    return pages


def _page(sample: dict[str, bytes]) -> Page:
    (image, *_) = (name for name in sample if name[0] != "_" and name != "json")
    return sample[image], json.loads(sample["json"])


def open_dataset(root: Path) -> Files | Iterable[Page]:
    """The dataset in ``root``; its receipt has its output, a mounted image none."""
    receipt = root / "RECEIPT.json"
    packed = json.loads(receipt.read_bytes())["packed"] if receipt.exists() else None
    if packed is None:
        return Files(root)
    if packed["kind"] == "zip":
        return Zips(root)
    if packed["kind"] == "webdataset":
        return samples(root, packed["index"])
    sys.exit(f"mount {root / packed['shards'][0]} first: {packed['read'][0]}")


def batches(dataset: Files | Iterable[Page]) -> Iterator[list[Page]]:
    """The pages in batches, in random order where they have numbers."""
    numbered = isinstance(dataset, Files)
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        pages = iter(dataset)
        if isinstance(dataset, Files):
            order = random.sample(range(len(dataset)), len(dataset))
            pages = (dataset[number] for number in order)
        while batch := list(islice(pages, BATCH)):
            yield batch
    else:
        yield from DataLoader(
            dataset, batch_size=BATCH, shuffle=numbered, num_workers=WORKERS, collate_fn=list
        )


def main(root: Path, epochs: int = 2) -> None:
    """Read all pages, ``epochs`` times."""
    dataset = open_dataset(root)
    for epoch in range(1, epochs + 1):
        pages = size = 0
        for batch in batches(dataset):
            for image, record in batch:  # your training step goes here
                assert record["image"]
                pages += 1
                size += len(image)
        print(f"epoch {epoch}: {pages} pages, {size} bytes of images")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
