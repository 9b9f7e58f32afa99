"""Packing: what is in each sample and each tar, and that nothing is left out or changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.errors import Cause
from jobs.finalize import pack
from jobs.finalize.packed_shards import WrittenShard
from jobs.finalize.stage import run_finalize
from jobs.model import Layout, OnBadRecord, OnCollision, Options, Output
from jobs.runtime import forks
from jobs.runtime.progress import Progress
from jobs.storage.manifest import PublishedFile, read_published
from tests.support.builders.contents import Content, line, pages, png, tree
from tests.support.builders.runs import RunBuilder

PACKED = Options(output=Output.WEBDATASET)


def options(**changes: Any) -> Options:
    return msgspec.structs.replace(PACKED, **changes)


def samples_of(dest: Path) -> list[dict[str, bytes]]:
    """Each sample of the tars of the index: its files by their extensions."""
    found: dict[str, dict[str, bytes]] = {}
    index = json.loads((dest / f"{dest.name}.json").read_bytes())
    for shard in index["shardlist"]:
        members = contents(dest / shard["url"])
        for name, data in members.items():
            key, _, extension = name.partition(".")
            found.setdefault(key, {})[extension] = data
        assert len({name.partition(".")[0] for name in members}) == shard["nsamples"]
    return list(found.values())


def contents(path: Path) -> dict[str, bytes]:
    """The members of a tar in their order."""
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def test_a_sample_is_the_image_and_its_record_in_the_order_of_the_records(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 3), pages(3, 2), options=PACKED).extracted(tmp_path)
    receipt = run.finish()
    dest = run.staging.dest
    lines = (dest / "prompts.jsonl").read_bytes().splitlines()
    assert samples_of(dest) == [
        {"png": png(number), "json": text} for number, text in enumerate(lines)
    ]
    assert sorted(tree(dest)) == [
        "MANIFEST.jsonl",
        "dest-000000.tar",
        "dest.json",
        "prompts.jsonl",
    ]
    assert receipt["packed"]["samples"] == 5
    assert receipt["manifest"] | {"size": 0, "sha256": ""} == {
        "name": "MANIFEST.jsonl", "size": 0, "sha256": "", "files": 3, "members": 10,
        "digest": "crc32",
    }  # fmt: skip
    assert run.verify().ok


@pytest.mark.parametrize("digest", ["crc32", "sha256"])
def test_the_manifest_tells_where_every_member_is(tmp_path: Path, digest: str) -> None:
    shard = pages(0, 3)
    shard.files["notes/a.txt"] = b"a note"
    run = RunBuilder(shard, options=options(digest=digest, shard_records=2)).extracted(tmp_path)
    run.finish()
    dest = run.staging.dest
    decode = msgspec.json.Decoder(PublishedFile).decode
    found = {}
    tar = None
    for row in map(decode, (dest / "MANIFEST.jsonl").read_bytes().splitlines()):
        if row.shard is None:
            tar = row.path
            data = (dest / row.path).read_bytes()
        else:
            assert row.shard == tar  # the members of a tar follow it
            assert row.offset is not None
            whole = (dest / row.shard).read_bytes()
            data = whole[row.offset : row.offset + row.size]
            found[row.path] = data
        assert len(data) == row.size
        if digest == "sha256":
            assert row.digest == sha256(data).hexdigest()
    assert {path: found[path] for path in ("images/000001.png", "notes/a.txt")} == {
        "images/000001.png": png(1),
        "notes/a.txt": b"a note",
    }


def test_the_manifest_has_the_name_of_a_member_whose_path_is_not_utf8(tmp_path: Path) -> None:
    shard = Content({b"images/\xff.png": png(1)}, line("images/\udcff.png"))
    run = RunBuilder(shard, options=PACKED).extracted(tmp_path)
    run.finish()
    lines = list(read_published(run.staging.dest / "MANIFEST.jsonl"))
    found = [(each.raw, each.member) for each in lines if each.part is not None]
    assert found == [(b"images/\xff.png".hex(), "000000000.png")]


@pytest.mark.parametrize(
    ("limits", "counts"),
    [
        ({"shard_records": 2}, [2, 2, 1]),
        ({"shard_records": 5}, [5]),
        ({"shard_size": 1}, [1, 1, 1, 1, 1]),
        ({"shard_size": 2 * 2048 + 1024}, [2, 2, 1]),
        ({"shard_size": 2 * 2048 + 1023}, [1, 1, 1, 1, 1]),
        ({"shard_size": 3 * 2048 + 1024, "shard_records": 2}, [2, 2, 1]),
    ],
)
def test_tars_hold_what_the_options_allow(
    tmp_path: Path, limits: dict[str, int], counts: list[int]
) -> None:
    run = RunBuilder(pages(0, 5), options=options(**limits)).extracted(tmp_path)
    run.finish()
    dest = run.staging.dest
    shards = json.loads((dest / "dest.json").read_bytes())["shardlist"]
    assert [shard["nsamples"] for shard in shards] == counts
    for shard in shards:
        assert shard["filesize"] == (dest / shard["url"]).stat().st_size
        if "shard_size" in limits and shard["nsamples"] > 1:
            assert shard["filesize"] <= limits["shard_size"]


def test_memory_bounds_the_files_of_a_shard_and_the_shards_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = pack._Packing._write
    begun = tmp_path / "begun"

    def write(packing: pack._Packing, shard: pack._Shard) -> WrittenShard:
        begun.touch(exist_ok=False)
        try:
            return written(packing, shard)
        finally:
            begun.unlink()

    monkeypatch.setattr(pack._Packing, "_write", write)
    monkeypatch.setattr(pack, "cores", lambda: 8)
    monkeypatch.setattr(pack, "MOST_UNITS", 2)
    monkeypatch.setattr(pack, "_MOST_MEMORY", 1)
    monkeypatch.setattr(pack, "_BATCH", 1)
    run = RunBuilder(pages(0, 5), options=PACKED).extracted(tmp_path)
    run.finish()
    shards = json.loads((run.staging.dest / "dest.json").read_bytes())["shardlist"]
    assert [shard["nsamples"] for shard in shards] == [2, 2, 1]


def test_a_process_that_is_killed_costs_only_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(pages(0, 5), options=options(shard_records=2)).extracted(tmp_path / "run")
    written = pack._Packing._write

    def write(packing: pack._Packing, shard: pack._Shard) -> WrittenShard:
        if shard.name.endswith("1.tar"):
            os.kill(os.getpid(), signal.SIGKILL)
        return written(packing, shard)

    with monkeypatch.context() as killing:
        killing.setattr(pack._Packing, "_write", write)
        killing.setattr(pack, "_BATCH", 1)
        with pytest.raises(forks.LostError):
            run_finalize(run.folder, run.plan, Progress())
    first = run.staging.data / "dest-000000.tar"
    number = first.stat().st_ino
    run.finish()
    assert (run.staging.dest / first.name).stat().st_ino == number
    alone = RunBuilder(pages(0, 5), options=options(shard_records=2)).extracted(tmp_path / "alone")
    alone.finish()
    (tars, others) = (
        {name: data for name, data in tree(each.staging.dest).items() if name.endswith(".tar")}
        for each in (run, alone)
    )
    assert tars == others


def test_processes_write_several_shards_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = pack._Packing._write
    begun = tmp_path / "begun"
    begun.mkdir()

    def write(packing: pack._Packing, shard: pack._Shard) -> WrittenShard:
        (begun / shard.name).touch()
        while len(list(begun.iterdir())) < 3:
            time.sleep(0.01)
        return written(packing, shard)

    monkeypatch.setattr(pack._Packing, "_write", write)
    monkeypatch.setattr(pack, "cores", lambda: 3)
    monkeypatch.setattr(pack, "_BATCH", 1)
    run = RunBuilder(pages(0, 5), options=options(shard_records=2)).extracted(tmp_path)
    run.finish()
    assert run.verify().ok


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_tars_are_the_same_whatever_the_number_of_parts(tmp_path: Path, parts: int) -> None:
    shards = [pages(0, 6), pages(6, 4)]
    for shard in shards:
        shard.files[f"extra/{len(shard.files)}.txt"] = b"extra"
    RunBuilder(*shards, options=options(shard_records=3)).extracted(tmp_path / "one").finish()
    for shard in shards:
        shard.parts = parts
    RunBuilder(*shards, options=options(shard_records=3)).extracted(tmp_path / "many").finish()
    one, many = (
        {name: data for name, data in tree(tmp_path / which / "dest").items() if "MANI" not in name}
        for which in ("one", "many")
    )
    assert one == many


def test_files_of_a_record_have_extensions_that_readers_tell_apart(tmp_path: Path) -> None:
    files: dict[bytes | str, bytes] = {
        "images/a.v1.PNG": png(1),
        "images/b.png": png(2),
        "images/c": png(3),
        "images/d.jpeg": png(4),
        "images/e f.p-n_g": png(5),
    }
    record = json.dumps({"images": list(map(str, files))}).encode() + b"\n"
    run = RunBuilder(Content(files, record), options=PACKED).extracted(tmp_path)
    _, problem = run.finalize()
    assert problem is None, problem
    (sample,) = samples_of(run.staging.dest)
    assert sample == {
        "png": png(1), "1.png": png(2), "2.png": png(3), "jpeg": png(4), "p-n_g": png(5),
        "json": record.strip(),
    }  # fmt: skip


def test_an_image_of_two_records_is_in_both_samples(tmp_path: Path) -> None:
    records = line("images/a.png", n=1) + line("images/a.png", n=2)
    run = RunBuilder(Content({"images/a.png": png(1)}, records), options=PACKED).extracted(tmp_path)
    run.finish()
    assert [sample["png"] for sample in samples_of(run.staging.dest)] == [png(1), png(1)]
    assert run.verify().ok


def test_files_that_no_record_names_are_in_tars_of_their_own_under_their_paths(
    tmp_path: Path,
) -> None:
    shard = pages(0, 2)
    more: Mapping[bytes | str, bytes] = {
        "README.md": b"# Pages", "images/orphan.png": png(9), "notes/" + "n" * 120: b"long",
        b"notes/\xff.txt": b"not UTF-8",
    }  # fmt: skip
    shard.files.update(more)
    run = RunBuilder(shard, options=options(shard_size=4096)).extracted(tmp_path)
    receipt = run.finish()
    dest = run.staging.dest
    found: dict[bytes, bytes] = {}
    for name in receipt["packed"]["others"]:
        with tarfile.open(dest / name, errors="surrogateescape") as archive:
            for member in archive:
                data = archive.extractfile(member)
                assert data is not None
                found[member.name.encode("utf-8", "surrogateescape")] = data.read()
    assert found == {
        (path if isinstance(path, bytes) else path.encode()): data for path, data in more.items()
    }
    assert "! 4 files that no record names are in 2 tars" in receipt["lines"]
    assert run.verify().ok


def test_dropped_records_have_no_sample_and_keys_stay_the_numbers_of_the_published_ones(
    tmp_path: Path,
) -> None:
    shard = pages(0, 3)
    del shard.files["images/000001.png"]
    run = RunBuilder(shard, options=options(on_bad_record=OnBadRecord.DROP)).extracted(tmp_path)
    run.finish()
    members = contents(run.staging.dest / "dest-000000.tar")
    assert list(members) == ["000000000.png", "000000000.json", "000000001.png", "000000001.json"]
    assert members["000000001.png"] == png(2)


@pytest.mark.parametrize("how", [OnCollision.ERROR, OnCollision.KEEP_FIRST, OnCollision.PER_SHARD])
def test_different_files_of_one_path_are_judged_as_with_files(
    tmp_path: Path, how: OnCollision
) -> None:
    first, second = pages(0, 2), pages(1, 2)
    second.files["images/000001.png"] = png(77)
    run = RunBuilder(first, second, options=options(on_collision=how)).extracted(tmp_path)
    _, problem = run.finalize()
    if how is OnCollision.ERROR:
        assert problem is not None
        assert problem.cause is Cause.COLLISION
        return
    assert problem is None
    images = [sample["png"] for sample in samples_of(run.staging.dest)]
    other = png(77) if how is OnCollision.PER_SHARD else png(1)
    assert images == [png(0), png(1), other, png(2)]


def test_within_an_archive_the_last_file_of_a_path_counts(tmp_path: Path) -> None:
    shard = pages(0, 2)
    shard.parts = 2
    shard.records = line("images/000000.png")
    run = RunBuilder(shard, options=PACKED).extracted(tmp_path)
    # The second part wrote the first one's path as well.
    part = run.plan.parts()[1]
    again = Content({"x": b"", "images/000000.png": png(50)}, None, parts=2)
    run = replace(run, contents=(again,))
    run.folder.manifest(part).unlink()
    run.write(part)
    run.finish()
    (sample,) = samples_of(run.staging.dest)
    assert sample["png"] == png(50)


def test_records_among_the_data_are_taken_out_of_the_containers(tmp_path: Path) -> None:
    files: dict[bytes | str, bytes] = {
        "train/metadata.jsonl": b'{"file_name": "a.png"}\n',
        "train/a.png": png(1),
        "test/metadata.jsonl": b'{"file_name": "a.png"}\n',
        "test/a.png": png(2),
    }
    run = RunBuilder(Content(files), options=PACKED).extracted(tmp_path)
    run.finish()
    dest = run.staging.dest
    assert [(s["png"], json.loads(s["json"])["file_name"]) for s in samples_of(dest)] == [
        (png(1), "train/a.png"), (png(2), "test/a.png"),
    ]  # fmt: skip
    assert sorted(tree(dest)) == [
        "MANIFEST.jsonl", "dest-000000.tar", "dest.json", "metadata.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["records.csv", "chat.json"])
def test_records_of_every_form_become_json_in_their_samples(tmp_path: Path, name: str) -> None:
    text = "image,text\nimages/a.png,hello\n" if name.endswith("csv") else '[{"image": "a.png"}]'
    files: dict[bytes | str, bytes] = {"images/a.png": png(1), name: text.encode()}
    layout = Layout(name="websight", records=name)
    run = RunBuilder(Content(files), options=options(layout=layout)).extracted(tmp_path)
    run.finish()
    (sample,) = samples_of(run.staging.dest)
    assert json.loads(sample["json"])["image"].endswith("a.png")
    assert (run.staging.dest / name).read_text() == text


@pytest.mark.parametrize(
    ("dest", "index"),
    [("my data {v1}", "my-data-v1-.json"), ("..", ""), ("prompts.v2", "prompts.v2.json")],
)
def test_names_are_fit_for_brace_patterns(tmp_path: Path, dest: str, index: str) -> None:
    if not index:
        dest, index = "{}", "dataset.json"
    run = RunBuilder(pages(0, 1), options=PACKED, dest=tmp_path / dest).extracted(tmp_path)
    run.finish()
    assert (run.staging.dest / index).is_file()


def test_the_records_file_and_the_index_never_share_a_name(tmp_path: Path) -> None:
    files: dict[bytes | str, bytes] = {"images/a.png": png(1), "dest.json": b'[{"image": "a.png"}]'}
    layout = Layout(name="websight", records="dest.json")
    run = RunBuilder(Content(files), options=options(layout=layout)).extracted(tmp_path)
    receipt = run.finish()
    assert receipt["packed"]["index"] == "dest_.json"
    assert (run.staging.dest / "dest.json").read_bytes() == files["dest.json"]


# Damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_container_that_is_not_what_was_written_is_extracted_again(
    tmp_path: Path, how: str
) -> None:
    run = RunBuilder(pages(0, 2), pages(2, 2), options=PACKED).extracted(tmp_path)
    container = run.staging.container(run.plan.parts()[1])
    data = container.read_bytes()
    if how == "gone":
        container.unlink()
    else:
        container.write_bytes(data[:-1] + b"?" if how == "changed" else data[:-1])
    _, problem = run.finalize()
    assert problem is not None
    assert problem.cause is Cause.NOT_FETCHED
    assert not (run.staging.dest / "RECEIPT.json").exists()
    assert run.redo() == [run.plan.parts()[1].id]
    run.finish()
    assert len(samples_of(run.staging.dest)) == 4


def test_tars_of_an_earlier_finalize_are_not_published(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 2), options=PACKED).extracted(tmp_path)
    (run.staging.data / "dest-000007.tar").write_bytes(b"half")
    (run.staging.data / "other").mkdir()
    (run.staging.data / "other" / "000000.tar").write_bytes(b"half")
    run.finish()
    assert "dest-000007.tar" not in tree(run.staging.dest)
    assert "other/000000.tar" not in tree(run.staging.dest)


@pytest.mark.parametrize("deep", [False, True])
def test_verify_finds_a_tar_that_is_gone_or_cut(tmp_path: Path, deep: bool) -> None:
    run = RunBuilder(pages(0, 4), options=options(shard_records=2)).extracted(tmp_path)
    run.finish()
    dest = run.staging.dest
    (dest / "dest-000001.tar").unlink()
    report = run.verify(deep=deep)
    assert not report.ok
    assert [damage.path for damage in report.damaged] == ["dest-000001.tar"]
    assert report.files == 4


def test_a_deep_look_names_the_members_that_have_changed(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 4), options=PACKED).extracted(tmp_path)
    run.finish()
    tar = run.staging.dest / "dest-000000.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(png(2)) + 20] ^= 1
    tar.write_bytes(data)
    assert run.verify(deep=False).ok
    report = run.verify()
    assert not report.ok
    assert "✗   its members 'images/000002.png'" in report.lines


def test_overwrite_removes_the_tars_of_an_old_dataset_and_nothing_of_the_users(
    tmp_path: Path,
) -> None:
    RunBuilder(pages(0, 4), options=options(shard_records=1), run_id="2025-old").extracted(
        tmp_path
    ).finish()
    dest = tmp_path / "dest"
    (dest / "images").mkdir()
    (dest / "images" / "000001.png").write_bytes(b"mine")  # a path that the old manifest has
    RunBuilder(pages(10, 2), options=options(overwrite=True)).extracted(tmp_path).finish()
    assert sorted(tree(dest)) == [
        "MANIFEST.jsonl", "dest-000000.tar", "dest.json", "images/000001.png", "prompts.jsonl",
    ]  # fmt: skip
    assert (dest / "images" / "000001.png").read_bytes() == b"mine"


@pytest.mark.parametrize("before", [Output.FILES, Output.WEBDATASET, Output.ZIP])
def test_one_output_replaces_the_other(tmp_path: Path, before: Output) -> None:
    after = Output.WEBDATASET if before is Output.FILES else Output.FILES
    RunBuilder(pages(0, 4), options=Options(output=before), run_id="2025-old").extracted(
        tmp_path
    ).finish()
    RunBuilder(pages(0, 4), options=Options(output=after, overwrite=True)).extracted(
        tmp_path
    ).finish()
    RunBuilder(pages(0, 4), options=Options(output=after)).extracted(tmp_path / "fresh").finish()
    assert tree(tmp_path / "dest") == tree(tmp_path / "fresh" / "dest")


def test_a_repair_makes_the_same_tars_again(tmp_path: Path) -> None:
    from jobs.finalize.repair import reset_damaged

    run = RunBuilder(pages(0, 3), pages(3, 3), options=options(shard_records=2)).extracted(tmp_path)
    run.finish()
    dest = run.staging.dest
    whole = tree(dest)
    (dest / "dest-000001.tar").write_bytes(b"damaged")
    (dest / "prompts.jsonl").unlink()
    work = reset_damaged(run.folder, run.plan, run.verify())
    assert list(work.parts) == [part.id for part in run.plan.parts()]
    shutil.rmtree(run.staging.archives, ignore_errors=True)
    run.redo()
    run.finish()
    assert tree(dest) == whole
    assert run.verify().ok


def test_a_lost_receipt_is_made_again_without_the_parts(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 3), options=PACKED).extracted(tmp_path)
    run.finish()
    whole = tree(run.staging.dest)
    run.staging.receipt.unlink()
    run.finish()
    assert tree(run.staging.dest) == whole
