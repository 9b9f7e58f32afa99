"""Which shards an update reuses, and how their files get into the new dataset."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from jobs.errors import Cause, StorageError
from jobs.extract import carried
from jobs.extract.stage import run_extract
from jobs.finalize import carrying
from jobs.finalize.join import Buckets
from jobs.finalize.published_places import find_replaced
from jobs.model import (
    Digest,
    Layout,
    Match,
    OnBadRecord,
    Options,
    Outcome,
    Plan,
    Shard,
    ShardKind,
    SourceFile,
    SourceKind,
    SourceRef,
)
from jobs.runtime.progress import Progress
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from tests.support.builders.contents import images, page_tar, png, tarred, zipped
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder

ONE, TWO = Digest("sha256", "1" * 64), Digest("sha256", "2" * 64)


# Which shards are the same ----------------------------------------------------------------------


def plan_of(*files: SourceFile, kind: ShardKind = ShardKind.ARCHIVE, parts: int = 1) -> Plan:
    shards = (Shard(f"{index:04d}", kind, (file,), parts=parts) for index, file in enumerate(files))
    return RunBuilder(*shards).plan


def a_file(**changes: Any) -> SourceFile:
    return structs.replace(SourceFile("a.tar", "/s/a.tar", 10, ONE, "then"), **changes)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        pytest.param({}, {}, True, id="all of it"),
        pytest.param({}, {"version": "now"}, True, id="the digest outweighs a time"),
        pytest.param({}, {"digest": TWO}, False, id="other bytes at the same time"),
        pytest.param({}, {"size": 11}, False, id="another size"),
        pytest.param({}, {"name": "b.tar"}, False, id="another name"),
        pytest.param({}, {"locator": "/mirror/a.tar"}, True, id="another place"),
        pytest.param({}, {"digest": None}, True, id="a digest that is no longer published"),
        pytest.param({}, {"digest": Digest("md5", "0" * 32)}, True, id="another kind of digest"),
        pytest.param(
            {"digest": None}, {"digest": None, "version": "now"}, False, id="another time"
        ),
        pytest.param(
            {"digest": None, "version": None},
            {"digest": None, "version": None},
            False,
            id="neither digest nor time",
        ),
    ],
)
def test_a_shard_is_unchanged_if_its_source_says_so(
    old: dict[str, Any], new: dict[str, Any], same: bool
) -> None:
    found = carrying.same_shards(plan_of(a_file(**old)), plan_of(a_file(**new)))
    assert bool(found) is same


def test_a_shard_in_other_parts_or_of_another_kind_is_another() -> None:
    one = plan_of(a_file())
    assert carrying.same_shards(one, plan_of(a_file(), parts=2)) == {}
    tree = plan_of(a_file(), kind=ShardKind.TREE)
    assert carrying.same_shards(tree, tree) == {}


def test_a_shard_is_found_again_under_another_id() -> None:
    found = carrying.same_shards(plan_of(a_file()), plan_of(a_file(name="0.tar"), a_file()))
    assert {new: old.id for new, old in found.items()} == {"0001": "0000"}


# Carrying -----------------------------------------------------------------------------------------


def tar(path: Path, numbers: range) -> Path:
    path.write_bytes(page_tar(numbers))
    return path


@pytest.fixture
def published(tmp_path: Path) -> Run:
    run = RunBuilder(
        tar(tmp_path / "a.tar", range(3)), tar(tmp_path / "b.tar", range(3, 6))
    ).fetched(tmp_path)
    results = run.extract()
    assert {result.outcome for result in results} == {Outcome.OK}
    assert run.finalize()[1] is None
    return run


def next_run(run: Run) -> Run:
    """The run of an update that reuses everything."""
    plan = structs.replace(
        run.plan,
        run_id="next",
        options=structs.replace(run.plan.options, overwrite=True),
        temp=f"{run.plan.dest}/.incoming/next/archives",
    )
    folder = RunFolder(run.folder.path.parent / "next")
    folder.create(plan)
    receipt = carrying.published_receipt(Path(plan.dest))
    same = {shard.id: shard for shard in run.plan.shards}
    carrying.plan_carry(run.folder, run.plan, receipt, same).write(folder)
    Staging(plan).make_folders()
    return Run(folder, plan)


def published_tree(run: Run) -> dict[str, bytes]:
    dest = run.staging.dest
    return {
        str(path.relative_to(dest)): path.read_bytes()
        for path in sorted(dest.rglob("*"))
        if path.is_file() and path.name != "RECEIPT.json" and ".incoming" not in path.parts
    }


def updated(
    base: Path, before: Mapping[str, bytes], after: Mapping[str, bytes], options: Options
) -> tuple[dict[str, bytes], set[str]]:
    """What an update of a dataset made of these archives publishes, and the archives it reuses.

    It is what a new launch of those ``after`` it publishes.
    """

    def run(archives: Mapping[str, bytes], **more: Any) -> Run:
        for name, data in archives.items():
            (base / name).write_bytes(data)
        paths = [base / name for name in sorted(archives)]
        return RunBuilder(*paths, **{"options": options, **more}).fetched(base)

    def published(run: Run) -> dict[str, bytes]:
        run.extract()
        assert run.finalize()[1] is None
        return published_tree(run)

    one = run(before)
    published(one)
    fresh = published(run(after, dest=base / "fresh", run_id="fresh"))
    again = structs.replace(options, overwrite=True)
    new = run(after, options=again, run_id="next", dest=one.plan.dest)
    known = {shard.name: shard for shard in one.plan.shards}
    names = {shard.id: shard.name for shard in new.plan.shards}
    same = {
        shard_id: known[name] for shard_id, name in names.items() if before.get(name) == after[name]
    }
    receipt = carrying.published_receipt(one.staging.dest)
    carry = carrying.plan_carry(one.folder, one.plan, receipt, same)
    carry.write(new.folder)
    assert published(new) == fresh
    return fresh, {names[shard_id] for shard_id in carry.evidence}


def lines(*rows: object) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


KEEP = Options(on_bad_record=OnBadRecord.KEEP)
ROWS = [{"image": f"images\\{n:04d}.png", "text": "é"} for n in range(6)]
LISTS = {
    "paths that are corrected": lines(*ROWS),
    "an array": json.dumps(ROWS, indent=1).encode(),
    "another encoding": lines(*ROWS).decode().encode("utf-16"),
}


@pytest.mark.parametrize("old", ["a.tar", "b.tar"])
@pytest.mark.parametrize("text", LISTS.values(), ids=list(LISTS))
def test_a_new_archive_with_a_copy_of_the_records_adds_none(
    tmp_path: Path, text: bytes, old: str
) -> None:
    archives = {
        name: tarred({**images(range(first, first + 3)), "prompts.jsonl": text})
        for name, first in (("a.tar", 0), ("b.tar", 3))
    }
    tree, reused = updated(tmp_path, {old: archives[old]}, archives, KEEP)
    assert reused == {old}
    assert len(tree["prompts.jsonl"].splitlines()) == 6


@pytest.mark.parametrize("policy", [OnBadRecord.ERROR, OnBadRecord.DROP])
@pytest.mark.parametrize("named", [(2, 3, 0), (1,)])
@pytest.mark.parametrize("folder", ["/home/me/images", "/home/me/pictures"])
def test_a_new_record_may_call_an_image_as_a_reused_one_did_before_it_was_corrected(
    tmp_path: Path, policy: OnBadRecord, folder: str, named: tuple[int, ...]
) -> None:
    def made(first: int, *named: int) -> bytes:
        rows = [{"image": f"{folder}/{n:04d}.png"} for n in named]
        return tarred({**images(range(first, first + 2)), "prompts.jsonl": lines(*rows)})

    old = {"a.tar": made(0, 0, 1), "b.tar": made(2, 2)}
    new = {**old, "b.tar": made(2, *named)}
    tree, reused = updated(tmp_path, old, new, Options(on_bad_record=policy))
    assert reused == {"a.tar"}
    assert len(tree["prompts.jsonl"].splitlines()) == 2 + len(named)


@pytest.mark.parametrize("array", [False, True])
def test_a_corrected_record_means_the_image_of_another_archive_that_has_its_path_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")  # it may be full
    rows = [{"image": f"images/{name}"} for name in ("0000.png", "0005.PNG")]
    text = json.dumps(rows, indent=1).encode() if array else lines(*rows)
    old = {
        "a.tar": tarred({**images([0]), "prompts.jsonl": text}),
        "b.tar": tarred({**images([5]), "README": b"about it"}),
        "c.tar": tarred(images([6])),
    }
    new = {**old, "b.tar": tarred({**images([5]), "images/0005.PNG": png(55)})}
    tree, reused = updated(tmp_path, old, new, KEEP)
    assert reused == {"c.tar"}
    assert b"images/0005.PNG" in tree["prompts.jsonl"]


@pytest.mark.parametrize("policy", [OnBadRecord.ERROR, OnBadRecord.DROP])
def test_corrected_records_without_images_of_their_own_are_read_again(
    tmp_path: Path, policy: OnBadRecord
) -> None:
    """They name images of other archives, which may have other paths now."""
    rows = [{"image": f"/home/me/{name}/{n}.png"} for n, name in enumerate(("x", "x", "y", "y"))]
    archives = {
        "list.tar": tarred({"prompts.jsonl": lines(*rows), "README": b"about it"}),
        "one.tar": tarred({f"images/a/{n}.png": png(n) for n in (0, 1)}),
        "two.tar": tarred({f"images/b/{n}.png": png(n) for n in (2, 3)}),
    }
    moved = tarred({f"images/c/{n}.png": png(n) for n in (2, 3)})
    after = {**archives, "two.tar": moved}
    options = Options(on_bad_record=policy, match=Match.ANY_FOLDER)
    tree, reused = updated(tmp_path, archives, after, options)
    assert reused == {"one.tar"}
    assert tree["prompts.jsonl"].count(b"images/c/") == 2


@pytest.mark.parametrize("links", [None, errno.EPERM, errno.EXDEV, errno.EMLINK])
def test_what_is_carried_over_is_what_was_published(
    published: Run, monkeypatch: pytest.MonkeyPatch, links: int | None
) -> None:
    before = published_tree(published)
    run = next_run(published)
    if links is not None:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(links, os.strerror(links))

        monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):  # a task may be requeued
        for part in run.parts:
            run.folder.manifest(part).unlink(missing_ok=True)
        assert {result.outcome for result in run.extract()} == {Outcome.OK}
    image = run.staging.data / "images/0000.png"
    assert image.stat().st_nlink == (2 if links is None else 1)
    assert run.finalize()[1] is None
    assert published_tree(run) == before
    assert (run.staging.dest / "images/0000.png").stat().st_nlink == 1


def test_nothing_is_linked_where_links_are_not_counted(
    published: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on sshfs: what is extracted to that path later would be written into the old dataset."""
    monkeypatch.setattr(carried, "_has_names", lambda place: False)
    run = next_run(published)
    assert {result.outcome for result in run.extract()} == {Outcome.OK}
    images = list(run.staging.data.rglob("*.png"))
    assert [image.stat().st_nlink for image in images] == 6 * [1]
    assert run.finalize()[1] is None


