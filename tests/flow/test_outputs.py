"""Packed outputs: what they publish is read by the programs they are for, and is the source."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from examples import samples
from examples.samples import tree_digest
from jobs.download.stage import run_download
from jobs.errors import UsageError
from jobs.runtime.progress import Progress
from tests.support.builders.complete_run import complete_run, finished, planned
from tests.support.builders.contents import flip
from tests.support.cli import Cli
from tests.support.servers.webserver import FaultyServer

PACKED = ("--output", "webdataset")


def packed(root: Path, source: Path, *words: str) -> Path:
    """Bring a local source in, packed; where it is published."""
    brought = complete_run(root, source, *PACKED, *words)
    assert not brought.problems, brought.text
    return Path(brought.plan.dest)


def lines_of(dataset: Path) -> list[dict[str, Any]]:
    text = (dataset / "prompts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


_READ = """\
import pickle, sys
{code}
found = [dict(sample) for sample in samples]
sys.stdout.buffer.write(pickle.dumps(found))
"""


def read_by_library(dest: Path, *, decoded: bool) -> list[dict[str, Any]]:
    """The samples that the code in the receipt reads."""
    code = code_of(dest)
    if not decoded:
        code = code.removesuffix('.decode("pil")')
    # In a process of its own, as the library leaves files to the garbage collector to close.
    script = _READ.format(code=code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    found: list[dict[str, Any]] = pickle.loads(done.stdout)
    return found


# wids takes base classes from PyTorch, and nothing else that is used here.
_READ_BY_NUMBER = """\
import pickle, sys
from importlib.util import find_spec
from types import ModuleType
from typing import Generic, TypeVar
if find_spec("torch") is None:
    for name in ("torch", "torch.distributed", "torch.utils", "torch.utils.data"):
        sys.modules[name] = ModuleType(name)
    sys.modules["torch"].distributed = sys.modules["torch.distributed"]
    class base(Generic[TypeVar("T")]): pass
    sys.modules["torch.utils.data"].Dataset = sys.modules["torch.utils.data"].Sampler = base
import wids
{code}
dataset.transformations.clear()
order = sorted(range(len(dataset)), key=lambda number: number * 7 % 11)
found = {{}}
for number in order:
    found[number] = {{
        name[1:]: data.getvalue()
        for name, data in dataset[number].items()
        if name.startswith(".")
    }}
sys.stdout.buffer.write(pickle.dumps([found[number] for number in range(len(found))]))
"""


def read_by_number(dest: Path) -> list[dict[str, bytes]]:
    """The files of each sample, read in another order by the line of the guide for wids."""
    guide = Path(__file__).parents[2] / "docs" / "OUTPUTS.md"
    (code,) = re.findall(
        r"^dataset = wids[^)]*\)$", guide.read_text(encoding="utf-8"), re.MULTILINE
    )
    folder = "/scratch/me/websight"
    code = code.replace(f"{folder}/websight", f"{dest}/{dest.name}").replace(folder, str(dest))
    script = _READ_BY_NUMBER.format(code=code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    found: list[dict[str, bytes]] = pickle.loads(done.stdout)
    return found


def read(dest: Path) -> list[dict[str, Any]]:
    """Each sample of the tars in the index: its files by their extensions."""
    assert not (dest / ".incoming").exists()
    found: dict[str, dict[str, Any]] = {}
    told = json.loads((dest / "RECEIPT.json").read_bytes())["packed"]
    for shard in json.loads((dest / told["index"]).read_bytes())["shardlist"]:
        with tarfile.open(dest / shard["url"]) as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                file = archive.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[extension] = file.read()
    assert len(found) == told["samples"]
    return list(found.values())


def check_is(dest: Path, dataset: Path) -> None:
    """Every record of the original, in its order, with its image's very bytes."""
    lines = (dataset / "prompts.jsonl").read_bytes().splitlines()
    found = read(dest)
    assert [sample["json"] for sample in found] == lines
    for sample, line in zip(found, lines, strict=True):
        image = dataset / json.loads(line)["image"]
        assert sample[image.suffix[1:]] == image.read_bytes()
    assert (dest / "prompts.jsonl").read_bytes() == (dataset / "prompts.jsonl").read_bytes()


