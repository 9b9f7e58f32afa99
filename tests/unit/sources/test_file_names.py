"""Files of a repository that are not data, found among many names."""

from __future__ import annotations

import pytest

from jobs.sources import file_names

EXTRAS = {
    "a/.gitattributes": file_names.GIT,
    ".git/config": file_names.GIT,
    ".cache/huggingface/download/a": file_names.NOTES,
    "RECEIPT.json": file_names.NOTES,
    "MANIFEST.jsonl": file_names.NOTES,
    "data/SHA256SUMS": "digests and signatures",
    "checksums_all.txt": "digests and signatures",
    "data/000001.npy.md5": "digests and signatures",
    "data/000001.npy.Sha512": "digests and signatures",
    "data/000001.npy.sha256sums": "digests and signatures",
    "data/000001.npy.asc": "digests and signatures",
    "data/000001.npy.b3": "digests and signatures",
    "a/.DS_Store": file_names.LEFTOVERS,
    "a/._b.png": file_names.LEFTOVERS,
    "__MACOSX/b.png": file_names.LEFTOVERS,
    "a/Thumbs.db": file_names.LEFTOVERS,
    "a/b.png:Zone.Identifier": file_names.LEFTOVERS,
    "a/Icon\r": file_names.LEFTOVERS,
}
DATA = ("data/a b.png", "summary.txt", "größe.png", "a.asc", "sub\nfolder/x.npy", ".gitkeep")


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("at", [0, 999, 1000, 2499])
def test_what_is_not_data_is_found_wherever_it_is_among_many_names(extra: str, at: int) -> None:
    names = [f"data/{number:06d}.npy" for number in range(2500)]
    names.insert(at, extra)
    assert file_names.extras(names) == {extra: EXTRAS[extra]}


def test_data_with_unusual_names_among_many_is_no_extra() -> None:
    names = [f"data/{number:06d}.npy" for number in range(2500)]
    assert file_names.extras([*DATA, *names]) == {}
    assert file_names.extras([*DATA, *EXTRAS, *names]) == EXTRAS
    assert file_names.extras([]) == {}
