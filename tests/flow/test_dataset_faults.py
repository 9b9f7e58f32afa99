"""Faults of datasets: each with its verdict, and a message that names the place."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from msgspec import structs

from jobs.errors import Cause
from jobs.model import Layout, OnBadRecord, OnCollision, Options, ShardKind, Verify
from tests.support.builders.contents import Content, chunk, line, pages, png
from tests.support.builders.runs import RunBuilder

Make = Callable[[], Sequence[Content]]

PNG = png(7)
JPEG = (
    b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    b"\xff\xc0\x00\x0b\x08\x00\x01\x00\x01\x01\x01\x11\x00"
    b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"\x55" * 40 + b"\xff\xd9"
)


def records_with(bad: bytes, at: int = 3) -> Make:
    """Two sound shards; in the second one ``bad`` takes the place of that line."""

    def make() -> Sequence[Content]:
        first, second = pages(0, 4), pages(4, 4)
        lines = (second.records or b"").splitlines(keepends=True)
        lines[at - 1] = bad
        second.records = b"".join(lines)
        return first, second

    return make


def image_with(data: bytes, name: str = "images/000005.png") -> Make:
    """Two sound shards; in the second one an image holds something else."""

    def make() -> Sequence[Content]:
        first, second = pages(0, 4), pages(4, 4)
        if name not in second.files:
            second.records = (second.records or b"") + line(name)
        second.files[name] = data
        return first, second

    return make


def changed(change: Callable[[Content, Content], object]) -> Make:
    """Two sound shards, and then a change to them."""

    def make() -> Sequence[Content]:
        first, second = pages(0, 4), pages(4, 4)
        change(first, second)
        return first, second

    return make


def set_records(shard: Content, records: bytes | None) -> Content:
    shard.records = records
    return shard


def without_files(shard: Content) -> Content:
    shard.files = {}
    return shard


def moved(shards: Sequence[Content], folder: str) -> Sequence[Content]:
    """Everything one folder down, records included."""
    for shard in shards:
        shard.files = {f"{folder}/{name!s}": data for name, data in shard.files.items()}
        shard.files[f"{folder}/prompts.jsonl"] = shard.records or b""
        shard.records = None
    return shards


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


SIGNATURE, IHDR = PNG[:8], PNG[8:33]
IDAT, IEND = PNG[33:-12], PNG[-12:]
LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
AVIF = b"".join(
    struct.pack(">I", len(data) + 8) + kind + data
    for kind, data in (
        (b"ftyp", b"avif\0\0\0\0mif1avif"),
        (b"meta", bytes(4) + struct.pack(">I", 20) + b"hdlr" + bytes(12)),
        (b"mdat", b"\1" * 40),
    )
)
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body></body></html>" * 2

REFUSED = [
    # Records.
    (
        "invalid UTF-8 at a line",
        records_with(b'{"image": "images/\xff.png"}\n'),
        Cause.BAD_RECORD,
        "shard-0001.tar, line 3: not UTF-8 at byte 19",
    ),
    (
        "invalid JSON at a line",
        records_with(b'{"image": "images/000006.png"\n'),
        Cause.BAD_RECORD,
        "shard-0001.tar, line 3: not JSON",
    ),
    (
        "two records in a line",
        records_with(b'{"image": "a"} {"image": "b"}\n'),
        Cause.BAD_RECORD,
        "shard-0001.tar, line 3: not JSON",
    ),
    (
        "a line cut short",
        records_with(b'{"image": "images/0000'),
        Cause.BAD_RECORD,
        "shard-0001.tar, line 3: not JSON",
    ),
    (
        "a line of zeros",
        records_with(b"\0" * 40 + b"\n"),
        Cause.BAD_RECORD,
        "shard-0001.tar, line 3: not JSON",
    ),
    (
        "a line that is a list",
        records_with(b'["images/000006.png"]\n'),
        Cause.BAD_RECORD,
        "shard-0001.tar, line 3: not a JSON object",
    ),
    (
        "a line that is a string",
        records_with(b'"images/000006.png"\n'),
        Cause.BAD_RECORD,
        "shard-0001.tar, line 3: not a JSON object",
    ),
    (
        "a record without an image",
        records_with(b'{"text": "x"}\n'),
        Cause.BAD_RECORD,
        "shard-0001.tar, line 3: names no image",
    ),
    (
        "a record whose image is a number",
        records_with(b'{"image": 7}\n'),
        Cause.BAD_RECORD,
        "shard-0001.tar, line 3: names no image",
    ),
    (
        "a record whose image is null",
        records_with(b'{"image": null}\n'),
        Cause.BAD_RECORD,
        "shard-0001.tar, line 3: names no image",
    ),
    (
        "a record to an absolute path",
        records_with(line("/etc/passwd")),
        Cause.BAD_RECORD,
        "shard-0001.tar, line 3: names an absolute path: '/etc/passwd'",
    ),
    (
        "a record that climbs out",
        records_with(line("images/../../x.png")),
        Cause.BAD_RECORD,
        "line 3: names a path outside the dataset ('..'): 'images/../../x.png'",
    ),
    (
        "a record to a URL",
        records_with(line("https://example.org/1.png")),
        Cause.BAD_RECORD,
        "its image 'https://example.org/1.png' is in no shard, because it is a web address",
    ),
    (
        "a record with a NUL in its path",
        records_with(b'{"image": "images/\\u0000.png"}\n'),
        Cause.BAD_RECORD,
        "shard-0001.tar, line 3: names a path with a NUL in it",
    ),
    (
        "a missing image",
        changed(lambda a, b: b.files.pop("images/000006.png")),
        Cause.BAD_RECORD,
        "line 3: its image 'images/000006.png' is in no shard",
    ),
    (
        "no records file",
        changed(lambda a, b: (set_records(a, None), set_records(b, None))),
        Cause.BAD_RECORD,
        "no shard has a prompts.jsonl, metadata.jsonl or metadata.csv; to publish files without",
    ),
    (
        "an empty records file",
        changed(lambda a, b: (set_records(a, b""), set_records(b, b""))),
        Cause.VERIFICATION,
        "prompts.jsonl contains no record; all findings are in audit.jsonl; check that the source",
    ),
    (
        "a records file of blank lines",
        changed(lambda a, b: (set_records(a, b"\n\n"), set_records(b, b"\n"))),
        Cause.VERIFICATION,
        "prompts.jsonl contains no record",
    ),
    (
        "images/ missing",
        changed(lambda a, b: (without_files(a), without_files(b))),
        Cause.BAD_RECORD,
        "8 records' images are missing",
    ),
    # Images.
    (
        "a truncated PNG",
        image_with(PNG[:-5]),
        Cause.BAD_IMAGE,
        "'images/000005.png': PNG: truncated in or after chunk IDAT",
    ),
    (
        "a PNG without IEND",
        image_with(PNG[:-12]),
        Cause.BAD_IMAGE,
        "PNG: truncated in or after chunk IDAT",
    ),
    (
        "a wrong PNG CRC",
        image_with(flipped(PNG, 50)),
        Cause.BAD_IMAGE,
        "PNG: wrong CRC in chunk IDAT",
    ),
    (
        "a wrong PNG header CRC",
        image_with(flipped(PNG, 20)),
        Cause.BAD_IMAGE,
        "PNG: wrong CRC in chunk IHDR",
    ),
    (
        "PNG chunks out of order",
        image_with(SIGNATURE + IDAT + IHDR + IEND),
        Cause.BAD_IMAGE,
        "PNG: no IHDR chunk",
    ),
    (
        "a PNG without pixels",
        image_with(SIGNATURE + IHDR + IEND + b"\0" * 20),
        Cause.BAD_IMAGE,
        "PNG: no IDAT chunk",
    ),
    (
        "a JPEG without EOI",
        image_with(JPEG[:-2], "images/a.jpg"),
        Cause.BAD_IMAGE,
        "'images/a.jpg': JPEG: no end (EOI): truncated",
    ),
    (
        "a JPEG cut in its head",
        image_with(JPEG[:20] + b"", "images/a.jpg"),
        Cause.BAD_IMAGE,
        "'images/a.jpg': JPEG: truncated in its header",
    ),
    ("zero bytes", image_with(b""), Cause.BAD_IMAGE, "'images/000005.png': empty: 0 bytes"),
    ("a hole of zeros", image_with(b"\0" * 500), Cause.BAD_IMAGE, "not an image: zeros"),
    ("text for an image", image_with(b"no such file\n"), Cause.BAD_IMAGE, "not an image: text"),
    ("HTML for an image", image_with(HTML), Cause.BAD_IMAGE, "not an image: an HTML page"),
    (
        "HTML for an image without an ending",
        image_with(HTML, "images/a"),
        Cause.BAD_IMAGE,
        "'images/a': not an image: an HTML page",
    ),
    (
        "an empty image without an ending, beside the images folder",
        image_with(b"", "shots/a"),
        Cause.BAD_IMAGE,
        "'shots/a': empty: 0 bytes",
    ),
    (
        "a caption that a record names as its image",
        image_with(b"a caption\n", "images/a.txt"),
        Cause.BAD_IMAGE,
        "'images/a.txt': not an image: text",
    ),
    (
        "a video for an image",
        image_with(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"\1" * 60),
        Cause.BAD_IMAGE,
        "not an image: a video or another ISO media file (isom, mp42)",
    ),
    (
        "an AVIF cut short",
        image_with(AVIF[:-1], "images/a.avif"),
        Cause.BAD_IMAGE,
        f"'images/a.avif': AVIF: truncated: {len(AVIF) - 1} of {len(AVIF)} bytes",
    ),
    (
        "an LFS pointer for an image",
        image_with(LFS),
        Cause.BAD_IMAGE,
        "not an image: a Git LFS pointer",
    ),
    (
        "a truncated GIF",
        image_with(b"GIF89a\x01\x00\x01\x00\0\0\0,\0\0\0\0", "images/a.gif"),
        Cause.BAD_IMAGE,
        "GIF: no trailer",
    ),
    (
        "a truncated WebP",
        image_with(b"RIFF\xff\x00\0\0WEBPVP8 " + b"\1" * 60, "images/a.webp"),
        Cause.BAD_IMAGE,
        "WebP",
    ),
    # Shards.
    (
        "two shards disagreeing",
        changed(lambda a, b: b.files.update({"images/000001.png": png(99)})),
        Cause.COLLISION,
        "'images/000001.png' has different content",
    ),
]


@pytest.mark.parametrize(
    ("make", "cause", "words"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED]
)
def test_a_fault_is_refused_with_its_place(
    tmp_path: Path, make: Make, cause: Cause, words: str
) -> None:
    run = RunBuilder(*make()).extracted(tmp_path)
    summary, problem = run.finalize()
    assert problem is not None
    assert problem.cause is cause
    assert words in problem.message
    assert "nothing was published" in problem.message
    assert not summary.published
    assert summary.lines[-1] == "✗ Dataset verification failed: nothing was published"
    assert [path.name for path in run.staging.dest.iterdir()] == [".incoming"]
    assert run.staging.archive(run.plan.shards[0].id, 0).exists()
    assert "\n" not in problem.message


ODD = [
    (
        "an orphan image",
        changed(lambda a, b: b.files.update({"images/x.png": PNG})),
        {},
        "! 1 image has no record: shard-0001.tar, 'images/x.png': no record names it",
    ),
    (
        "an image named twice",
        records_with(line("images/000000.png")),
        {},
        "names 'images/000000.png', as line 1 of shard-0000.tar does",
    ),
    (
        "an id twice",
        records_with(line("images/000006.png", id="images/000001.png")),
        {},
        "its id 'images/000001.png' is also that of line 2 of shard-0000.tar",
    ),
    (
        "a BOM",
        changed(lambda a, b: set_records(b, b"\xef\xbb\xbf" + (b.records or b""))),
        {},
        "! 1 records file has a byte order mark: shard-0001.tar",
    ),
    (
        "CRLF",
        changed(lambda a, b: set_records(b, (b.records or b"").replace(b"\n", b"\r\n"))),
        {},
        "lines that end in CRLF: 4",
    ),
    (
        "blank lines",
        changed(lambda a, b: set_records(b, b"\n" + (b.records or b"") + b" \n")),
        {},
        "blank lines: 2",
    ),
    (
        "no last newline",
        changed(lambda a, b: set_records(a, (a.records or b"").rstrip(b"\n"))),
        {},
        "! 1 records file does not end with a newline: shard-0000.tar",
    ),
    (
        "a wrong extension",
        image_with(JPEG, "images/a.png"),
        {},
        "'images/a.png': named .png, but contains JPEG",
    ),
    ("bytes behind a PNG's end", image_with(PNG + b"xyz"), {}, "PNG: 3 bytes after the end"),
    (
        "names that differ in case",
        changed(
            lambda a, b: (
                b.files.update({"images/000001.PNG": PNG}),
                set_records(b, (b.records or b"") + line("images/000001.PNG")),
            )
        ),
        {},
        "differ only in case or Unicode form",
    ),
    (
        "the same file in two shards",
        changed(lambda a, b: b.files.update({"images/000001.png": a.files["images/000001.png"]})),
        {},
        "is also in shard shard-0000.tar, with the same content",
    ),
    (
        "its own receipt",
        changed(lambda a, b: a.files.update({"RECEIPT.json": b"{}"})),
        {},
        "this tool writes a file of that name",
    ),
    (
        "a truncated image, kept",
        image_with(PNG[:-5]),
        {"on_bad_record": OnBadRecord.KEEP},
        "! 1 image is damaged: shard-0001.tar, 'images/000005.png'",
    ),
    (
        "a bad line, kept",
        records_with(b"{\n"),
        {"on_bad_record": OnBadRecord.KEEP},
        "! 1 line is not a valid record: shard-0001.tar, line 3",
    ),
    (
        "a bad line, dropped",
        records_with(b"{\n"),
        {"on_bad_record": OnBadRecord.DROP},
        "✓ Found 7 records in prompts.jsonl",
    ),
    (
        "a truncated image, dropped",
        image_with(PNG[:-5]),
        {"on_bad_record": OnBadRecord.DROP},
        "✓ Found 7 images",
    ),
    (
        "two shards disagreeing, the first kept",
        changed(lambda a, b: b.files.update({"images/000001.png": png(99)})),
        {"on_collision": OnCollision.KEEP_FIRST},
        "'images/000001.png': kept the version of shard shard-0000.tar",
    ),
    (
        "two shards disagreeing, each with its own",
        lambda: [
            pages(0, 4),
            Content({f"images/{n:06d}.png": png(50 + n) for n in range(4)}, pages(0, 4).records),
        ],
        {"on_collision": OnCollision.PER_SHARD},
        "✓ Found 8 images",
    ),
    (
        "a truncated image, not verified",
        image_with(PNG[:-5]),
        {"verify": Verify.NONE},
        "! Images and records were not verified (--skip-verify)",
    ),
    (
        "paths relative to images/",
        lambda: [Content(pages(0, 3).files, b"".join(line(f"{n:06d}.png") for n in range(3)))],
        {},
        "✓ Dataset verification passed!",
    ),
    (
        "a path with ./",
        records_with(line("./images//000006.png")),
        {},
        "✓ Dataset verification passed!",
    ),
    (
        "an ending in another case",
        records_with(line("images/000006.PNG")),
        {},
        "'images/000006.PNG' is 'images/000006.png' in the dataset",
    ),
    (
        "an image in another Unicode form",
        changed(
            lambda a, b: (
                b.files.update({"images/e\u0301.png": PNG}),
                set_records(b, (b.records or b"") + line("images/\u00e9.png")),
            )
        ),
        {},
        "(differs in Unicode form)",
    ),
    (
        "images nested one folder down",
        lambda: [
            Content({f"data/{n!s}": d for n, d in pages(0, 4).files.items()}, pages(0, 4).records)
        ],
        {},
        "images, such as 'images/000000.png' is 'data/images/000000.png'",
    ),
    (
        "a nested top folder",
        lambda: moved([pages(0, 4)], "dataset"),
        {},
        "4 images, such as 'images/000000.png' is 'dataset/images/000000.png'",
    ),
    (
        "a top folder nested in another one",
        lambda: moved([pages(0, 4)], "a/dataset"),
        {},
        "4 images, such as 'images/000000.png' is 'a/dataset/images/000000.png'",
    ),
    (
        "an image in an object",
        records_with(b'{"image": {"bytes": null, "path": "images/000006.png"}}\n'),
        {},
        "✓ Dataset verification passed!",
    ),
    (
        "another image field",
        records_with(b'{"file_name": "images/000006.png"}\n'),
        {},
        "✓ Dataset verification passed!",
    ),
    (
        "a given field",
        records_with(line("images/000006.png", shot="images/000006.png")),
        {"layout": Layout(image_field="image")},
        "✓ Dataset verification passed!",
    ),
    (
        "loose records beside the archives",
        lambda: [
            Content(pages(0, 4).files),
            Content({}, pages(0, 4).records, "prompts.jsonl", kind=ShardKind.FILE),
        ],
        {},
        "✓ Found 4 records in prompts.jsonl",
    ),
    (
        "just files",
        lambda: [Content({"a/b.txt": b"x"})],
        {"layout": Layout("files", "", "images")},
        "✓ Dataset verification passed!",
    ),
    (
        "an AVIF with a record",
        image_with(AVIF, "images/a.avif"),
        {},
        "✓ Found 9 images",
    ),
    (
        "files beside the images that are none",
        changed(
            lambda a, b: a.files.update(
                {
                    "images/.gitkeep": b"",
                    "images/_SUCCESS": b"",
                    "images/LICENSE": b"MIT\n",
                    "images/000000.txt": b"",
                }
            )
        ),
        {},
        "✓ Found 8 records in prompts.jsonl\n✓ Found 8 images\n✓ Dataset verification passed!",
    ),
    (
        "an image without an ending that no record names",
        changed(lambda a, b: a.files.update({"images/x": PNG})),
        {},
        "! 1 image has no record: shard-0000.tar, 'images/x'",
    ),
    (
        "what another program left of an image",
        changed(lambda a, b: a.files.update({"images/x.png.part": PNG[:-5]})),
        {},
        "'images/x.png.part': PNG: truncated",
    ),
    (
        "a text for an image without an ending, dropped",
        image_with(b"no such file", "images/x"),
        {"on_bad_record": OnBadRecord.DROP},
        "✓ Found 8 records in prompts.jsonl\n✓ Found 8 images",
    ),
    (
        "a sidecar without a record",
        changed(lambda a, b: a.files.update({"images/000000.txt": b"caption"})),
        {},
        "✓ Dataset verification passed!",
    ),
]


@pytest.mark.parametrize(
    ("make", "more", "words"), [pytest.param(*row[1:], id=row[0]) for row in ODD]
)
def test_odd_and_tolerated_input_is_published_and_reported(
    tmp_path: Path, make: Make, more: dict[str, object], words: str
) -> None:
    run = RunBuilder(*make(), options=structs.replace(Options(), **more)).extracted(tmp_path)
    summary, problem = run.finalize()
    assert problem is None
    assert summary.published
    assert words in "\n".join(summary.lines)
    receipt = json.loads(run.staging.receipt.read_bytes())
    assert receipt["lines"] == list(summary.lines)
    assert receipt["counts"]["records"] == summary.records
    found = run.folder.audit.read_text(encoding="utf-8").splitlines()
    assert len(found) == sum(receipt["findings"].values())
    assert not (run.staging.dest / ".incoming").exists()


COUNTS = [
    pytest.param(8, None, id="as many as expected"),
    pytest.param(
        9,
        "8 records, but 9 were expected (--expect-records); if all 8 are there, run `resume` with "
        "--expect-records 8",
        id="one too few",
    ),
    pytest.param(0, "8 records, but 0 were expected", id="none expected"),
]


@pytest.mark.parametrize(
    ("expected", "words"),
    [(7, None), (8, "7 records, but 8 were expected")],
    ids=["as many as are left", "as many as there were"],
)
def test_the_expected_count_is_of_the_records_that_are_left(
    tmp_path: Path, expected: int, words: str | None
) -> None:
    options = Options(expect_records=expected, on_bad_record=OnBadRecord.DROP)
    made = [pages(0, 4), pages(4, 4)]
    del made[1].files["images/000006.png"]
    run = RunBuilder(*made, options=options).extracted(tmp_path)
    summary, problem = run.finalize()
    assert summary.published is (words is None)
    assert (problem is None) if words is None else (problem and words in problem.message)


def test_a_dataset_of_which_every_record_is_dropped_is_not_published(tmp_path: Path) -> None:
    options = Options(layout=Layout(image_field="nope"), on_bad_record=OnBadRecord.DROP)
    run = RunBuilder(pages(0, 4), options=options).extracted(tmp_path)
    summary, problem = run.finalize()
    assert not summary.published
    assert problem is not None
    assert "none of 4 records is valid" in problem.message


@pytest.mark.parametrize(("expected", "words"), COUNTS)
def test_the_expected_count_is_held(tmp_path: Path, expected: int, words: str | None) -> None:
    run = RunBuilder(pages(0, 4), pages(4, 4), options=Options(expect_records=expected)).extracted(
        tmp_path
    )
    summary, problem = run.finalize()
    if words is None:
        assert problem is None
        return
    assert problem is not None
    assert problem.cause is Cause.VERIFICATION
    assert words in problem.message
    assert summary.lines[0] == "✗ Found 8 records in prompts.jsonl"


def test_every_finding_is_listed_with_its_shard_and_line(tmp_path: Path) -> None:
    run = RunBuilder(*records_with(b"[]\n", at=2)()).extracted(tmp_path)
    run.finalize()
    found = [json.loads(text) for text in run.folder.audit.read_bytes().splitlines()]
    shard = run.plan.shards[1].id
    assert {
        "kind": "bad_record",
        "message": "not a JSON object",
        "shard": shard,
        "line": 2,
    } in found
    assert {
        "kind": "image_without_record",
        "message": "no record names it",
        "shard": shard,
        "member": "images/000005.png",
    } in found


def test_the_samples_here_are_sound() -> None:
    assert struct.unpack(">I", IHDR[:4]) == (13,)
    assert chunk(b"IEND", b"") == IEND
