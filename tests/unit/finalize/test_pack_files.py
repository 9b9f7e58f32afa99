"""Packing of files under their paths: everything is in the shards, with or without records."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.errors import Cause, Stopped, VerificationError
from jobs.finalize.repair import reset_damaged
from jobs.finalize.stage import run_finalize
from jobs.model import Layout, OnBadRecord, Options, Output, Verify
from jobs.outputs import squashfs
from jobs.runtime.progress import Progress
from jobs.storage.blocks import blocks
from jobs.storage.manifest import PublishedFile
from tests.support.builders.contents import Content, line, pages, png, tree
from tests.support.builders.runs import RunBuilder

ZIPPED = Options(output=Output.ZIP)


def options(**changes: Any) -> Options:
    return msgspec.structs.replace(ZIPPED, **changes)


def contents(dest: Path) -> dict[bytes, bytes]:
    """The files in all zips, by their paths."""
    found: dict[bytes, bytes] = {}
    for path in sorted(dest.glob("*.zip")):
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                name = info.filename.encode("utf-8" if info.flag_bits & 1 << 11 else "cp437")
                assert name not in found
                found[name] = file.read(info)
    return found


@pytest.mark.parametrize("digest", ["crc32", "sha256"])
def test_all_files_are_under_their_paths_and_the_manifest_tells_where(
    tmp_path: Path, digest: str
) -> None:
    shard = pages(0, 4)
    shard.files |= {"README.md": b"# Pages", b"notes/\xff.txt": b"not UTF-8", "\u00e4.txt": b"x"}
    run = RunBuilder(shard, pages(4, 2), options=options(digest=digest, shard_size=600)).extracted(
        tmp_path
    )
    receipt = run.finish()
    dest = run.staging.dest
    wanted = {**shard.files, **pages(4, 2).files}
    assert contents(dest) == {
        path if isinstance(path, bytes) else path.encode(): data for path, data in wanted.items()
    }
    assert receipt["packed"] | {"read": None} == {
        "kind": "zip", "index": None, "shards": ["dest-000000.zip", "dest-000003.zip"],
        "count": 4, "samples": None, "others": [], "files_in_others": 0, "read": None, "files": 9,
        "made_by": None,
    }  # fmt: skip
    assert "✓ Packed 9 files into 4 shards, dest-000000.zip to dest-000003.zip" in receipt["lines"]
    decode = msgspec.json.Decoder(PublishedFile).decode
    rows = [decode(row) for row in (dest / "MANIFEST.jsonl").read_bytes().splitlines()]
    for row in rows:
        place = dest / (row.shard or row.path)
        assert place.stat().st_size <= 600 or row.path == "prompts.jsonl"
        data = place.read_bytes()[row.offset or 0 :][: row.size]
        assert len(data) == row.size
        if row.shard is not None:
            raw = bytes.fromhex(row.raw) if row.raw else row.path.encode()
            assert data == contents(dest)[raw]
    assert sum(row.shard is not None for row in rows) == 9
    assert run.verify().ok


@pytest.mark.parametrize("parts", [2, 5])
def test_zips_are_the_same_whatever_the_number_of_parts(tmp_path: Path, parts: int) -> None:
    trees = []
    for count in (1, parts):
        shards = [pages(0, 6), pages(6, 4)]
        for shard in shards:
            shard.parts = count
        RunBuilder(*shards, options=options(shard_size=1000)).extracted(
            tmp_path / str(count)
        ).finish()
        made = tree(tmp_path / str(count) / "dest")
        del made["MANIFEST.jsonl"]  # names the parts
        trees.append(made)
    assert trees[0] == trees[1]


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ({"layout": Layout(name="files")}, [b"a.png", b"notes.txt"]),
        ({"verify": Verify.NONE}, [b"a.png", b"notes.txt"]),
        ({"on_bad_record": OnBadRecord.KEEP}, [b"a.png", b"notes.txt"]),
        ({"on_bad_record": OnBadRecord.DROP}, [b"notes.txt"]),
    ],
    ids=["without records", "unverified", "bad records kept", "dropped"],
)
def test_records_are_not_needed_and_are_judged_as_with_files(
    tmp_path: Path, how: dict[str, Any], names: list[bytes]
) -> None:
    has_records = "layout" not in how
    image = png(1)[:-9] if has_records else png(1)
    files: dict[bytes | str, bytes] = {"a.png": image, "notes.txt": b"a note"}
    records = None if not has_records else line("a.png") + line("none.png") + line("notes.txt")
    if how.get("on_bad_record") is OnBadRecord.DROP:
        assert records is not None
        files["b.png"] = png(2)
        records += line("b.png")
        names = sorted([*names, b"b.png"])
    run = RunBuilder(Content(files, records), options=options(**how)).extracted(tmp_path)
    receipt = run.finish()
    assert sorted(contents(run.staging.dest)) == names
    assert not [line for line in receipt["lines"] if "Found" in line and not has_records]
    assert run.verify().ok


@pytest.mark.parametrize("output", list(Output))
def test_a_destination_may_have_the_longest_name_of_a_file_system(
    tmp_path: Path, output: Output
) -> None:
    built = RunBuilder(
        pages(0, 2), options=options(output=output, digest="sha256"), dest=tmp_path / ("d" * 255)
    )
    run = built.extracted(tmp_path)
    run.finish()
    longest = max(len(path.name) for path in run.staging.dest.iterdir())
    assert longest <= 143 - len(".1234567.12345678.tmp")  # NAME_MAX of eCryptfs


def test_a_path_that_is_a_file_and_a_folder_is_refused(tmp_path: Path) -> None:
    one, other = Content({"a/b": b"file"}, None), Content({"a/b/c/d.txt": b"below"}, None)
    run = RunBuilder(one, other, options=options(layout=Layout(name="files"))).extracted(tmp_path)
    _, problem = run.finalize()
    assert problem is not None and problem.cause is Cause.COLLISION
    assert "1 path is both a file and a folder" in problem.message
    assert "'a/b'" in problem.message


def test_where_only_records_are_published_a_zip_is_empty(tmp_path: Path) -> None:
    how = options(layout=Layout(name="websight"), verify=Verify.NONE)
    run = RunBuilder(Content({}, line("images/a.png")), options=how).extracted(tmp_path)
    run.finish()
    assert contents(run.staging.dest) == {}
    assert run.verify().ok


def test_a_damaged_zip_is_found_with_its_members_and_made_again(tmp_path: Path) -> None:
    run = RunBuilder(pages(0, 3), pages(3, 3), options=options(shard_size=600)).extracted(tmp_path)
    run.finish()
    dest = run.staging.dest
    whole = tree(dest)
    data = bytearray(whole["dest-000000.zip"])
    data[data.index(png(1)) + 20] ^= 1
    (dest / "dest-000000.zip").write_bytes(data)
    (dest / "dest-000001.zip").unlink()
    report = run.verify()
    assert {damage.path for damage in report.damaged} == {"dest-000000.zip", "dest-000001.zip"}
    assert "✗   its members 'images/000001.png'" in report.lines
    reset_damaged(run.folder, run.plan, report)
    run.redo()
    run.finish()
    assert tree(dest) == whole


# One image ----------------------------------------------------------------------------------------

IMAGE = Options(output=Output.SQUASHFS)


def test_an_image_holds_all_files_and_the_records_and_the_manifest_lists_them(
    tmp_path: Path,
) -> None:
    shard = pages(0, 3)
    shard.files[b"notes/\xff.txt"] = b"not UTF-8"
    shard.parts = 3
    run = RunBuilder(shard, options=IMAGE).extracted(tmp_path)
    receipt = run.finish()
    dest = run.staging.dest
    assert sorted(tree(dest)) == ["MANIFEST.jsonl", "dest.squashfs", "prompts.jsonl"]
    rows = [json.loads(row) for row in (dest / "MANIFEST.jsonl").read_bytes().splitlines()]
    assert [row["path"] for row in rows if row.get("shard") == "dest.squashfs"] == [
        "prompts.jsonl", "images/000000.png", "images/000001.png", "images/000002.png",
        "notes/\\xff.txt",
    ]  # fmt: skip
    assert receipt["manifest"]["members"] == 5
    assert "✓ Packed 5 files into dest.squashfs" in receipt["lines"]
    assert receipt["packed"]["made_by"].startswith("zstd 1.")
    image = (dest / "dest.squashfs").read_bytes()
    (stored,) = (row for row in rows if row["path"] == "images/000001.png")
    begin = stored["offset"]
    assert image[begin : begin + stored["size"]] == shard.files["images/000001.png"]
    assert not [row for row in rows if row["path"] == "prompts.jsonl" and "offset" in row]
    assert run.verify().ok


def test_a_damaged_image_is_made_again_unless_another_library_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = pages(0, 3)
    shard.files["README.md"] = b"# Pages\n" * 1000  # compressed
    run = RunBuilder(shard, options=IMAGE).extracted(tmp_path)
    run.finish()
    dest = run.staging.dest
    whole = tree(dest)
    data = bytearray(whole["dest.squashfs"])
    data[data.index(shard.files["images/000001.png"]) + 20] ^= 1
    (dest / "dest.squashfs").write_bytes(data)
    report = run.verify()
    assert report.lines[0].startswith("✗ 'dest.squashfs': has changed")
    assert report.lines[1] == "✗   its members 'images/000001.png'"
    reset_damaged(run.folder, run.plan, report)
    run.redo()
    with monkeypatch.context() as other:
        other.setattr(squashfs, "_compress", lambda options: lambda data: zlib.compress(data))
        other.setattr(squashfs.Squashfs, "made_by", lambda self, options: "zstd 9.9")
        with pytest.raises(VerificationError, match=r"made by zstd 1\S+, and this node has zstd 9"):
            run.finalize()
    run.finish()
    assert tree(dest) == whole


def test_a_stop_ends_the_reading_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunBuilder(pages(0, 3), options=IMAGE).extracted(tmp_path)
    progress = Progress()
    with monkeypatch.context() as stopping:

        def stop_first(image: Path) -> Iterator[bytes]:
            progress.stop(Cause.CANCELLED, "cancelled")
            return blocks(image)

        stopping.setattr("jobs.outputs.squashfs.blocks", stop_first)
        with pytest.raises(Stopped):
            run_finalize(run.folder, run.plan, progress)
    run.finish()
    assert run.verify().ok