def test_a_run_packs_is_read_by_the_code_it_tells_and_is_repaired_to_the_same_bytes(
    cli: Cli, dataset: Path, shards: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    words = ("--engine", "local", "--yes", *PACKED, "--shard-records", "25")
    cli.run("launch", *words, "--dest", dest, "--local-path", shards)
    said = cli.having(COLUMNS="50").run("status").out.splitlines()
    assert said[said.index("→ import webdataset") + 1] == (  # whole, to be copied
        f"→ samples = webdataset.WebDataset('{dest}/data-{{000000..000002}}.tar', "
        'shardshuffle=False).decode("pil")'
    )
    check_is(dest, dataset)
    check_trains(cli, dest, dataset)
    plain = read_by_library(dest, decoded=False)
    assert [sample["__key__"] for sample in plain] == [f"{number:09d}" for number in range(60)]
    own = [{name: data for name, data in sample.items() if name[0] != "_"} for sample in plain]
    assert own == read(dest) == read_by_number(dest)
    assert len(list(dest.iterdir())) == 7  # it leaves nothing behind, and copies no shard
    for sample in read_by_library(dest, decoded=True):
        picture = sample["png"] if "png" in sample else sample["jpg"]
        assert min(picture.size) > 0
        assert sample["json"]["image"]
    whole = tree_digest(dest)
    flip(dest / "data-000001.tar")
    (dest / "data.json").unlink()
    found = cli.run("verify", dest, "--deep", rc=5)
    assert "'data-000001.tar': has changed" in found.out
    assert "'data.json': missing" in found.out
    cli.run("resume", "--deep")
    assert tree_digest(dest) == whole
    report = cli.run("verify", dest, "--deep", "--json").json()
    assert (report["ok"], report["records"], report["files"]) == (True, 60, 5)
    assert len(json.loads((dest / "RECEIPT.json").read_bytes())["repairs"]) == 1


def test_in_the_loop_of_the_guide_a_worker_without_a_tar_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = Path(__file__).parents[2] / "docs" / "OUTPUTS.md"
    text = guide.read_text(encoding="utf-8")
    (code,) = re.findall(r"^dataset = webdataset\.WebDataset\([^)]*\)$", text, re.MULTILINE)
    samples.write_archive(tmp_path / "a.tar", [("0.png", b"p"), ("0.json", b"{}")], "tar")
    script = f"import webdataset; urls = ['{tmp_path}/a.tar']\n{code}\nprint(len(list(dataset)))"
    monkeypatch.setenv("NUM_WORKERS", "2")  # as in a worker of PyTorch's loader
    for worker, pages in (("0", "1\n"), ("1", "0\n")):
        monkeypatch.setenv("WORKER", worker)
        done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
        assert done.stdout.decode() == pages


# The pictures as they are stored, not decoded.
_READ_BY_LOADER = """\
import datasets, pickle, sys
{code}
rows = dataset.cast_column("png", datasets.Image(decode=False))
sys.stdout.buffer.write(pickle.dumps([(row["json"], row["png"]["bytes"]) for row in rows]))
"""


def test_the_loader_of_datasets_reads_pictures_with_one_ending(
    dataset: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(dataset, source)
    records = [record for record in lines_of(source) if record["image"].endswith(".png")]
    lines = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    (source / "prompts.jsonl").write_text(lines, encoding="utf-8")
    for path in (source / "images").glob("*.jpg"):
        path.unlink()
    dest = packed(tmp_path, source, "--shard-records", "7")
    guide = Path(__file__).parents[2] / "docs" / "OUTPUTS.md"
    text = guide.read_text(encoding="utf-8")
    (code,) = re.findall(r"^dataset = datasets[^)]*^\)$", text, re.MULTILINE)
    code = code.replace("/scratch/me/websight/websight", f"{dest}/{dest.name}")
    done = subprocess.run(
        [sys.executable, "-c", _READ_BY_LOADER.format(code=code)],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert len(records) > 7  # several tars
    assert pickle.loads(done.stdout) == [
        (record, (source / record["image"]).read_bytes()) for record in records
    ]


def test_no_tree_of_files_is_ever_made(dataset: Path, tmp_path: Path) -> None:
    archive = samples.pack_one(dataset, tmp_path, "tar.gz")
    words = ("--part-size", "100K", "--expect-records", "61")
    assert "61 were expected" in complete_run(tmp_path, archive, *PACKED, *words).text
    (staged,) = (tmp_path / "data" / ".incoming").glob("*/data")
    assert list(staged.iterdir()) == []
    assert len(list(staged.with_name("members").iterdir())) > 3


def code_of(dest: Path) -> str:
    """The code in the receipt that reads the dataset."""
    return "\n".join(json.loads((dest / "RECEIPT.json").read_bytes())["packed"]["read"])


def check_trains(cli: Cli, root: Path, dataset: Path) -> None:
    """The training loop of the examples reads every page."""
    size = sum(path.stat().st_size for path in (dataset / "images").iterdir())
    done = cli.program(str(Path(__file__).parents[2] / "examples" / "train.py")).run(root)
    assert done.out.splitlines()[-1] == f"epoch 2: 60 pages, {size} bytes of images"


def zipped(dest: Path) -> dict[str, bytes]:
    """What the code in the receipt reads of a dataset of zips."""
    assert not (dest / ".incoming").exists()
    found: dict[str, Any] = {}
    exec(code_of(dest), found)  # what a user would copy
    files: dict[str, zipfile.ZipFile] = found["files"]
    contents = {name: file.read(name) for name, file in files.items()}
    for file in set(files.values()):
        file.close()
    return contents


def check_is_zipped(dest: Path, dataset: Path) -> None:
    """Every image of the original, with its very bytes, and the records."""
    images = {
        path.relative_to(dataset).as_posix(): path.read_bytes()
        for path in (dataset / "images").iterdir()
    }
    assert zipped(dest) == images
    assert (dest / "prompts.jsonl").read_bytes() == (dataset / "prompts.jsonl").read_bytes()


def test_a_run_zips_is_read_by_the_code_it_tells_and_is_repaired_to_the_same_bytes(
    cli: Cli, dataset: Path, shards: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "data"
    words = ("--engine", "local", "--yes", "--output", "zip", "--shard-size", "300K")
    cli.run("launch", *words, "--dest", dest, "--local-path", shards)
    said = cli.having(COLUMNS="50").run("status").out
    assert "".join(f"→ {line}\n" for line in code_of(dest).splitlines()) in said
    check_is_zipped(dest, dataset)
    check_trains(cli, dest, dataset)
    zips = sorted(dest.glob("data-*.zip"))
    assert len(zips) > 2
    if shutil.which("unzip"):
        for path in zips:
            subprocess.run(["unzip", "-tqq", path], check=True)
    whole = tree_digest(dest)
    flip(zips[1])
    found = cli.run("verify", dest, "--deep", rc=5)
    assert "'data-000001.zip': has changed" in found.out
    cli.run("resume", "--deep")
    assert tree_digest(dest) == whole


@contextmanager
def mounted(commands: list[str], folder: Path) -> Iterator[None]:
    """The image that the receipt's first command mounts, in ``folder``."""
    folder.mkdir()
    words = shlex.split(commands[0])
    command = [*words[words.index("squashfuse") : -1], "-f", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as server:
        try:
            while not folder.is_mount():
                if server.poll() is not None:
                    assert server.stderr is not None
                    pytest.skip(f"squashfuse cannot mount here: {server.stderr.read()!r}")
                time.sleep(0.01)
            yield
        finally:
            server.terminate()


@pytest.mark.skipif(not shutil.which("squashfuse"), reason="squashfuse is not installed")
def test_a_run_makes_an_image_that_is_mounted_as_it_tells_and_repaired_to_the_same_bytes(
    cli: Cli, dataset: Path, shards: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "my data"
    words = ("--engine", "local", "--yes", "--output", "squashfs", "--squashfs-block", "64K")
    cli.run("launch", *words, "--dest", dest, "--local-path", shards)
    read = code_of(dest).splitlines()
    image = f"'{dest}/my-data.squashfs'"
    assert read[0] == f"mkdir -p /tmp/my-data && squashfuse {image} /tmp/my-data"
    assert read[1].startswith(f"apptainer exec -B '{dest}/my-data.squashfs':/data:image-src=/,ro ")
    said = cli.having(COLUMNS="50").run("status").out
    assert "✓ Packed 61 files into my-data.squashfs\n" in said
    assert "".join(f"→ {line}\n" for line in read) in said
    whole = tree_digest(dest)
    flip(dest / "my-data.squashfs")
    assert "has changed" in cli.run("verify", dest, "--deep", rc=5).out
    cli.run("resume", "--deep")
    assert tree_digest(dest) == whole
    with mounted(read, tmp_path / "mount"):
        assert tree_digest(tmp_path / "mount") == tree_digest(dataset)
        check_trains(cli, tmp_path / "mount", dataset)


@pytest.mark.parametrize(
    ("fmt", "output"),
    [
        ("tar", "webdataset"),
        ("tar.gz", "webdataset"),
        ("tar.zst", "webdataset"),
        ("zip", "webdataset"),
        ("tar.gz", "zip"),
        ("zip", "zip"),
    ],
)
def test_the_same_shards_come_of_any_order_of_parts_and_any_way_to_extract(
    dataset: Path, tmp_path: Path, web: FaultyServer, fmt: str, output: str
) -> None:
    archive = samples.pack_one(dataset, tmp_path, fmt, top="websight-v2")
    web.put(f"/{archive.name}", archive)
    url = ("--url", web.url(f"/{archive.name}"))
    limits = ("--output", output, "--shard-size", "200K")
    check = check_is if output == "webdataset" else check_is_zipped
    runs: list[tuple[Path | tuple[str, ...], tuple[str, ...], int]] = [
        (archive, ("--part-size", "100K"), 1),
        (archive, ("--part-size", "100K", "--no-overlap"), -1),
        (url, ("--part-size", "100K"), 1),
        (url, ("--part-size", "100M", "--no-overlap"), 1),
    ]
    found = []
    for number, (source, words, order) in enumerate(runs):
        folder, plan = planned(tmp_path / str(number), source, *limits, *words)
        run_download(folder, plan, [plan.shards[0].id], Progress(), refetch=frozenset())
        done = folder.finished_ids()
        parts = [part for part in plan.parts() if part.id not in done]
        brought = finished(folder, plan, parts[::order])
        assert not brought.problems
        check(Path(plan.dest), dataset)
        found.append(tree_digest(Path(plan.dest)))
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0]) > 4


def _tables(folder: Path, dataset: Path) -> Path:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    rows = [
        {"image": {"bytes": (dataset / line["image"]).read_bytes(), "path": None}, "n": number}
        for number, line in enumerate(lines_of(dataset))
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet", row_group_size=7)
    return folder


def _samples(folder: Path, dataset: Path) -> Path:
    members = []
    for number, line in enumerate(lines_of(dataset)):
        image = dataset / line["image"]
        members.append((f"{number:05d}{image.suffix}", image.read_bytes()))
        members.append((f"{number:05d}.json", json.dumps({"n": number}).encode()))
    folder.mkdir()
    samples.write_archive(folder / "pages-000.tar", members, "tar")
    return folder


@pytest.mark.parametrize("make", [_tables, _samples])
def test_rows_of_tables_and_samples_of_tars_become_samples_in_their_order(
    dataset: Path, tmp_path: Path, make: Any
) -> None:
    source = make(tmp_path / "source", dataset)
    found = read(packed(tmp_path, source, "--part-size", "200K"))
    assert [json.loads(sample["json"])["n"] for sample in found] == list(range(60))
    for sample, line in zip(found, lines_of(dataset), strict=True):
        image = dataset / line["image"]
        assert sample[image.suffix[1:]] == image.read_bytes()


def test_a_dataset_that_was_packed_is_a_source(dataset: Path, tmp_path: Path) -> None:
    """Its tars have all records: those beside them name images by paths that no tar has."""
    first = packed(tmp_path / "first", dataset)
    found = read(packed(tmp_path / "second", first))
    for sample, line in zip(found, lines_of(dataset), strict=True):
        image = dataset / line.pop("image")
        assert sample[image.suffix[1:]] == image.read_bytes()
        assert line.items() <= json.loads(sample["json"]).items()


def test_a_folder_that_is_a_dataset_is_packed(dataset: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(dataset, source)
    (source / "latest.png").symlink_to("images/000001.png")
    (source / "empty").mkdir()
    (source / "README.md").write_text("# Pages\n")
    dest = packed(tmp_path, source)
    check_is(dest, dataset)
    with tarfile.open(dest / "other" / "000000.tar") as archive:
        assert sorted(archive.getnames()) == ["README.md", "latest.png"]
        assert archive.getmember("latest.png").isfile()


def _linked(dataset: Path, path: Path) -> list[bytes]:
    """A tar whose odd images are hard links to the ones before; what each image is."""
    meant: list[bytes] = []
    before = ""
    with tarfile.open(path, "w") as archive:
        archive.add(dataset / "prompts.jsonl", "prompts.jsonl")
        for number, line in enumerate(lines_of(dataset)):
            info = tarfile.TarInfo(line["image"])
            if number % 2:
                info.type, info.linkname = tarfile.LNKTYPE, before
                meant.append(meant[-1])
                archive.addfile(info)
            else:
                before = line["image"]
                meant.append((dataset / before).read_bytes())
                info.size = len(meant[-1])
                archive.addfile(info, io.BytesIO(meant[-1]))
    return meant


@pytest.mark.parametrize("part_size", ["50K", "100M"])
def test_links_are_packed_as_what_they_mean(dataset: Path, tmp_path: Path, part_size: str) -> None:
    meant = _linked(dataset, tmp_path / "linked.tar")
    words = ("--part-size", part_size, "--no-overlap")
    found = read(packed(tmp_path, tmp_path / "linked.tar", *words))
    for sample, image in zip(found, meant, strict=True):
        assert image in sample.values()


def test_nested_archives_are_packed_as_what_they_hold(dataset: Path, tmp_path: Path) -> None:
    inner = samples.pack_shards(dataset, tmp_path / "inner", 3, "tar.gz")
    members = [(f"images/{path.name}", path.read_bytes()) for path in inner]
    samples.write_archive(tmp_path / "outer.tar", members, "tar")
    check_is(packed(tmp_path, tmp_path / "outer.tar", "--nested"), dataset)


def test_a_damaged_image_is_told_and_can_be_dropped_with_its_record(
    dataset: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(dataset, source)
    image = next((source / "images").iterdir())
    image.write_bytes(image.read_bytes()[:-20])
    said = complete_run(tmp_path / "one", source, *PACKED).text
    assert "1 image is damaged" in said
    assert "--on-bad-record drop to publish without these" in said
    assert "keep" not in said
    assert len(read(packed(tmp_path / "two", source, "--on-bad-record", "drop"))) == 59


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("--layout", "files"), "launch with --output files or zip, or with the --layout"),
        (("--skip-verify",), "launch without it, or with --output files"),
        (("--on-bad-record", "keep"), "launch with --on-bad-record drop"),
        (("--preserve-times",), "launch without --preserve-times"),
        (
            ("--output", "files", "--shard-size", "1G"),
            "--shard-size is for --output webdataset and zip",
        ),
        (
            ("--output", "zip", "--shard-records", "9"),
            "--shard-records is for --output webdataset;",
        ),
        (("--output", "squashfs", "--shard-size", "1G"), "--shard-size is for --output webdataset"),
    ],
)
def test_what_cannot_be_packed_is_refused_at_launch_with_the_option_that_works(
    dataset: Path, tmp_path: Path, words: tuple[str, ...], remedy: str
) -> None:
    with pytest.raises(UsageError, match=remedy):
        complete_run(tmp_path, dataset, *PACKED, *words)


def test_where_there_are_no_records_the_output_without_them_is_named(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.txt").write_text("no records here")
    said = complete_run(tmp_path, tmp_path / "source", *PACKED).text
    assert "launch with --layout files and --output files or zip" in said
