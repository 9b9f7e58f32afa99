"""Paths in records that no file has: corrected where one file can be meant, refused otherwise."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.finalize.repair import reset_damaged
from jobs.model import Layout, Match, OnBadRecord, OnCollision, Options, ShardKind, Verify
from jobs.runtime.progress import Progress
from jobs.verify.dataset import verify_dataset
from tests.support.builders.complete_run import complete_run
from tests.support.builders.contents import Content, line, png, tarred
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder

NFC, NFD = "images/é ü.png", unicodedata.normalize("NFD", "images/é ü.png")


def shard(files: Sequence[str], paths: Sequence[str], **more: Any) -> Content:
    """Pictures under these names, and a record for each of ``paths``."""
    made: dict[bytes | str, bytes] = {name: png(number) for number, name in enumerate(files)}
    records = "".join(json.dumps({"id": i, "image": p}) + "\n" for i, p in enumerate(paths))
    return Content(made, records.encode(), **more)


def images(count: int, template: str = "images/{:03d}.png") -> list[str]:
    return [template.format(number) for number in range(count)]


def published(run: Run) -> list[str]:
    """What the published records name, in their order."""
    text = (run.staging.dest / "prompts.jsonl").read_text(encoding="utf-8")
    return [json.loads(row)["image"] for row in text.splitlines()]


READ = [
    pytest.param([NFD], [NFC], [NFD], "(differs in Unicode form)", id="NFD files"),
    pytest.param([NFC], [NFD], [NFC], "(differs in Unicode form)", id="NFD records"),
    pytest.param(
        ["images/a.JPG", "images/b.jpg"],
        ["images/a.jpg", "images/b.Jpg"],
        ["images/a.JPG", "images/b.jpg"],
        "(differs in the case of its ending)",
        id="case of the ending",
    ),
    pytest.param(
        ["images/a b.png", "images/ü.png"],
        ["images/a%20b.png", "images/%C3%BC.png"],
        ["images/a b.png", "images/ü.png"],
        "(differs in percent-escapes)",
        id="escaped records",
    ),
    pytest.param(
        ["images/a%20b.png"],
        ["images/a b.png"],
        ["images/a%20b.png"],
        "(differs in percent-escapes)",
        id="escaped files",
    ),
    pytest.param(
        ["images/100%.png"], ["images/100%.png"], ["images/100%.png"], "", id="a percent sign"
    ),
    pytest.param(
        ["images/a%2520b.png"],
        ["images/a%2520b.png"],
        ["images/a%2520b.png"],
        "",
        id="an escaped escape",
    ),
    pytest.param(
        ["images/a/b.png"],
        [r"images\a\b.png"],
        ["images/a/b.png"],
        "(differs in separators)",
        id="backslashes",
    ),
    pytest.param(
        ["images/a/b.png"], [r"a\b.PNG"], ["images/a/b.png"], "separators and the case", id="both"
    ),
    pytest.param(
        ["images/b.png"],
        ["images/a/../b.png"],
        ["images/b.png"],
        "",
        id="a folder and back",
    ),
    pytest.param(
        images(3), images(3, "./images/{:03d}.png"), images(3, "./images/{:03d}.png"), "", id="./"
    ),
    pytest.param(
        images(3),
        images(3, "/data/me/websight/images/{:03d}.png"),
        images(3),
        "3 images, such as '/data/me/websight/images/000.png' is 'images/000.png'",
        id="absolute paths",
    ),
    pytest.param(
        images(3), images(3, "/home/me/shots/{:03d}.png"), images(3), "3 images", id="other folder"
    ),
    pytest.param(
        images(3),
        images(3, r"C:\Users\me\images\{:03d}.PNG"),
        images(3),
        "3 images",
        id="Windows paths",
    ),
    pytest.param(
        images(3), images(3, "file:///data/images/{:03d}.png"), images(3), "3 images", id="file URL"
    ),
    pytest.param(
        images(3), images(3, "../images/{:03d}.png"), images(3), "3 images", id="beside the records"
    ),
    pytest.param(
        images(3), images(3, "websight/images/{:03d}.png"), images(3), "3 images", id="a top folder"
    ),
    pytest.param(
        images(3),
        images(3, "./a/b/images/{:03d}.png"),
        images(3),
        "3 images",
        id="two top folders",
    ),
    pytest.param(
        images(3, "{:03d}.png"),
        images(3, "images/{:03d}.png"),
        images(3, "{:03d}.png"),
        "3 images",
        id="flat files",
    ),
    pytest.param(
        images(3, "photos/{:03d}.png"),
        images(3, "{:03d}.png"),
        images(3, "photos/{:03d}.png"),
        "3 images",
        id="bare names",
    ),
    pytest.param(
        images(3, "data/images/{:03d}.png"),
        images(3),
        images(3, "data/images/{:03d}.png"),
        "3 images",
        id="one folder down",
    ),
    pytest.param(
        ["train/images/0.png", "val/images/0.png"],
        ["/a/train/images/0.png", "/a/val/images/0.png"],
        ["train/images/0.png", "val/images/0.png"],
        "2 images",
        id="two splits below one root",
    ),
    pytest.param(
        ["images/é.JPG", "images/x.png"],
        ["/d/images/é.jpg", "/d/images/x.png"],
        ["images/é.JPG", "images/x.png"],
        "2 images",
        id="another root and another spelling",
    ),
    pytest.param(
        images(4),
        [*images(2), *images(4, "/tmp/w1/images/{:03d}.png")[2:]],
        images(4),
        "2 images",
        id="absolute and relative paths",
    ),
    pytest.param(
        images(400),
        [f"/tmp/worker-{number}/images/{number:03d}.png" for number in range(400)],
        images(400),
        "400 images",
        id="a root for each record",
    ),
]


@pytest.mark.parametrize(("files", "paths", "expected", "words"), READ)
def test_a_path_that_can_mean_one_file_is_corrected_and_reported(
    tmp_path: Path, files: list[str], paths: list[str], expected: list[str], words: str
) -> None:
    run = RunBuilder(shard(files, paths)).extracted(tmp_path)
    summary, problem = run.finalize()
    assert problem is None
    assert summary.lines[-1] == "✓ Dataset verification passed!"
    assert words in "\n".join(summary.lines)
    assert published(run) == expected
    assert all((run.staging.dest / name).is_file() for name in expected)
    assert "have no record" not in "\n".join(summary.lines)
    receipt = json.loads(run.staging.receipt.read_bytes())
    changed = sum(new != old for new, old in zip(expected, paths, strict=True))
    assert receipt["counts"]["records_rewritten"] == changed
    assert verify_dataset(run.staging.dest, deep=True, workers=1, progress=Progress()).ok


REFUSED = [
    pytest.param(
        ["images/a.JPG", "images/a.Jpg"],
        ["images/a.jpg"],
        "similar names are 'images/a.JPG' and 'images/a.Jpg', and either may be meant",
        id="two files",
    ),
    pytest.param(
        ["images/a.jpg"],
        ["images/a.jpg", "images/a.JPG"],
        "it may be 'images/a.jpg', but other records call that file 'a.jpg'",
        id="a file that has a record of its own",
    ),
    pytest.param(
        ["images/a.Jpg"],
        ["images/a.jpg", "images/a.JPG"],
        "2 records' images are missing",
        id="two records for one file",
    ),
    pytest.param(["images/a.png"], ["images/A.png"], "a similar name is 'images/a.png'", id="case"),
    pytest.param(
        images(3),
        [*images(2), "val/002.png"],
        "its image 'val/002.png' is in no shard",
        id="one path unlike the others",
    ),
    pytest.param(
        images(3),
        ["/a/train/images/000.png", "/a/val/images/000.png"],
        "it may be 'images/000.png', but other records call that file",
        id="two splits in one folder",
    ),
    pytest.param(
        [*images(3, "photos/{:03d}.png"), *images(3, "thumbs/{:03d}.png")],
        images(3, "{:03d}.png"),
        "may be those in 'photos/' or 'thumbs/'; if so, run `resume` with --im",
        id="two folders",
    ),
    pytest.param(
        images(3, "thumbs/{:03d}.png"),
        images(3),
        "names in 'images/' may be those in 'thumbs/'; if so, run `resume` with --ma",
        id="a folder of another name",
    ),
    pytest.param(
        images(3),
        ["000", "001", "002"],
        "with --layout files, or else run `resume` with --on-bad-record",
        id="names without endings",
    ),
    pytest.param(
        images(1), ["/etc/passwd"], "names an absolute path: '/etc/passwd'", id="a path of a system"
    ),
    pytest.param(
        images(1), ["images/../../x.png"], "names a path outside the dataset", id="climbing out"
    ),
]


@pytest.mark.parametrize(("files", "paths", "words"), REFUSED)
def test_a_path_that_may_mean_several_or_no_file_is_refused(
    tmp_path: Path, files: list[str], paths: list[str], words: str
) -> None:
    run = RunBuilder(shard(files, paths)).extracted(tmp_path)
    summary, problem = run.finalize()
    assert problem is not None
    assert words in "\n".join([*summary.lines, problem.message])
    assert not summary.published


@pytest.mark.parametrize(
    ("files", "paths", "options", "expected"),
    [
        pytest.param(
            [*images(3, "photos/{:03d}.png"), *images(3, "thumbs/{:03d}.png")],
            images(3, "{:03d}.png"),
            Options(layout=Layout(images="photos")),
            images(3, "{:03d}.png"),
            id="--images-dir",
        ),
        pytest.param(
            [*images(3, "photos/{:03d}.png"), *images(3, "thumbs/{:03d}.png")],
            images(3, "/home/me/x/{:03d}.png"),
            Options(layout=Layout(images="photos")),
            images(3, "photos/{:03d}.png"),
            id="--images-dir, absolute paths",
        ),
        pytest.param(
            images(3, "thumbs/{:03d}.png"),
            images(3),
            Options(match=Match.ANY_FOLDER),
            images(3, "thumbs/{:03d}.png"),
            id="--match any-folder",
        ),
    ],
)
def test_the_option_that_a_refusal_names_works(
    tmp_path: Path, files: list[str], paths: list[str], options: Options, expected: list[str]
) -> None:
    run = RunBuilder(shard(files, paths), options=options).extracted(tmp_path)
    assert run.finalize()[1] is None
    assert published(run) == expected


@pytest.mark.parametrize(
    ("files", "paths", "expected", "words"),
    [case for case in READ if case.values[1] != case.values[2]],
)
def test_exact_matches_take_no_other_spelling(
    tmp_path: Path, files: list[str], paths: list[str], expected: list[str], words: str
) -> None:
    run = RunBuilder(shard(files, paths), options=Options(match=Match.EXACT)).extracted(tmp_path)
    summary, problem = run.finalize()
    assert problem is not None
    assert not summary.published


def test_each_shard_may_start_its_paths_elsewhere(tmp_path: Path) -> None:
    names = images(6)
    shards = [
        shard(names[n : n + 2], [f"/tmp/worker-{n}/{p}" for p in names[n : n + 2]])
        for n in (0, 2, 4)
    ]
    run = RunBuilder(*shards).extracted(tmp_path)
    assert run.finalize()[1] is None
    assert published(run) == names


SETS = [
    pytest.param(
        {"gqa.tar": ["gqa/images/1.png", "gqa/images/2.png"], "ocr.tar": ["ocr/images/3.png"]},
        "{}/images/{}.png",
        (),
        id="top folders",
    ),
    pytest.param(
        {"gqa/a.tar": ["images/1.png", "images/2.png"], "ocr/b.tar": ["images/3.png"]},
        "{}/images/{}.png",
        (),
        id="folders of the archives",
    ),
    pytest.param(
        {"gqa.tar": ["1.png", "2.png"], "ocr.tar": ["3.png"]}, "{}/{}.png", (), id="names"
    ),
    pytest.param(
        {"gqa.tar": ["1.png", "2.png"], "ocr.tar": ["3.png"]},
        "{}/{}.png",
        ("--nested",),
        id="nested archives",
    ),
]


@pytest.mark.parametrize(("archives", "path", "words"), SETS)
def test_a_path_means_no_file_of_another_archive_than_it_names(
    tmp_path: Path, archives: dict[str, list[str]], path: str, words: Sequence[str]
) -> None:
    files = {
        name: tarred({member: png(int(member[-5])) for member in members})
        for name, members in archives.items()
    }
    paths = [path.format(*each) for each in (("gqa", 2), ("ocr", 3), ("ocr", 1))]
    files = {"o.tar": tarred(files)} if words else files
    for name, count in (("all", 3), ("without", 2), ("any", 3)):
        lines = "".join(json.dumps({"image": each}) + "\n" for each in paths[:count])
        for place, data in {**files, "prompts.jsonl": lines.encode()}.items():
            target = tmp_path / name / "source" / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    refused = complete_run(tmp_path / "all", tmp_path / "all" / "source", *words)
    assert f"its image {paths[2]!r} is in no shard; " in refused.text
    assert "is from an archive other than 'ocr' (if it is the right file, use --m" in refused.text
    assert refused.files == {}
    brought = complete_run(tmp_path / "without", tmp_path / "without" / "source", *words)
    assert brought.problems == []
    named = [json.loads(row)["image"] for row in brought.files["prompts.jsonl"].splitlines()]
    assert [brought.files[each] for each in named] == [png(2), png(3)]
    any_folder = (*words, "--match", "any-folder")
    brought = complete_run(tmp_path / "any", tmp_path / "any" / "source", *any_folder)
    assert brought.problems == []


def test_loose_records_and_several_archives_are_matched(tmp_path: Path) -> None:
    names = images(4)
    loose = shard([], [f"/d/{name}" for name in names], name="prompts.jsonl", kind=ShardKind.FILE)
    archives = [Content({name: png(n)}) for n, name in enumerate(names)]
    run = RunBuilder(*archives, loose).extracted(tmp_path)
    assert run.finalize()[1] is None
    assert published(run) == names


def test_with_a_folder_for_each_shard_paths_are_corrected_into_it(tmp_path: Path) -> None:
    shards = [
        shard(["images/0.png", "images/é.png"], ["images/0.PNG", "images/e\u0301.png"]),
        shard(["images/0.png", "images/1.png"], [r"images\0.png", "1.png", "images/0.png"]),
    ]
    run = RunBuilder(*shards, options=Options(on_collision=OnCollision.PER_SHARD)).extracted(
        tmp_path
    )
    summary, problem = run.finalize()
    assert problem is None
    assert "in the dataset (differs in separators)" in "\n".join(summary.lines)
    first, second = (shard.id for shard in run.plan.shards)
    assert published(run) == [
        f"images/{first}/0.png",
        f"images/{first}/é.png",
        f"images/{second}/0.png",
        f"images/{second}/1.png",
        f"images/{second}/0.png",
    ]


def test_records_beside_archives_with_the_same_names_are_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    pictures = {"app": png(1), "web": png(2)}
    for folder, data in pictures.items():
        lines = b'{"file_name": "0.png"}\n'
        for place, files in {
            "packed": {"images.tar": tarred({"0.png": data}), "metadata.jsonl": lines},
            "unpacked": {"0.png": data, "metadata.jsonl": lines},
        }.items():
            (tmp_path / place / folder).mkdir(parents=True)
            for name, content in files.items():
                (tmp_path / place / folder / name).write_bytes(content)
    refused = complete_run(tmp_path / "1", tmp_path / "packed", "--on-collision", "per-shard")
    assert "; unpack each archive into the folder that the records name, and launch" in refused.text
    brought = complete_run(tmp_path / "2", tmp_path / "unpacked")
    assert brought.problems == []
    assert [brought.files[f"{folder}/0.png"] for folder in pictures] == [*pictures.values()]


def test_only_the_paths_of_a_record_change(tmp_path: Path) -> None:
    made = shard(["images/a.png", "images/b.JPG"], [])
    made.records = (
        b'\xef\xbb\xbf{"n" : 1.50,  "image":"images\\\\a.png", "t":"\\ud83d"}\r\n'
        b'{"image": "images/b.jpg", "x": NaN}'
    )
    run = RunBuilder(made).extracted(tmp_path)
    assert run.finalize()[1] is None
    assert (run.staging.dest / "prompts.jsonl").read_bytes() == (
        b'\xef\xbb\xbf{"n" : 1.50,  "image":"images/a.png", "t":"\\ud83d"}\r\n'
        b'{"image": "images/b.JPG", "x": NaN}'
    )


def test_a_name_that_is_not_utf8_is_found_as_python_spells_it(tmp_path: Path) -> None:
    made = Content({b"images/\xff.png": png(1)}, b'{"image": "images/\\udcff.png"}\n')
    run = RunBuilder(made).extracted(tmp_path)
    assert run.finalize()[1] is None
    assert published(run) == ["images/\udcff.png"]
    assert (run.staging.dest / "images/\udcff.png").is_file()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (OnBadRecord.DROP, ["images/a.png"]),
        (OnBadRecord.KEEP, ["images/a.png", "/data/images/gone.png"]),
    ],
)
def test_what_cannot_be_matched_is_dropped_or_kept_as_it_is(
    tmp_path: Path, policy: OnBadRecord, expected: list[str]
) -> None:
    made = shard(["images/a.png"], ["/data/images/a.png", "/data/images/gone.png"])
    run = RunBuilder(made, options=Options(on_bad_record=policy)).extracted(tmp_path)
    assert run.finalize()[1] is None
    assert published(run) == expected


def test_unverified_records_are_left_as_they_are(tmp_path: Path) -> None:
    run = RunBuilder(
        shard(images(2), images(2, "/x/{}")), options=Options(verify=Verify.NONE)
    ).extracted(tmp_path)
    assert run.finalize()[1] is None
    assert published(run) == images(2, "/x/{}")


def test_every_image_of_a_record_has_to_be_there(tmp_path: Path) -> None:
    made = shard(images(3), [])
    made.records = b'{"images": ["images/000.png", "images/001.PNG"]}\n'
    made.records += b'{"images": ["images/002.png", "images/003.png"]}\n'
    run = RunBuilder(made).extracted(tmp_path)
    _, problem = run.finalize()
    assert problem is not None
    assert "line 2: its image 'images/003.png' is in no shard" in problem.message
    assert "1 record's image is missing" in problem.message


def test_a_further_image_of_a_record_is_named_and_reported_where_it_is_missing(
    tmp_path: Path,
) -> None:
    made = shard(images(2), [])
    made.records = line("images/000.png", mask="images\\001.png")
    made.records += line("images/000.png", mask="images/gone.png")
    run = RunBuilder(made).extracted(tmp_path)
    summary, problem = run.finalize()
    assert problem is None
    text = "\n".join(summary.lines)
    assert "! 1 record names a further image that is missing: shard-0000.tar, line 2" in text
    assert "no record names it" not in text
    rows = (run.staging.dest / "prompts.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["mask"] == "images/001.png"


def test_a_further_image_takes_no_file_from_the_record_that_means_it(tmp_path: Path) -> None:
    made = shard(["images/a.png", "images/b.png"], [])
    made.records = line("images/a.PNG", mask="images/a.png") + line("images/b.png")
    run = RunBuilder(made).extracted(tmp_path)
    assert run.finalize()[1] is None
    assert published(run) == ["images/a.png", "images/b.png"]


def test_a_damaged_image_is_found_under_its_other_spelling(tmp_path: Path) -> None:
    made = shard([NFD], [NFC])
    made.files[NFD] = png(1)[:-5]
    run = RunBuilder(made, options=Options(on_bad_record=OnBadRecord.DROP)).extracted(tmp_path)
    _, problem = run.finalize()
    assert problem is not None
    assert "none of 1 record is valid" in problem.message


def test_what_was_published_without_bad_records_can_be_repaired(tmp_path: Path) -> None:
    made = shard(["images/no-ending", "images/a.png", "images/b.png"], [])
    made.files["images/no-ending"] = b"text"
    made.files["images/b.png"] = b""
    made.records = b"".join(line(str(name)) for name in made.files)
    run = RunBuilder(made, options=Options(on_bad_record=OnBadRecord.DROP)).extracted(tmp_path)
    assert run.finalize()[1] is None
    assert published(run) == ["images/a.png"]
    (run.staging.dest / "images/a.png").unlink()
    report = verify_dataset(run.staging.dest, deep=False, workers=1, progress=Progress())
    reset_damaged(run.folder, run.plan, report)
    run.redo()
    assert run.finalize()[1] is None
    assert verify_dataset(run.staging.dest, deep=True, workers=1, progress=Progress()).ok


def test_rewritten_records_are_repaired_to_the_same_bytes(tmp_path: Path) -> None:
    run = RunBuilder(shard([NFD, *images(2)], [f"/d/{n}" for n in (NFC, *images(2))])).extracted(
        tmp_path
    )
    assert run.finalize()[1] is None
    dest = run.staging.dest
    before = (dest / "prompts.jsonl").read_bytes()
    (dest / "prompts.jsonl").write_bytes(b"x" * len(before))
    report = verify_dataset(dest, deep=True, workers=1, progress=Progress())
    assert not report.ok
    reset_damaged(run.folder, run.plan, report)
    run.redo()
    assert run.finalize()[1] is None
    assert (dest / "prompts.jsonl").read_bytes() == before
    assert verify_dataset(dest, deep=True, workers=1, progress=Progress()).ok
