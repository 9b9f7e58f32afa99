"""Where each file takes milliseconds, threads work ahead: the results are those of a fast disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from examples.samples import tree_digest
from tests.support.builders.contents import page_tar
from tests.support.cli import Cli
from tests.support.faults.slow_files import slow_files

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
COUNT = 60  # pages of a shard: more than are timed before threads start


@pytest.fixture
def slow(cli: Cli, tmp_path: Path) -> Cli:
    return cli.having(**slow_files(tmp_path, 2000))


def archives(source: Path, *shards: range) -> Path:
    source.mkdir(exist_ok=True)
    for number, pages in enumerate(shards):
        (source / f"s-{number}.tar").write_bytes(page_tar(pages))
    return source


def launch(shell: Cli, source: Path, dest: Path, *words: str | Path) -> dict[str, str]:
    shell.run(
        *("launch", "--engine", "local", "--yes", "--local-path", source, "--dest", dest, *words)
    )
    assert not (dest / ".incoming").exists()
    return tree_digest(dest)


def test_a_folder_is_copied_as_it_is_and_each_damage_is_found(
    cli: Cli, slow: Cli, tmp_path: Path
) -> None:
    pages = tmp_path / "pages"
    expected = launch(cli, archives(tmp_path / "tars", range(5 * COUNT)), pages)
    copy = tmp_path / "copy"
    assert launch(slow, pages, copy) == expected
    slow.run("verify", copy, "--deep")
    images = sorted((copy / "images").iterdir())
    images[100].unlink()
    images[200].write_bytes(images[200].read_bytes()[:-1] + b"?")
    assert images[100].name in slow.run("verify", copy, rc=5).out
    deep = slow.run("verify", copy, "--deep", rc=5).out
    assert images[100].name in deep and images[200].name in deep
    slow.run("resume", copy, "--deep", "--wait")
    assert tree_digest(copy) == expected


def test_an_update_and_a_replaced_dataset_are_those_of_a_fast_disk(
    cli: Cli, slow: Cli, tmp_path: Path
) -> None:
    first = [range(n * COUNT, (n + 1) * COUNT) for n in range(4)]
    source, dest = archives(tmp_path / "tars", *first), tmp_path / "data"
    before = launch(slow, source, dest)
    archives(source, *first[:3], range(5 * COUNT, 6 * COUNT))
    expected = launch(cli, source, tmp_path / "fresh")
    assert expected != before
    slow.run("update", dest, "--engine", "local", "--yes")
    assert tree_digest(dest) == expected
    assert launch(slow, source, dest, "--overwrite") == expected
