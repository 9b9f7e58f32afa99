"""Data beyond every size at which the code changes its way, and every row of the benchmark.

The sizes are reached by files (many, large, with holes), never by other constants.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from isal import igzip

from benchmarks import websight
from benchmarks.websight import Bench, Outcome
from benchmarks.websight_data import (
    SMALLEST,
    Dataset,
    by_record,
    difference,
    tree_digests,
    without_zip64,
)
from examples import samples
from jobs.model import Output
from tests.support.cli import Cli
from tests.support.cluster.slurm import skip_unless_available
from tests.support.servers.webserver import FaultyServer

MIB = 1 << 20
NOISE = random.Random(1).randbytes(MIB)

pytestmark = pytest.mark.timeout(400)  # a shared machine may be slow at so much data


def launch(cli: Cli, dest: Path, *words: str | Path) -> None:
    cli.run("launch", "--engine", "local", "--yes", "--wait", "--dest", dest, *words, timeout=300)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def same(dest: Path, expected: Mapping[str, str]) -> None:
    """What is published is what was made, file by file."""
    assert difference(tree_digests(dest, leave=websight.OWN), dict(expected)) == ""


def page(number: int) -> bytes:
    return samples.marked(samples.PIXEL, f"page {number}")


def records(images: list[str]) -> bytes:
    lines = [{"image": image, "prompt": f"the page {image}"} for image in images]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


# Beyond the sizes ------------------------------------------------------------------------------


def test_a_folder_beyond_every_size_is_copied(cli: Cli, tmp_path: Path) -> None:
    """More than 100 MB in a part, than one part's 512 MiB, than 128 MiB to write out at once, than
    16,384 names; an image above the 64 MiB that are decoded; a record of several MiB; holes."""
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    (source / "labels").mkdir()
    made = {}

    def put(name: str, data: bytes) -> None:
        (source / name).write_bytes(data)
        made[name] = digest(data)

    images = [f"images/{number}.png" for number in range(3)]
    for number, name in enumerate(images):
        put(name, page(number))
    put("images/large.png", samples.with_chunk(samples.PIXEL, b"teSt", bytes(65 * MIB)))
    long = json.dumps({"image": "images/large.png", "prompt": "long " * MIB})
    put("prompts.jsonl", records(images) + long.encode() + b"\n")
    put("dense.bin", NOISE * 140)
    put("holes.bin", b"")
    os.truncate(source / "holes.bin", 600 * MIB)
    made["holes.bin"] = digest(bytes(600 * MIB))
    for number in range(17_000):
        put(f"labels/{number:05d}.txt", b"%d\n" % number)

    launch(cli, tmp_path / "data", "--local-path", source)
    same(tmp_path / "data", made)
    assert cli.status()["parts"]["total"] > 1
    assert (tmp_path / "data" / "holes.bin").stat().st_blocks < 600


def test_a_tar_gz_beyond_every_size_comes_over_http_in_parts(
    cli: Cli, tmp_path: Path, web: FaultyServer
) -> None:
    """More than 32 MiB for each connection, than 128 MiB of archive, than 100 MB out of few bytes,
    than 16,384 members and 20,000 links."""
    images = [f"images/{number}.png" for number in range(3)]
    mixed = b"".join(NOISE[:4096] + bytes(MIB // 2 - 4096) for _ in range(240))
    made = {name: page(number) for number, name in enumerate(images)}
    made |= {"prompts.jsonl": records(images), "dense.bin": NOISE * 140, "mixed.bin": mixed}
    links = [f"again/{number}.png" for number in range(20_001)]
    archive = tmp_path / "pages.tar.gz"
    with (
        igzip.open(archive, "wb", compresslevel=0) as packed,  # type: ignore[no-untyped-call]
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        for name, data in made.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, images[0]
            tar.addfile(info)
    assert archive.stat().st_size > 4 * 32 * MIB
    web.put("/pages.tar.gz", archive)

    words = ("--url", web.url("/pages.tar.gz"), "--part-size", "32M", "--connections", "4")
    launch(cli, tmp_path / "data", *words)
    expected = {name: digest(data) for name, data in made.items()}
    same(tmp_path / "data", expected | dict.fromkeys(links, expected[images[0]]))
    assert cli.status()["parts"]["total"] > 4


def test_a_finder_zip_of_more_entries_than_it_can_count_is_published_and_verified(
    cli: Cli, tmp_path: Path
) -> None:
    """65,536 entries and more without zip64, a third of them macOS's own leftovers; more than the
    150,000 rows that finalize holds at once; a manifest of more than 4 MiB."""
    images = [f"images/a-page-of-the-dataset-{number:06d}.png" for number in range(51_000)]
    made = {name: page(number) for number, name in enumerate(images)}
    made["prompts.jsonl"] = records(images)
    archive = tmp_path / "pages.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for number, (name, data) in enumerate(made.items()):
            packed.writestr(name, data)
            if number < 15_000:
                packed.writestr(f"__MACOSX/images/._{number}.png", b"\0\5\x16\7")
    without_zip64(archive)

    dest = tmp_path / "data"
    launch(cli, dest, "--local-path", archive, "--part-size", "8M")
    same(dest, {name: digest(data) for name, data in made.items()})
    assert (dest / "MANIFEST.jsonl").stat().st_size > 4 * MIB
    cli.run("verify", dest, timeout=300)


def test_an_inner_archive_of_much_content_is_extracted(cli: Cli, tmp_path: Path) -> None:
    """More than the 100 MB that an archive within an archive may hold whatever its size."""
    content = b"".join(NOISE[:4096] + bytes(MIB // 2 - 4096) for _ in range(240))
    inner = tmp_path / "inner.tar"
    samples.write_archive(inner, [("mixed.bin", content)], "tar")
    members = [
        ("inner.tar.gz", igzip.compress(inner.read_bytes())),
        ("images/0.png", page(0)),
        ("prompts.jsonl", records(["images/0.png"])),
    ]
    samples.write_archive(tmp_path / "outer.tar", members, "tar")
    dest = tmp_path / "data"
    launch(cli, dest, "--local-path", tmp_path / "outer.tar", "--nested")
    found = tree_digests(dest, leave=websight.OWN)
    assert digest(content) in found.values()
    assert found["images/0.png"] == digest(page(0))


def test_a_table_beyond_every_batch_is_read(cli: Cli, tmp_path: Path) -> None:
    """More than 1,024 rows, and than 4 MiB, in a row group."""
    images = [page(number) for number in range(1_100)]
    images[700] = samples.with_chunk(samples.PIXEL, b"teSt", bytes(5 * MIB))
    prompts = [f"prompt {number}" for number in range(len(images))]
    pq.write_table(pa.table({"image": images, "prompt": prompts}), tmp_path / "pages.parquet")
    dest = tmp_path / "data"
    launch(cli, dest, "--local-path", tmp_path / "pages.parquet")
    found = by_record(dest, tree_digests(dest, leave=websight.OWN))
    assert list(found.values()) == [digest(image) for image in images]
    assert [json.loads(record)["prompt"] for record in found] == prompts


# The benchmark ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("websight")
    dataset = Dataset(folder / "source", records=200, shards=2, image_bytes=(SMALLEST,))
    dataset.make()
    with ExitStack() as stack:
        yield Bench(folder / "runs", dataset, stack)


def all_right(outcomes: Mapping[str, list[Outcome]]) -> None:
    assert {label: found[0].wrong for label, found in outcomes.items() if found[0].wrong} == {}


@pytest.mark.parametrize("name", websight.ROWS)
def test_every_row_of_the_benchmark_is_right(bench: Bench, name: str) -> None:
    all_right(websight.measure(bench, name, ["local"], [Output.FILES], rounds=1))


@pytest.mark.parametrize(
    "name",
    [
        "shards.tar.gz",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("tar.gz", "parquet")),
    ],
)
def test_every_output_of_the_benchmark_is_right(bench: Bench, name: str) -> None:
    if shutil.which("sqfs2tar") is None:
        pytest.skip("sqfs2tar is not installed (squashfs-tools-ng)")
    all_right(websight.measure(bench, name, ["local"], list(Output), rounds=1))


@pytest.mark.exhaustive  # the rows are tested above, runs on a Slurm elsewhere
@pytest.mark.slurm
def test_the_benchmark_runs_on_a_slurm_of_four_nodes(bench: Bench) -> None:
    skip_unless_available(accounting=False)
    all_right(websight.measure(bench, "shards.tar.gz", ["slurm"], [Output.FILES], rounds=1))


def test_the_benchmark_reports_what_is_wrong_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--records", "60", "--only", "tar", "--engine", "local", "--dir", str(tmp_path)]
    assert websight.main(words) == 0
    sums = tmp_path / "source" / "folder.sha256"
    first, *others = sums.read_text().splitlines()
    sums.write_text("\n".join(["0" * 64 + first[64:], *others]))
    assert websight.main(words) == 1
    assert f"1 of other bytes, such as {first[66:]}" in capsys.readouterr().out
