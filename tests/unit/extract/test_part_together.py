"""Files that a tar's reader finds together become what each of them alone would become."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec import structs

from jobs.archives.base import Member
from jobs.archives.member_index import Streamed
from jobs.archives.tar import reader
from jobs.errors import OrchestrateError
from jobs.extract import part, part_writer
from jobs.extract.child_process import PartExtractor
from jobs.extract.messages import Stream
from jobs.extract.part_job import OpenArchive
from jobs.extract.part_writer import PartWriter
from jobs.extract.streaming import ShardStream
from jobs.model import ItemResult, Layout, OnCollision, Options, Verify
from jobs.runtime.progress import Progress
from jobs.storage import atomic
from tests.support.archives.rawtar import END, gnu_long, member, pax
from tests.support.builders.made_run import Run, extracted, fetched_of
from tests.support.builders.runs import RunBuilder

PARTS = 3
SEEDS = range(60)
LAYOUTS = (
    {"layout": Layout("files", records="", images="")},
    {"layout": Layout("websight")},
    {"layout": Layout("websight"), "strip_components": 0},
    {"layout": Layout("websight"), "strip_components": 1},
    {"layout": Layout("websight"), "on_collision": OnCollision.PER_SHARD},
    {"layout": Layout("websight"), "on_collision": OnCollision.KEEP_FIRST, "nested": True},
)
JUNK = (b"._a.png", b"Thumbs.db", b"__MACOSX/x", b".DS_Store", b"desktop.ini", b"a:Zone.Identifier")
ODD_NAMES = (
    b"./images/dot", b"images//two", b"images/with space.png", "images/bü.png".encode(),
    b"images/\xff.png", b"IMAGES/3.PNG", b"x" * 99, b"images/end.", b"-", b"a/.hidden",
)  # fmt: skip
HOSTILE_NAMES = (b"../up", b"/absolute", b"images/../../up", b"images/a\nb", b"", b".incoming/x")
CONTENTS = (b"", b"text\n", b"\x89PNG\r\n\x1a\n" + bytes(40), b"\x93NUMPY" + bytes(range(256)) * 8)


@dataclass(frozen=True)
class Outcome:
    """What one pass has left, and then tasks that each read a part."""

    streamed: Streamed | str  # or the error
    manifests: dict[str, bytes]
    files: dict[str, bytes]  # once all parts are extracted
    by_parts: list[ItemResult]
    manifests_by_parts: dict[str, bytes]


def odd_member(rng: random.Random, known: list[bytes], *, hostile: bool) -> bytes:
    """Anything but an ordinary file with a new name."""
    data = rng.choice(CONTENTS)
    odd: list[Callable[[], bytes]] = [
        lambda: member(rng.choice(JUNK), data),
        lambda: member(rng.choice(ODD_NAMES), data),
        lambda: member(rng.choice(known), data),
        lambda: member(rng.choice(known).upper(), data),
        lambda: member(b"prompts.jsonl", b'{"image": "images/0.png"}\n'),
        lambda: member(b"images/", kind=b"5", mode=0o755),
        lambda: member(b"images/link", kind=b"1", target=rng.choice(known)),
        lambda: pax({b"mtime": b"1700000000.5"}) + member(b"images/timed", data),
        lambda: pax({b"path": b"images/by-pax.png"}) + member(b"x", data),
        lambda: gnu_long(b"L", b"images/" + b"l" * 150) + member(b"x", data),
        lambda: member(b"images/large", bytes(rng.randrange(3000, 9000))),
    ]
    if hostile:
        odd += [
            lambda: member(rng.choice(HOSTILE_NAMES), data),
            lambda: member(b"images/fifo", kind=b"6"),
            lambda: member(b"images/unknown", data, kind=b"Z"),
            lambda: pax({b"mtime": b"7"}, kind=b"g"),
            lambda: member(known[0] + b"/below-a-file", data),
            lambda: member(b"images/sum", data, checksum=1),
        ]
    return rng.choice(odd)()


def some_tar(rng: random.Random) -> bytes:
    """Mostly ordinary files, with some that are not between them; perhaps damaged."""
    top, hostile = rng.choice((b"", b"", b"dataset/")), rng.random() < 0.4
    known = [b"images/0.png"]
    pieces = [member(top + known[0], CONTENTS[1])]
    for number in range(1, rng.randrange(20, 90)):
        if rng.random() < 0.1:
            pieces.append(odd_member(rng, known, hostile=hostile))
            continue
        folder = rng.choice((b"images", b"images", b"other/deep"))
        known.append(b"%s/%d.%s" % (folder, number, rng.choice((b"png", b"npy", b"json"))))
        pieces.append(
            member(top + known[-1], rng.choice(CONTENTS), mode=rng.choice((0o644, 0o755)))
        )
    data = bytearray(b"".join(pieces) + END)
    if hostile and rng.random() < 0.3:
        data[rng.randrange(len(data))] ^= 0xFF
    if hostile and rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def made(seed: int, folder: Path) -> Run:
    """A run with such a tar, or a tar.gz."""
    rng = random.Random(seed)
    data, options = some_tar(rng), Options(**rng.choice(LAYOUTS))
    options = structs.replace(
        options,
        max_members=rng.choice((10**6, 10**6, 10**6, 25)),
        max_expansion=rng.choice((200.0, 200.0, 200.0, 0.2)),
        verify=rng.choice((Verify.STRUCTURE, Verify.NONE)),
        digest=rng.choice(("crc32", "sha256")),
    )
    path = folder / rng.choice(("a.tar", "a.tar.gz"))
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    run = RunBuilder(path, parts=rng.choice((1, PARTS)), options=options).on_disk(folder)
    run.staging.make_folders()
    return run


def streamed(run: Run) -> Streamed | str:
    shard = run.plan.shards[0]
    order = Stream(shard.id, tuple(file.locator for file in shard.files), arriving=False)
    try:
        return ShardStream(run.folder, run.plan, order, None, Progress()).run()
    except OrchestrateError as error:
        return f"{type(error).__name__} {error.cause} {error.member} {error.message}"


def manifests(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.folder.manifests.iterdir()}


def outcome(run: Run) -> Outcome:
    found, first = streamed(run), manifests(run)
    if isinstance(found, str):
        return Outcome(found, first, {}, [], {})
    (shard,) = run.plan.shards
    fetched = fetched_of(shard, Path(shard.files[0].locator), format=found.format)
    atomic.write_json(run.folder.fetched(shard.id), found.applied(fetched))
    for path in run.folder.manifests.iterdir():
        path.unlink()
    results = extracted(PartExtractor(run.folder, run.plan, Progress()), *run.parts)
    files = run.tree() if all(result.problem is None for result in results) else {}
    return Outcome(found, first, files, results, manifests(run))


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small archive may have more data than its size allows, and few files are a batch."""
    monkeypatch.setattr(part, "FLOOR", 5_000)
    monkeypatch.setattr(part_writer, "_TOGETHER", 4)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("seed", SEEDS)
def test_files_of_a_block_are_extracted_as_if_each_was_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    (tmp_path / "together").mkdir()
    (tmp_path / "alone").mkdir()
    run = made(seed, tmp_path / "together")
    together = outcome(run)
    monkeypatch.setattr(reader, "scan_tar", lambda block, start: [])
    alone = outcome(made(seed, tmp_path / "alone"))
    assert together == alone


def test_most_of_these_files_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def put_all(
        writer: PartWriter, source: OpenArchive, paths: Sequence[bytes], members: Sequence[Member]
    ) -> None:
        counts.append(len(members))
        original(writer, source, paths, members)

    original = PartWriter.put_all
    monkeypatch.setattr(PartWriter, "put_all", put_all)
    for seed in range(20):
        (tmp_path / str(seed)).mkdir()
        streamed(made(seed, tmp_path / str(seed)))
    assert sum(counts) > 100, counts
