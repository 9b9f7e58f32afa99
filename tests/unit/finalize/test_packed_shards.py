"""A finalize that is cut off while it packs: the next one writes only the other shards."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.finalize import pack
from jobs.finalize.context import FinalizeContext
from jobs.finalize.packed_shards import (
    FinishedShards,
    WrittenShard,
    remove_with_other_options,
)
from jobs.model import Options, Output
from jobs.runtime.progress import Progress
from jobs.storage.manifest import PublishedFile
from tests.support.builders.contents import pages, png, tree
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder

PACKED = Options(output=Output.WEBDATASET, shard_records=2)
ZIPS = Options(output=Output.ZIP, shard_size=600)


def extracted(path: Path, options: Options, image: bytes = b"") -> Run:
    """A run of ten records; ``image``: the second one's, if it is another."""
    first, second = pages(0, 5), pages(5, 5)
    first.files["extra/1.txt"] = b"extra"
    first.files["images/000001.png"] = image or first.files["images/000001.png"]
    return RunBuilder(first, second, options=options).extracted(path)


def cut_off(run: Run, monkeypatch: pytest.MonkeyPatch, after: int = 3) -> dict[str, int]:
    """Finalize, which fails after so many shards; those that are finished, with their inodes."""
    write = pack._Packing._write
    written = 0

    def interrupted(packing: pack._Packing, shard: pack._Shard) -> WrittenShard:
        nonlocal written
        if written == after:
            raise OSError("interrupted")
        written += 1
        return write(packing, shard)

    with monkeypatch.context() as patch:
        patch.setattr(pack, "cores", lambda: 1)
        patch.setattr(pack._Packing, "_write", interrupted)
        with pytest.raises(OSError, match="interrupted"):
            run.finish()
    return inodes(run.staging.data)


def inodes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_ino
        for path in folder.rglob("*")
        if path.suffix in (".tar", ".zip")
    }


def undisturbed(path: Path, options: Options, image: bytes = b"") -> dict[str, bytes]:
    """What a run publishes that nothing interrupts; see ``extracted``."""
    run = extracted(path / "undisturbed", options, image)
    run.finish()
    return tree(run.staging.dest)


@pytest.mark.parametrize("options", [PACKED, ZIPS], ids=["webdataset", "zip"])
def test_finished_shards_stay_and_the_result_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Options
) -> None:
    expected = undisturbed(tmp_path, options)
    run = extracted(tmp_path / "run", options)
    before = cut_off(run, monkeypatch)
    assert len(before) == 3
    run.finish()
    after = inodes(run.staging.dest)
    assert before.items() <= after.items()
    assert len(after) > 3
    assert tree(run.staging.dest) == expected
    assert not run.staging.packed.exists()


def _shorter(run: Run, shard: Path) -> None:
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 512)


def _without_lines(run: Run, shard: Path) -> None:
    _note(run, shard, "lines").write_bytes(b"")


def _damaged_note(run: Run, shard: Path) -> None:
    _note(run, shard, "json").write_bytes(b"{")


def _note(run: Run, shard: Path, ending: str) -> Path:
    return next(run.staging.packed.glob(f"*/{shard.name}.{ending}"))


def _other_bytes(run: Run, shard: Path) -> None:
    shard.write_bytes(bytes(shard.stat().st_size))


def _gone(run: Run, shard: Path) -> None:
    shard.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("damage", [_shorter, _without_lines, _damaged_note, _other_bytes, _gone])
def test_a_shard_in_doubt_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    expected = undisturbed(tmp_path, PACKED)
    run = extracted(tmp_path / "run", PACKED)
    before = cut_off(run, monkeypatch)
    damage(run, run.staging.data / "dest-000001.tar")
    run.finish()
    after = inodes(run.staging.dest)
    assert before["dest-000000.tar"] == after["dest-000000.tar"]
    assert tree(run.staging.dest) == expected


def test_other_options_make_other_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    larger = msgspec.structs.replace(PACKED, shard_records=5)
    expected = undisturbed(tmp_path, larger)
    run = extracted(tmp_path / "run", PACKED)
    cut_off(run, monkeypatch, after=4)
    replace(run, plan=msgspec.structs.replace(run.plan, options=larger)).finish()
    assert tree(run.staging.dest) == expected


def test_shards_with_other_options_are_removed_and_those_with_the_same_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = msgspec.structs.replace(PACKED, shard_records=5)
    run = extracted(tmp_path, PACKED)
    before = cut_off(run, monkeypatch)
    of_tasks = next(run.staging.packed.iterdir()).with_suffix(".tasks")
    (of_tasks / "more").mkdir(parents=True)
    remove_with_other_options(run.staging, PACKED)
    assert inodes(run.staging.data) == before and len(before) == 3 and of_tasks.exists()
    remove_with_other_options(run.staging, larger)
    assert inodes(run.staging.data) == {} and list(run.staging.packed.iterdir()) == []


def test_an_image_is_no_finished_shard_because_it_is_written_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = extracted(tmp_path, Options(output=Output.SQUASHFS))

    def interrupted(*_: Any) -> None:
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(pack, "_write_index", interrupted)
        with pytest.raises(OSError, match="interrupted"):
            run.finish()
    image = run.staging.data / "dest.squashfs"
    assert image.exists()
    FinishedShards(FinalizeContext(run.folder, run.plan, Progress())).remove_unfinished()
    assert not image.exists()
    run.finish()


def test_no_empty_folder_of_other_shards_is_left(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2), options=PACKED).extracted(tmp_path)
    finished = FinishedShards(FinalizeContext(run.folder, run.plan, Progress()))
    for name in ("dest-000000.tar", "other/000000.tar"):
        (tmp_path / "tar").write_bytes(b"tar")
        (tmp_path / "lines").write_bytes(b"")
        finished.place(name, tmp_path / "tar", tmp_path / "lines")
        finished.note(WrittenShard(0, PublishedFile(name, 3, "00000000"), 0))
    finished.remove_others(["dest-000000.tar"])
    assert [path.name for path in run.staging.data.iterdir()] == ["dest-000000.tar"]


def test_a_shard_with_another_member_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed(tmp_path, PACKED, png(77))
    before = extracted(tmp_path / "before", PACKED)
    assert len(cut_off(before, monkeypatch)) == 3
    run = extracted(tmp_path / "run", PACKED, png(77))
    shutil.copytree(before.staging.data, run.staging.data, dirs_exist_ok=True)
    shutil.copytree(before.staging.packed, run.staging.packed)
    finished = inodes(run.staging.data)
    run.finish()
    kept = finished.items() & inodes(run.staging.dest).items()
    assert {name for name, _ in kept} == finished.keys() - {"dest-000000.tar"}
    assert tree(run.staging.dest) == expected