@pytest.mark.parametrize("how", ["other bytes", "a symbolic link", "missing"])
def test_a_part_with_a_damaged_file_fails_alone_and_can_be_tried_again(
    published: Run, how: str
) -> None:
    run = next_run(published)
    victim = run.staging.dest / "images/0004.png"
    if how == "other bytes":
        victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    else:
        moved = victim.rename(victim.with_name("moved.png"))
        if how == "a symbolic link":
            victim.symlink_to(moved)
    one, two = run.extract()
    assert (one.outcome, two.outcome) == (Outcome.OK, Outcome.RETRYABLE)
    assert two.problem is not None
    assert two.problem.cause is Cause.CHANGED
    assert "'images/0004.png'" in two.problem.message
    assert not run.folder.manifest(run.parts[1]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["00000.png", "00019.png"], ids=["first part", "last part"])
def test_records_of_several_parts_are_neither_lost_nor_doubled_where_one_part_is_damaged(
    tmp_path: Path, damaged: str
) -> None:
    samples: dict[str, bytes] = {}
    for n in range(20):
        samples |= {f"{n:05d}.png": png(n), f"{n:05d}.json": b'{"text": "%d"}' % n}
    (tmp_path / "a.zip").write_bytes(zipped(samples))
    options = Options(layout=Layout(name="webdataset"), part_size=8 << 10)
    source = SourceRef(SourceKind.LOCAL, str(tmp_path))
    built = RunBuilder(tmp_path / "a.zip", parts=4, options=options, source=source)
    first = built.on_disk(tmp_path)
    first.staging.make_folders()
    first.download()
    first.extract()
    assert first.finalize()[1] is None
    before = published_tree(first)
    run = next_run(first)
    victim = next(path for path in run.staging.dest.rglob("*.png") if path.name == damaged)
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + b"!")
    assert [result.outcome for result in run.extract()].count(Outcome.RETRYABLE) == 1
    run.download(refetch=run.shard_ids)
    results = run_extract(run.folder, run.plan, run.parts, Progress())  # the unfinished ones
    assert {result.outcome for result in results} == {Outcome.OK}
    assert run.finalize()[1] is None
    assert published_tree(run) == before


