"""Tasks that pack before finalize: they write some of its shards, and change nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
from msgspec import structs

from jobs.errors import Cause
from jobs.finalize import pack
from jobs.finalize.pack import Share
from jobs.finalize.packed_shards import FinishedShards
from jobs.finalize.stage import run_pack
from jobs.model import OnBadRecord, Options, Output
from jobs.runtime.progress import Progress
from tests.support.builders.contents import Content, line, pages, png, tree
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder

TASKS = 3
PACKED = Options(output=Output.WEBDATASET, shard_records=2)
OUTPUTS = pytest.mark.parametrize(
    "options", [PACKED, Options(output=Output.ZIP, shard_size=600)], ids=["webdataset", "zip"]
)


def extracted(path: Path, options: Options) -> Run:
    """A run of ten records and a file that none of them names."""
    first, second = pages(0, 5), pages(5, 5)
    first.files["extra/1.txt"] = b"extra"
    return RunBuilder(first, second, options=options).extracted(path)


def packs(run: Run, *tasks: int) -> None:
    """Run these of the tasks that pack."""
    for task in tasks:
        run_pack(run.folder, run.plan, Share(task, TASKS), Progress(), name=f"pack-1-{task}")


def written_by(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that were written and not found."""
    place = FinishedShards.place
    with monkeypatch.context() as patch, TemporaryFile("a+") as written:

        def counted(finished: FinishedShards, shard: str, content: Path, lines: Path) -> None:
            written.write(f"{shard}\n")  # in a process of its own
            written.flush()
            place(finished, shard, content, lines)

        patch.setattr(FinishedShards, "place", counted)
        work()
        written.seek(0)
        return sorted(written.read().split())


