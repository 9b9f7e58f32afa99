"""WebDataset: an image and its data become a file and a record, whatever the packing and parts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from itertools import product, starmap
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from jobs.archives.webdataset import looks_like_samples
from jobs.errors import ArchiveError
from jobs.extract.child_process import PartExtractor
from jobs.finalize.repair import reset_damaged
from jobs.model import Layout, OnBadRecord, OnCollision, Options, Problem, Summary, Verify
from jobs.runtime.progress import Progress
from jobs.storage.safe_paths import SampleEnds
from jobs.verify.dataset import verify_dataset
from tests.support.archives.rawtar import END, header, member
from tests.support.archives.rawzip import Raw, zip_of
from tests.support.builders.complete_run import complete_run
from tests.support.builders.contents import chunk, line, png, tarred
from tests.support.builders.made_run import Run, extracted
from tests.support.builders.runs import RunBuilder
from tests.support.servers.webserver import FaultyServer

WEBDATASET = Options(layout=Layout("webdataset"))
SAMPLES = ("--layout", "webdataset")
WEBSIGHT = Options(layout=Layout("websight"))


def samples(numbers: Sequence[int], folder: str = "") -> dict[bytes | str, bytes]:
    """As img2dataset writes them: picture, text and JSON of a key next to each other."""
    files: dict[bytes | str, bytes] = {}
    for n in numbers:
        key = f"{folder}{n:05d}"
        files[f"{key}.png"] = png(n)
        files[f"{key}.txt"] = f"caption {n}, é".encode()
        files[f"{key}.json"] = json.dumps({"url": f"https://h/{n}.jpg", "width": 1.50}).encode()
    return files


def finish(run: Run) -> tuple[Run, Summary, Problem | None]:
    results = run.extract()
    assert [result.problem for result in results] == [None] * len(run.parts)
    return run, *run.finalize()


def run_over(
    tmp_path: Path, *tars: Mapping[bytes | str, bytes], options: Options | None = None, **more: Any
) -> tuple[Run, Summary, Problem | None]:
    """Extract and finalize a tar for each of these contents."""
    paths = []
    for number, files in enumerate(tars):
        paths.append(tmp_path / f"{number:05d}.tar")
        paths[-1].write_bytes(tarred(files))
    return finish(RunBuilder(*paths, options=options, **more).fetched(tmp_path))


def records(run: Run) -> list[dict[str, Any]]:
    text = (run.staging.dest / "prompts.jsonl").read_text(encoding="utf-8")
    return [json.loads(row) for row in text.splitlines()]


def published(run: Run) -> list[str]:
    dest = run.staging.dest
    return sorted(str(path.relative_to(dest)) for path in dest.rglob("*") if path.is_file())


@pytest.mark.parametrize("parts", [1, 2, 7, 40])
def test_samples_are_images_and_records_whatever_the_number_of_parts(
    tmp_path: Path, parts: int
) -> None:
    run, summary, problem = run_over(
        tmp_path, samples(range(10)), samples(range(10, 15)), parts=parts
    )
    assert problem is None
    assert records(run) == [
        {
            "image": f"images/{n:05d}.png",
            "__key__": f"{n:05d}",
            "txt": f"caption {n}, é",
            "url": f"https://h/{n}.jpg",
            "width": 1.5,
        }
        for n in range(15)
    ]
    for n in range(15):
        assert (run.staging.dest / f"images/{n:05d}.png").read_bytes() == png(n)
    assert len(published(run)) == 15 + 3
    assert b'"width": 1.5}' in (run.staging.dest / "prompts.jsonl").read_bytes()
    assert (
        "! 2 shards contain WebDataset samples, which are published as images and records: "
        "00000.tar; 00001.tar: files with the same key became an image and its record; to leave "
        "them as they are, launch with --layout files"
    ) in summary.lines


def test_a_shard_that_begins_with_a_large_picture_is_one_of_samples(tmp_path: Path) -> None:
    large = samples(range(10, 13))
    end = large["00010.png"][-12:]
    large["00010.png"] = large["00010.png"][:-12] + chunk(b"prVt", bytes(9 << 20)) + end
    run, _, problem = run_over(tmp_path, samples(range(10)), large)
    assert problem is None
    assert [row["__key__"] for row in records(run)] == [f"{n:05d}" for n in range(13)]


def test_a_tar_that_is_published_as_files_beside_samples_is_named(tmp_path: Path) -> None:
    pictures: dict[bytes | str, bytes] = {f"{n:05d}.png": png(n) for n in range(20, 23)}
    run, summary, problem = run_over(tmp_path, samples(range(10)), pictures)
    assert problem is None and len(records(run)) == 10
    (line,) = [line for line in summary.lines if "unlike those of other tars" in line]
    assert "00001.tar" in line and "`--layout webdataset` reads all tars as samples" in line


@pytest.mark.parametrize("format", ["tar", "zip"])
@pytest.mark.parametrize("junk", ["._{}", "__MACOSX/._{}"])
def test_a_sample_is_whole_although_macos_wrote_a_file_beside_each_of_its_files(
    tmp_path: Path, junk: str, format: str
) -> None:
    files: dict[bytes | str, bytes] = {}
    for name, data in samples(range(10)).items():
        files |= {name: data, junk.format(name): b"attributes"}
    path = tmp_path / f"a.{format}"
    if format == "tar":
        path.write_bytes(tarred(files))
    else:
        path.write_bytes(zip_of([Raw(str(name).encode(), data) for name, data in files.items()]))
    run, _, problem = finish(RunBuilder(path, parts=40, options=WEBDATASET).fetched(tmp_path))
    assert problem is None
    found = [(record["__key__"], "txt" in record) for record in records(run)]
    assert found == [(f"{n:05d}", True) for n in range(10)]


def test_compressed_and_folded_samples_keep_their_folders(tmp_path: Path) -> None:
    path = tmp_path / "train.tar.gz"
    path.write_bytes(gzip.compress(tarred({"./": b"", **samples(range(3), "./train/")})))
    run, _, problem = finish(RunBuilder(path).fetched(tmp_path))
    assert problem is None
    assert [record["image"] for record in records(run)] == [
        f"images/train/{n:05d}.png" for n in range(3)
    ]
    assert records(run)[0]["__key__"] == "train/00000"


def repeated(numbers: Sequence[int], again: int) -> bytes:
    """A tar of samples, of which one comes again at the end, with another picture and caption, and
    without JSON."""
    first = tarred(samples(numbers))
    changed = {f"{again:05d}.png": png(99), f"{again:05d}.txt": b"new"}
    return first.rstrip(b"\0") + bytes(-len(first.rstrip(b"\0")) % 512) + tarred(changed)


ONCE = ("--layout", "webdataset", "--nested")  # of an archive in the archive


@pytest.mark.parametrize(
    ("output", "words"),
    [
        *product(
            ("files", "webdataset", "zip"),
            (
                (),
                ("--part-size", "1K"),
                ("--no-overlap",),
                ONCE,
                (*ONCE, "--strip-components", "0"),
            ),
        ),
        *product(
            ("files", "zip"),  # webdataset needs the checks
            (
                ("--skip-verify",),
                ("--skip-verify", "--part-size", "1K"),
                ("--skip-verify", "--no-overlap"),
            ),
        ),
    ],
    ids=str,
)
def test_of_two_samples_with_one_key_in_an_archive_the_last_one_is_published(
    tmp_path: Path, web: FaultyServer, words: Sequence[str], output: str
) -> None:
    tar = repeated(range(8), again=2)
    web.put("/00000.tar", tarred({"inner.tar": tar}) if "--nested" in words else tar)
    source = ("--url", web.url("/00000.tar"))
    brought = complete_run(tmp_path, source, "--output", output, *words)
    assert not brought.problems, brought.text
    lines = [json.loads(row) for row in brought.files["prompts.jsonl"].splitlines()]
    assert [(row["__key__"], row["txt"], row.get("width")) for row in lines] == [
        *((f"{n:05d}", f"caption {n}, é", 1.5) for n in (0, 1, 3, 4, 5, 6, 7)),
        ("00002", "new", None),
    ]
    receipt = json.loads(Path(brought.plan.dest, "RECEIPT.json").read_bytes())
    assert (receipt["counts"]["records"], receipt["counts"]["images"]) == (8, 8)
    if output == "files":
        assert len(brought.files) == 8 + 1
        assert brought.files["images/00002.png"] == png(99)


def test_a_zip_of_samples_names_the_option_that_reads_it(tmp_path: Path) -> None:
    for name, options in (("auto", None), ("given", WEBDATASET)):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "pairs.zip"
        files = samples(range(40))
        path.write_bytes(zip_of([Raw(str(n).encode(), data) for n, data in files.items()]))
        run, _, problem = finish(
            RunBuilder(path, options=options, parts=1 if options is None else 5).fetched(
                tmp_path / name
            )
        )
        if options is None:
            assert problem is not None
            assert (
                "to read '00000.png' and '00000.txt' as a sample of WebDataset, launch with "
                in (problem.message)
            )
        else:
            assert problem is None
            assert len(records(run)) == 40


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(
            {"a.jpg": png(1), "a.cls": b"7\n", "b.JPG": png(2), "b.cls": b"x"},
            [
                {"image": "images/a.jpg", "__key__": "a", "cls": 7},
                {"image": "images/b.JPG", "__key__": "b", "cls": "x"},
            ],
            id="classes",
        ),
        pytest.param(
            {"a.png": png(1), "a.json": b'{\n "image": "o.png",\n "n": [1.50,\r\n NaN]\n}'},
            [{"image": "images/a.png", "__key__": "a", "image_source": "o.png", "n": "N"}],
            id="an image field of its own",
        ),
        pytest.param(
            {"a.png": png(1), "a.json": b'{"image_source": "web", "image": "o.png"}'},
            [
                {
                    "image": "images/a.png",
                    "__key__": "a",
                    "image_source": "web",
                    "image_source2": "o.png",
                }
            ],
            id="a field with the name that its image field gets",
        ),
        pytest.param(
            {"a.input.png": png(1), "a.output.png": png(2), "a.edit.txt": b"red"},
            [
                {
                    "images": ["images/a.input.png", "images/a.output.png"],
                    "__key__": "a",
                    "input.png": "images/a.input.png",
                    "output.png": "images/a.output.png",
                    "edit.txt": "red",
                }
            ],
            id="two images",
        ),
        pytest.param(
            {"a.0.png": png(1), "a.1.png": png(2), "a.json": b'{"path": "s3://b/a", "id": 1}'},
            [
                {
                    "images": ["images/a.0.png", "images/a.1.png"],
                    "__key__": "a",
                    "0.png": "images/a.0.png",
                    "1.png": "images/a.1.png",
                    "path_source": "s3://b/a",
                    "id": 1,
                }
            ],
            id="two images and a path of their own",
        ),
        pytest.param(
            {"a.png": png(1), "a.mask.png": png(2), "a.npy": b"\x93NUMPY", "a.json": b"[1]"},
            [
                {
                    "image": "images/a.png",
                    "__key__": "a",
                    "mask.png": "images/a.mask.png",
                    "npy": "images/a.npy",
                    "json": [1],
                }
            ],
            id="an image, a mask and an array",
        ),
        pytest.param(
            {"a.png": png(1), "a.txt": b"", "b.png": png(2), "c.txt": b"x", "c.png": png(3)},
            [
                {"image": "images/a.png", "__key__": "a", "txt": ""},
                {"image": "images/b.png", "__key__": "b"},
                {"image": "images/c.png", "__key__": "c", "txt": "x"},
            ],
            id="no data, and data before the image",
        ),
    ],
)
def test_each_file_of_a_sample_has_its_place(
    tmp_path: Path, files: dict[bytes | str, bytes], expected: list[dict[str, Any]]
) -> None:
    run, _, problem = run_over(tmp_path, files)
    assert problem is None
    found = records(run)
    if "n" in expected[0]:
        assert b'"n": [1.50, NaN]}' in (run.staging.dest / "prompts.jsonl").read_bytes()
        found[0]["n"] = "N"
    assert found == expected


@pytest.mark.parametrize("parts", [1, 3])
def test_data_without_an_image_stays_a_file_and_is_reported(tmp_path: Path, parts: int) -> None:
    files = {**samples(range(3)), "x.json": b"{}", "x.txt": b"y", "README": b"z"}
    run, summary, problem = run_over(tmp_path, files, parts=parts)
    assert problem is None
    assert [name for name in published(run) if "x" in name or "README" in name] == [
        "README",
        "images/x.json",
        "images/x.txt",
    ]
    assert "such as 'x.json'" in "\n".join(summary.lines)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"a.json": b'{"n": '}, "line 1: not JSON"),
        ({"a.json": b""}, "line 1: not JSON"),
        ({"a.txt": b"\xff\n\xfe"}, "line 1: not UTF-8"),
    ],
)
def test_damaged_data_is_a_bad_record_that_may_be_dropped(
    tmp_path: Path, data: dict[bytes | str, bytes], words: str
) -> None:
    files = {"a.png": png(1), **data, **samples(range(3))}
    (tmp_path / "error").mkdir()
    _, _, problem = run_over(tmp_path / "error", files)
    assert problem is not None
    assert words in problem.message
    (tmp_path / "drop").mkdir()
    run, _, problem = run_over(
        tmp_path / "drop", files, options=Options(on_bad_record=OnBadRecord.DROP)
    )
    assert problem is None
    assert len(records(run)) == 3


def test_keys_that_two_shards_share_need_folders_of_their_own(tmp_path: Path) -> None:
    first: dict[bytes | str, bytes] = {"0.png": png(1), "0.npy": b"1", "0.txt": b"one"}
    second: dict[bytes | str, bytes] = {"0.png": png(2), "0.npy": b"2", "0.txt": b"two"}
    (tmp_path / "error").mkdir()
    _, _, problem = run_over(tmp_path / "error", first, second)
    assert problem is not None
    assert "launch with --on-collision per-shard (a folder for each archive)" in problem.message
    (tmp_path / "own").mkdir()
    run, _, problem = run_over(
        tmp_path / "own", first, second, options=Options(on_collision=OnCollision.PER_SHARD)
    )
    assert problem is None
    for record, number in zip(records(run), (1, 2), strict=True):
        assert (run.staging.dest / record["image"]).read_bytes() == png(number)
        assert (run.staging.dest / record["npy"]).read_bytes() == str(number).encode()


def test_a_records_file_among_samples_is_refused_with_the_option_that_takes_it(
    tmp_path: Path,
) -> None:
    rows = b"".join(line(f"{n:05d}.png") for n in range(30))
    files: dict[bytes | str, bytes] = {**samples(range(30)), "prompts.jsonl": rows}
    (tmp_path / "tar").mkdir()
    path = tmp_path / "tar" / "x.tar"
    path.write_bytes(tarred(files))
    run = RunBuilder(path).fetched(tmp_path / "tar")
    [result] = run.extract()
    assert result.problem is not None
    assert "launch with --layout websight to use that file as the records" in result.problem.message
    (tmp_path / "given").mkdir()
    run, _, problem = run_over(tmp_path / "given", files, options=WEBSIGHT)
    assert problem is None
    assert len(records(run)) == 30
    assert "00000.txt" in published(run)


def test_records_of_one_shard_and_samples_of_another_are_refused(tmp_path: Path) -> None:
    rows = b"".join(line(f"{n:05d}.png") for n in range(3))
    (tmp_path / "auto").mkdir()
    _, _, problem = run_over(tmp_path / "auto", samples(range(3)), {"prompts.jsonl": rows})
    assert problem is not None
    assert "`--layout websight` uses that file as the records and the samples as files" in (
        problem.message
    )
    (tmp_path / "given").mkdir()
    run, _, problem = run_over(
        tmp_path / "given", samples(range(3)), {"prompts.jsonl": rows}, options=WEBSIGHT
    )
    assert problem is None
    assert len(records(run)) == 3


def test_unverified_samples_are_read_all_the_same(tmp_path: Path) -> None:
    run, _, problem = run_over(
        tmp_path, samples(range(3)), options=Options(verify=Verify.NONE), parts=2
    )
    assert problem is None
    assert len(records(run)) == 3


@pytest.mark.parametrize("damaged", ["prompts.jsonl", "images/00007.png"])
def test_samples_are_repaired_to_the_same_bytes(tmp_path: Path, damaged: str) -> None:
    run, _, problem = run_over(tmp_path, samples(range(9)), parts=3)
    assert problem is None
    file = run.staging.dest / damaged
    before = file.read_bytes()
    file.write_bytes(b"x" * len(before))
    report = verify_dataset(run.staging.dest, deep=True, workers=1, progress=Progress())
    reset_damaged(run.folder, run.plan, report)
    _, _, problem = finish(run)
    assert problem is None
    assert file.read_bytes() == before
    assert verify_dataset(run.staging.dest, deep=True, workers=1, progress=Progress()).ok


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["0.jpg", "0.json", "0.txt", "1.jpg"], True),
        (["a/0.jpg", "a/0.cls", "a/1.jpg", "a/1.cls"], True),
        (["LICENSE", "README.md", "0.png", "0.txt", "1.png", "1.txt"], True),
        (["0.png", "1.png", "2.png"], False),
        (["0.mp3", "0.txt"], False),
        (["images/0.png", "images/0.txt"], False),
        (["x/images/0.png", "x/images/0.txt"], False),
        (["0.png", "0.txt", "prompts.jsonl"], False),
        (["0.png", "0.txt", "train/metadata.jsonl"], False),
        (["0.png", "0.txt", "1.png", "2.png", "3.png"], False),
        (["frame.0001.png", "frame.0002.png"], False),
        ([], False),
        (["com.app_1.png", "com.app_1.json", "com.app_2.png", "com.app_2.json"], False),
        (["1.5_a.jpg", "1.5_a.txt", "1.5_b.jpg", "1.5_b.txt", "c.jpg", "c.txt"], False),
        ([f"{k}.{p}.{e}" for k in "ab" for p in ("in", "out") for e in ("png", "txt")], True),
        (["a.0.jpg", "a.1.jpg", "a.json", "b.0.jpg", "b.json"], True),
    ],
)
def test_what_looks_like_samples(names: list[str], expected: bool) -> None:
    assert looks_like_samples([name.encode() for name in names], Layout()) is expected


def test_a_shard_is_not_cut_within_a_sample_but_within_a_numbered_row() -> None:
    ends = SampleEnds()
    names = [b"a.png", b"a.txt", b"b.png", b"b.x.png", b"c/b.png", b"d"]
    assert [ends.before(name) for name in names] == [True, False, True, False, True, True]
    row = [ends.before(b"frame.%04d.png" % number) for number in range(1000)]
    assert row.index(True, 1) == SampleEnds.MOST
    assert all(row[SampleEnds.MOST :])


@pytest.mark.parametrize("parts", [1, 3])
def test_files_with_one_key_are_no_sample_if_there_are_too_many(tmp_path: Path, parts: int) -> None:
    files: dict[bytes | str, bytes] = {
        f"com.app_{number}.{ending}": data
        for number in range(SampleEnds.MOST)
        for ending, data in (("png", png(number)), ("json", b"{}"))
    }
    path = tmp_path / "d.tar"
    path.write_bytes(tarred(files))
    run = RunBuilder(path, options=WEBDATASET, parts=parts).fetched(tmp_path)
    problems = [result.problem for result in run.extract() if result.problem is not None]
    assert "512 or more files with the key 'com'" in problems[0].message
    assert "--layout files" in problems[0].message


def test_a_number_may_have_more_digits_than_python_converts(tmp_path: Path) -> None:
    files: dict[bytes | str, bytes] = {
        "a.png": png(1),
        "a.id": b"0" + 5000 * b"7",
        "a.count": b"00\n",
    }
    run, _, problem = run_over(tmp_path, files)
    assert problem is None
    text = (run.staging.dest / "prompts.jsonl").read_bytes()
    assert text.endswith(b', "id": ' + 5000 * b"7" + b', "count": 0}\n')


@pytest.mark.parametrize("linked", [b"2.png", b"2.txt"])
def test_a_sample_with_a_link_is_refused_with_the_way_out(tmp_path: Path, linked: bytes) -> None:
    files = {b"1.png": png(1), b"1.txt": b"one", b"2.png": png(1), b"2.txt": b"one"}
    members = [
        header(name, kind=b"1", target=name.replace(b"2", b"1"))
        if name == linked
        else member(name, data)
        for name, data in files.items()
    ]
    source = tmp_path / "source" / "a.tar"
    source.parent.mkdir()
    source.write_bytes(b"".join(members) + END)
    brought = complete_run(tmp_path / "tar", source)
    assert "is in a sample of WebDataset that contains a link; unpack it" in brought.text
    source.unlink()
    for name, data in files.items():  # as the message says
        (source.parent / name.decode()).write_bytes(data)
    brought = complete_run(tmp_path / "folder", source.parent, "--layout", "webdataset")
    assert len(brought.files["prompts.jsonl"].splitlines()) == 2


def test_a_link_that_is_in_no_sample_becomes_a_file(tmp_path: Path) -> None:
    source = tmp_path / "a.tar"
    link = header(b"0-first.png", kind=b"1", target=b"1.png")
    source.write_bytes(member(b"1.png", png(1)) + member(b"1.txt", b"one") + link + END)
    brought = complete_run(tmp_path, source)
    assert brought.problems == []
    assert brought.files["0-first.png"] == png(1)


@pytest.mark.parametrize("again", [(b"a.txt", b"new"), (b"a.png", png(2))], ids=["txt", "png"])
def test_half_of_a_sample_that_was_appended_is_refused(
    tmp_path: Path, again: tuple[bytes, bytes]
) -> None:
    one = [(b"a.png", png(1)), (b"a.txt", b"old")]
    other = [(b"b.png", png(2)), (b"b.txt", b"b")]
    source = tmp_path / "a.tar"
    source.write_bytes(b"".join(starmap(member, [*one, *other, again])) + END)
    brought = complete_run(tmp_path, source)
    assert "has files with the key 'a' that do not follow each other" in brought.text
    assert not brought.files


@pytest.mark.parametrize("size", ["1K", "1G"], ids=["parts of one kind", "one part"])
@pytest.mark.parametrize("kinds", [("png", "txt"), ("txt", "png")])
def test_samples_that_are_sorted_by_extension_are_refused_with_the_way_out(
    tmp_path: Path, kinds: tuple[str, str], size: str
) -> None:
    content = {"png": png(1), "txt": b"one"}
    files = {f"{key}.{kind}": content[kind] for kind in kinds for key in "abc"}
    source = tmp_path / "source" / "a.tar"
    source.parent.mkdir()
    source.write_bytes(tarred(files))
    brought = complete_run(tmp_path / "tar", source, *SAMPLES, "--part-size", size)
    assert "has files with the key 'a' that do not follow each other" in brought.text
    source.unlink()
    for name, data in files.items():  # as the message says
        (source.parent / name).write_bytes(data)
    brought = complete_run(tmp_path / "folder", source.parent, *SAMPLES)
    found = [json.loads(each)["txt"] for each in brought.files["prompts.jsonl"].splitlines()]
    assert found == ["one"] * 3


@pytest.mark.parametrize("first", ["png", "json"])
def test_an_archive_that_is_sorted_by_extension_is_refused_by_tasks_that_see_a_part_each(
    tmp_path: Path, first: str
) -> None:
    files = {f"{n:02d}.png": png(n) for n in range(20)}
    files |= {f"{n:02d}.json": b'{"caption": 1}' for n in range(20)}
    inner = sorted(files, key=lambda name: (not name.endswith(first), name))
    whole = {"a.png": png(50), "a.json": b"{}", **{name: files[name] for name in inner}}
    path = tmp_path / "o.tar"
    path.write_bytes(tarred(whole))
    options = structs.replace(WEBDATASET, on_bad_record=OnBadRecord.DROP)
    run = RunBuilder(path, parts=3, options=options).fetched(tmp_path)
    for part in run.parts:  # each task has a process of its own
        (result,) = extracted(PartExtractor(run.folder, run.plan, Progress()), part)
        assert result.problem is None
    with pytest.raises(ArchiveError, match="do not follow each other") as refused:
        run.finalize()
    assert "o.tar: has files with the key" in refused.value.message


def test_data_without_an_image_stay_files_in_any_part(tmp_path: Path) -> None:
    files = samples(range(9))
    del files["00001.png"], files["00007.png"]
    path = tmp_path / "o.tar"
    path.write_bytes(tarred(files))
    run = RunBuilder(path, parts=3, options=WEBDATASET).fetched(tmp_path)
    for part in run.parts:
        extracted(PartExtractor(run.folder, run.plan, Progress()), part)
    assert run.finish()["counts"]["records"] == 7