@pytest.mark.parametrize("left", [None, 20])
def test_a_part_whose_list_of_files_is_damaged_can_be_tried_again(
    published: Run, left: int | None
) -> None:
    run = next_run(published)
    path = run.folder.carried(run.parts[1])
    if left is None:
        path.unlink()
    else:
        os.truncate(path, left)
    one, two = run.extract()
    assert (one.outcome, two.outcome) == (Outcome.OK, Outcome.RETRYABLE)
    assert two.problem is not None
    assert two.problem.cause is Cause.CHANGED


def test_a_records_file_that_changes_after_the_start_fails_its_parts(published: Run) -> None:
    run = next_run(published)
    path = run.staging.dest / "prompts.jsonl"
    path.write_bytes(path.read_bytes().replace(b"prompt", b"PROMPT", 1))
    one, two = run.extract()
    assert (one.outcome, two.outcome) == (Outcome.RETRYABLE, Outcome.OK)
    receipt = carrying.published_receipt(run.staging.dest)
    same = {shard.id: shard for shard in published.plan.shards}
    assert not carrying.plan_carry(published.folder, published.plan, receipt, same).evidence


def test_shards_without_a_manifest_are_downloaded_again(published: Run) -> None:
    published.folder.manifest(published.parts[0]).unlink()
    receipt = carrying.published_receipt(published.staging.dest)
    same = {shard.id: shard for shard in published.plan.shards}
    found = carrying.plan_carry(published.folder, published.plan, receipt, same)
    assert found.evidence == {}  # nor is it known which records belong to the other shard


def test_a_full_folder_for_temporary_files_is_named(
    published: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(rows: Buckets) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Buckets, "flush", full)
    receipt = carrying.published_receipt(published.staging.dest)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/"):
        find_replaced(published.folder, published.plan, receipt)


def test_a_receipt_that_cannot_be_read_is_no_reason_to_replace_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as refused:
        carrying.published_receipt(tmp_path / ("x" * 300))  # an error, as from a dead mount
    assert "--overwrite" not in refused.value.message