def finish_counting(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Finalize; the shards that it wrote itself."""
    return written_by(run.finish, monkeypatch)


@pytest.mark.slow
@OUTPUTS
def test_together_they_write_all_shards_of_an_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Options
) -> None:
    alone = extracted(tmp_path / "alone", options)
    shards = finish_counting(alone, monkeypatch)
    assert len(shards) > TASKS
    run = extracted(tmp_path / "run", options)
    packs(run, *range(TASKS))
    assert tree(run.staging.data) == {}, "nothing is staged before finalize"
    assert finish_counting(run, monkeypatch) == []
    assert tree(run.staging.dest) == tree(alone.staging.dest)
    assert sorted(path.name for path in run.staging.dest.iterdir()) == sorted(
        path.name for path in alone.staging.dest.iterdir()
    )


@pytest.mark.slow
@OUTPUTS
def test_finalize_writes_what_a_task_left_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Options
) -> None:
    alone = extracted(tmp_path / "alone", options)
    shards = finish_counting(alone, monkeypatch)
    run = extracted(tmp_path / "run", options)
    packs(run, 0, 2)
    missing = [name for name in shards if int(Path(name).stem[-6:]) % TASKS == 1]
    assert finish_counting(run, monkeypatch) == missing
    assert tree(run.staging.dest) == tree(alone.staging.dest)


def test_a_task_that_is_too_late_changes_nothing_that_finalize_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = extracted(tmp_path, PACKED)
    packs(run, 0, 1, 2)
    write_index = pack._write_index
    written = list(run.staging.packed.rglob("*.tar"))
    assert written

    def late(*args: object) -> object:
        assert not any(path.exists() for path in written), "it can still be changed"
        for path in written:
            path.write_bytes(b"of a task that was lost with its node, and comes back")
        return write_index(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pack, "_write_index", late)
    run.finish()
    assert run.verify(deep=True).ok


def test_nor_the_lines_of_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = extracted(tmp_path / "alone", PACKED)
    alone.finish()
    run = extracted(tmp_path / "run", PACKED)
    packs(run, 0, 1, 2)
    lines = {path.name: path for path in run.staging.packed.rglob("*.lines")}
    find = FinishedShards.find

    def late(finished: FinishedShards, shard: str, *words: Any) -> object:
        found = find(finished, shard, *words)
        lines[f"{Path(shard).name}.lines"].write_bytes(b"")
        return found

    monkeypatch.setattr(FinishedShards, "find", late)
    run.finish()
    assert tree(run.staging.dest) == tree(alone.staging.dest)


@pytest.mark.slow
def test_what_a_finalize_had_that_was_cut_off_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = extracted(tmp_path, PACKED)
    packs(run, 0, 1)

    def interrupted(*_: object) -> None:
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(pack, "_write_index", interrupted)
        with pytest.raises(OSError, match="interrupted"):
            run.finish()
    assert written_by(lambda: packs(run, 0, 1, 2), monkeypatch) == []
    assert finish_counting(run, monkeypatch) == []
    assert run.verify(deep=True).ok


def test_temporary_files_of_a_task_that_was_cut_off_do_not_stay(tmp_path: Path) -> None:
    content = Content({"images/a.png": png(1)}, records=line("images/b.png"))
    run = RunBuilder(content, options=PACKED).extracted(tmp_path)
    packs(run, 0)  # finds nothing to pack
    left = run.staging.root / "packing" / "pack-1-1"
    left.mkdir()
    (left / "dest-000000.tar").write_bytes(b"half of it")
    _, problem = run.finalize()
    assert problem is not None
    assert not left.parent.exists()
    assert not list(run.staging.root.rglob("pack-*"))


def test_shards_with_other_options_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = structs.replace(PACKED, shard_records=5)
    alone = extracted(tmp_path / "alone", larger)
    alone.finish()
    run = extracted(tmp_path / "run", PACKED)
    packs(run, 0, 1, 2)
    run = replace(run, plan=structs.replace(run.plan, options=larger))
    assert len(finish_counting(run, monkeypatch)) == 3
    assert tree(run.staging.dest) == tree(alone.staging.dest)


def test_dropped_records_are_in_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = structs.replace(PACKED, on_bad_record=OnBadRecord.DROP)
    content = pages(0, 6)
    content.files["images/000002.png"] = b"no image"
    run = RunBuilder(content, options=options).extracted(tmp_path)
    packs(run, 0, 1, 2)
    assert finish_counting(run, monkeypatch) == []
    assert len((run.staging.dest / "prompts.jsonl").read_bytes().splitlines()) == 5


def test_what_is_wrong_is_left_for_finalize_to_report(tmp_path: Path) -> None:
    content = Content({"images/a.png": png(1)}, records=line("images/b.png"))
    run = RunBuilder(content, options=PACKED).extracted(tmp_path)
    packs(run, 0, 1, 2)
    assert not list(run.staging.packed.rglob("*.tar"))
    assert not run.folder.audit.exists()
    _, problem = run.finalize()
    assert problem is not None
    assert problem.cause is Cause.BAD_RECORD


def test_a_container_that_changed_on_disk_is_left_for_finalize_to_report(tmp_path: Path) -> None:
    run = extracted(tmp_path, PACKED)
    container = run.staging.container(run.parts[1])
    container.write_bytes(bytes(container.stat().st_size))
    packs(run, 0, 1, 2)
    assert run.folder.manifest(run.parts[1]).exists()
    _, problem = run.finalize()
    assert problem is not None
    assert not run.folder.manifest(run.parts[1]).exists()


def test_a_damaged_manifest_is_left_for_finalize_to_report(tmp_path: Path) -> None:
    run = extracted(tmp_path, PACKED)
    manifest = run.folder.manifest(run.parts[0])
    manifest.write_bytes(manifest.read_bytes()[:-20])
    packs(run, 0)
    assert manifest.exists()


def test_nothing_is_packed_before_everything_is_extracted_or_after_publication(
    tmp_path: Path,
) -> None:
    run = extracted(tmp_path, PACKED)
    manifest = run.folder.manifest(run.parts[0])
    content = manifest.read_bytes()
    manifest.unlink()
    packs(run, 0, 1, 2)
    assert not run.staging.packed.exists()
    manifest.write_bytes(content)
    run.finish()
    before = tree(run.staging.dest)
    packs(run, 0, 1, 2)
    assert tree(run.staging.dest) == before
    assert not run.staging.root.exists()
