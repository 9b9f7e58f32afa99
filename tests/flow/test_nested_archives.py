"""Archives in archives: each is an archive of its own, whose files replace no other's."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from jobs.download.stage import run_download
from jobs.errors import SourceError
from jobs.runtime.progress import Progress
from jobs.storage import manifest
from jobs.storage.staging import Staging
from tests.flow.test_odd_archives import put, zipped
from tests.support.archives.rawtar import END, header, member
from tests.support.archives.rawzip import STORED, Raw, zip_of
from tests.support.builders.complete_run import complete_run, finished, planned
from tests.support.builders.contents import images, line, png, records, tarred

FILES = ("--layout", "files", "--nested")
KEEP, OWN = ("--on-collision", "keep-first"), ("--on-collision", "per-shard")
Pack = Callable[[Mapping[str, bytes]], bytes]

ONE, TWO = png(1), png(2)
TREES = {"n01.tar": tarred({"d/1.png": ONE}), "n02.tar": tarred({"d/1.png": TWO})}


def stored(files: Mapping[str, bytes]) -> bytes:
    return zipped(files, method=STORED)


def nested(
    root: Path, files: Mapping[str, bytes], pack: Pack = tarred, name: str = "o.tar"
) -> Path:
    return put(root / "source" / name, pack(files))


@pytest.mark.parametrize("pack", [tarred, stored])
@pytest.mark.parametrize("size", ["512M", "1K"])
def test_inner_archives_that_hold_other_bytes_under_one_path_collide(
    tmp_path: Path, pack: Pack, size: str
) -> None:
    source = nested(tmp_path, TREES, pack, "o.tar" if pack is tarred else "o.zip")
    brought = complete_run(tmp_path, source, *FILES, "--part-size", size)
    assert (len(brought.plan.parts()) > 1) is (size == "1K")
    assert "1 path has different bytes in two archives" in brought.text
    assert "n01.tar of shard" in brought.text and "from n02.tar" in brought.text
    assert "--on-collision keep-first" in brought.text and "per-shard" in brought.text
    assert brought.files == {}


@pytest.mark.parametrize("pack", [tarred, stored])
@pytest.mark.parametrize("size", ["512M", "1K"])
def test_both_remedies_that_are_named_work(tmp_path: Path, pack: Pack, size: str) -> None:
    source = nested(tmp_path, TREES, pack, "o.tar" if pack is tarred else "o.zip")
    kept = complete_run(tmp_path / "keep", source, *FILES, *KEEP, "--part-size", size)
    assert kept.problems == []
    assert kept.files == {"d/1.png": ONE}
    assert "1 path is in several archives; the first archive's file was kept" in kept.text
    own = complete_run(tmp_path / "own", source, *FILES, *OWN, "--part-size", size)
    assert own.problems == []
    assert own.files == {"0000-o/n01.tar/d/1.png": ONE, "0000-o/n02.tar/d/1.png": TWO}


@pytest.mark.parametrize("output", ["files", "webdataset"])
@pytest.mark.parametrize("is_nested", [True, False])
def test_records_in_whose_place_another_archives_image_is_published_are_counted(
    tmp_path: Path, output: str, is_nested: bool
) -> None:
    own = {
        f"n{n}.tar": tarred(
            {
                "images/s.png": png(70 + n),
                **images([n]),
                "prompts.jsonl": records([n]) + line("images/s.png"),
            }
        )
        for n in range(2)
    }
    if is_nested:
        source = nested(tmp_path, own)
    else:
        for name, data in own.items():
            source = put(tmp_path / "source" / name, data).parent
    words = ("--nested", *KEEP, "--output", output)
    brought = complete_run(tmp_path, source, *words)
    said = "! 1 record names an image in whose place another archive's is published: "
    assert said in brought.text
    archive = "o.tar: n1.tar" if is_nested else "source/n1.tar"
    assert f"{said}{archive}, line 2: names 'images/s.png', which is the file of" in brought.text


def test_the_order_in_which_parts_are_extracted_changes_nothing(tmp_path: Path) -> None:
    source = nested(tmp_path, {**TREES, "d/1.png": png(3)})
    folder, plan = planned(tmp_path, source, *FILES, *KEEP, "--part-size", "1K")
    run_download(folder, plan, [plan.shards[0].id], Progress(), refetch=frozenset())
    brought = finished(folder, plan, list(reversed(plan.parts())))
    assert brought.problems == []
    assert brought.files == {"d/1.png": ONE}


def test_a_resume_finds_the_collision_that_was_extracted_before(tmp_path: Path) -> None:
    source = nested(tmp_path, TREES)
    folder, plan = planned(tmp_path, source, *FILES, "--part-size", "1K", "--no-overlap")
    run_download(folder, plan, [plan.shards[0].id], Progress(), refetch=frozenset())
    first, *rest = plan.parts()
    assert "not extracted" in finished(folder, plan, [first]).text
    assert "different bytes in two archives" in finished(folder, plan, rest).text


def test_the_same_bytes_in_two_inner_archives_are_fine(tmp_path: Path) -> None:
    inner = {"LICENSE": b"MIT\n", "d/1.png": ONE}
    source = nested(tmp_path, {"a.tar": tarred(inner), "b.zip": zipped(inner), "LICENSE": b"MIT\n"})
    brought = complete_run(tmp_path, source, *FILES)
    assert brought.problems == []
    assert brought.files == inner


@pytest.mark.parametrize("first", [True, False])
def test_an_inner_archive_and_the_outer_ones_own_file_collide(tmp_path: Path, first: bool) -> None:
    own = {"d/1.png": TWO}
    inner = {"a.tar": tarred({"d/1.png": ONE})}
    source = nested(tmp_path, {**own, **inner} if first else {**inner, **own})
    assert (
        "different bytes in two archives" in complete_run(tmp_path / "error", source, *FILES).text
    )
    kept = complete_run(tmp_path / "keep", source, *FILES, *KEEP)
    assert kept.files == {"d/1.png": TWO if first else ONE}
    own_folders = complete_run(tmp_path / "own", source, *FILES, *OWN)
    assert own_folders.files == {"0000-o/d/1.png": TWO, "0000-o/a.tar/d/1.png": ONE}


def test_inner_archives_of_two_outer_ones_collide(tmp_path: Path) -> None:
    put(tmp_path / "source" / "p.tar", tarred({"a.tar": tarred({"d/1.png": ONE})}))
    source = put(tmp_path / "source" / "q.tar", tarred({"a.tar": tarred({"d/1.png": TWO})}))
    assert (
        "different bytes in two archives" in complete_run(tmp_path / "error", source, *FILES).text
    )
    assert complete_run(tmp_path / "keep", source, *FILES, *KEEP).files == {"d/1.png": ONE}
    own = complete_run(tmp_path / "own", source, *FILES, *OWN)
    assert own.files == {"0000-p/a.tar/d/1.png": ONE, "0001-q/a.tar/d/1.png": TWO}


def test_archives_that_differ_in_their_ending_have_folders_of_their_own(tmp_path: Path) -> None:
    files = {"a.tar": tarred({"1.png": ONE}), "a.zip": zipped({"1.png": TWO}), "a/1.png": png(3)}
    own = complete_run(tmp_path, nested(tmp_path, files), *FILES, *OWN)
    assert own.problems == []
    assert len(own.files) == 3


@pytest.mark.parametrize("size", ["512M", "1K"])
@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_within_one_archive_the_last_one_counts_inner_archives_too(
    tmp_path: Path, ending: str, size: str
) -> None:
    old = tarred({"1.png": ONE, "only-in-the-old-one.png": ONE})
    new = tarred({"1.png": ONE, "2.png": ONE}) + tarred({"2.png": TWO})
    data = b"".join(member(b"a.tar", data) for data in (old, new)) + END
    if ending == "zip":
        data = zip_of([Raw(b"a.tar", data, STORED) for data in (old, new)])
    source = put(tmp_path / "source" / f"o.{ending}", data)
    brought = complete_run(tmp_path, source, *FILES, "--part-size", size)
    assert brought.problems == []
    assert brought.files == {"a/1.png": ONE, "a/2.png": TWO}


def test_records_of_inner_archives_are_merged_and_none_is_lost(tmp_path: Path) -> None:
    def pages(number: int) -> dict[str, bytes]:
        name = f"images/{number}.png"
        return {"prompts.jsonl": line(name, number=number).rstrip(), name: png(number)}

    files = {"a.tar": tarred(pages(1)), **pages(2), "b.zip": zipped(pages(3))}
    brought = complete_run(tmp_path, nested(tmp_path, files), "--nested")
    assert brought.problems == []
    records = [json.loads(text) for text in brought.files["prompts.jsonl"].splitlines()]
    assert sorted(record["number"] for record in records) == [1, 2, 3]
    assert "✓ Found 3 images" in brought.text


def test_records_follow_their_images_into_the_folder_of_their_archive(tmp_path: Path) -> None:
    def pages(image: bytes) -> dict[str, bytes]:
        return {"prompts.jsonl": line("images/1.png"), "images/1.png": image}

    files = {"a.tar": tarred(pages(ONE)), "b.zip": zipped(pages(TWO)), **pages(png(3))}
    source = nested(tmp_path, files)
    assert (
        "different bytes in two archives"
        in complete_run(tmp_path / "error", source, "--nested").text
    )
    own = complete_run(tmp_path / "own", source, "--nested", *OWN)
    assert own.problems == []
    records = [json.loads(text) for text in own.files["prompts.jsonl"].splitlines()]
    found = {own.files[record["image"]] for record in records}
    assert found == {ONE, TWO, png(3)}


def test_links_of_an_inner_archive_mean_its_own_files(tmp_path: Path) -> None:
    def linked(data: bytes) -> bytes:
        link = header(b"again.png", kind=b"1", target=b"d/1.png")
        return member(b"d/1.png", data) + link + END

    source = nested(tmp_path, {"a.tar": linked(ONE), "b.tar": linked(TWO)})
    own = complete_run(tmp_path / "own", source, *FILES, *OWN)
    assert own.files == {
        f"0000-o/{name}/{file}": data
        for name, data in (("a.tar", ONE), ("b.tar", TWO))
        for file in ("d/1.png", "again.png")
    }
    kept = complete_run(tmp_path / "keep", source, *FILES, *KEEP)
    assert kept.problems == []
    assert kept.files == {"d/1.png": ONE, "again.png": ONE}


def test_a_link_of_the_outer_archive_means_the_outer_file_whatever_an_inner_one_wrote(
    tmp_path: Path,
) -> None:
    link = header(b"again.png", kind=b"1", target=b"d/1.png")
    inner = tarred({"d/1.png": TWO})
    data = member(b"d/1.png", ONE) + member(b"a.tar", inner) + link + END
    source = put(tmp_path / "source" / "o.tar", data)
    kept = complete_run(tmp_path, source, *FILES, *KEEP)
    assert kept.problems == []
    assert kept.files == {"d/1.png": ONE, "again.png": ONE}


def test_the_members_of_a_shard_in_parts_are_counted_without_those_within(tmp_path: Path) -> None:
    inner = {f"{number}.png": png(number) for number in range(9)}
    source = nested(tmp_path, {"a.tar": tarred(inner), "b.png": ONE, "c.png": TWO})
    brought = complete_run(tmp_path, source, *FILES, "--part-size", "1K")
    assert brought.problems == []
    assert len(brought.files) == 11


def test_an_inner_archives_files_are_written_next_to_it(tmp_path: Path) -> None:
    one = zipped({"v0/1.png": ONE, "v0/2.png": TWO})
    files = {"zips/v0.zip": one, "zips/v1.zip": zipped({"v1/1.png": TWO})}
    brought = complete_run(tmp_path, nested(tmp_path, files), *FILES)
    assert sorted(brought.files) == ["zips/v0/1.png", "zips/v0/2.png", "zips/v1/1.png"]


@pytest.mark.parametrize("pack", [tarred, zipped])
@pytest.mark.parametrize(
    ("name", "inner", "published"),
    [
        ("train/n01", ["n01_1.png", "n01_2.png"], ["train/n01/n01_1.png", "train/n01/n01_2.png"]),
        ("n01", ["1.png"], ["n01/1.png"]),
        ("n01", ["./1.png", ".DS_Store", "__MACOSX/._1.png"], ["n01/1.png"]),
        ("part1", ["1.png", "img/2.png"], ["1.png", "img/2.png"]),
        ("labels.csv", ["labels.csv"], ["labels.csv"]),
        ("roads", ["roads.shp", "roads.dbf"], ["roads.dbf", "roads.shp"]),
        (".incoming", ["1.png"], ["1.png"]),
        (".", ["1.png"], ["1.png"]),
    ],
)
def test_files_that_are_in_no_folder_of_their_archive_get_one_with_its_name(
    tmp_path: Path, pack: Pack, name: str, inner: list[str], published: list[str]
) -> None:
    archive = {f"{name}.{'tar' if pack is tarred else 'zip'}": pack(dict.fromkeys(inner, ONE))}
    brought = complete_run(tmp_path, nested(tmp_path, archive), *FILES)
    assert brought.problems == []
    assert sorted(brought.files) == published


@pytest.mark.parametrize("other", ["n01/1.png", "n01"])
def test_a_folder_with_an_archives_name_replaces_no_file(tmp_path: Path, other: str) -> None:
    files = {"n01.tar": tarred({"1.png": ONE}), other: TWO}
    brought = complete_run(tmp_path, nested(tmp_path, files), *FILES)
    assert "different bytes in two archives" in brought.text or "a folder" in brought.text
    assert brought.files == {}


@pytest.mark.parametrize(
    "archives", [{"a.tar": range(4)}, {"a.tar": range(2), "b.zip": range(2, 4)}]
)
def test_records_name_images_of_several_archives_as_those_of_one_folder(
    tmp_path: Path, archives: Mapping[str, range]
) -> None:
    files = {"prompts.jsonl": b"".join(line(f"{n}.png") for n in range(4))}
    for name, numbers in archives.items():
        pack = tarred if name.endswith(".tar") else zipped
        files[name] = pack({f"{n}.png": png(n) for n in numbers})
    brought = complete_run(tmp_path, nested(tmp_path, files), "--nested")
    assert brought.problems == []
    assert brought.files == {
        **{f"{n}.png": png(n) for n in range(4)},
        "prompts.jsonl": files["prompts.jsonl"],
    }


PICTURES = {f"images/{number}.png": png(number) for number in range(4)}


def parts(folder: str = "", *, first: int = 0, last: int = 4) -> dict[str, bytes]:
    """Some of the pictures as an archive within ``images/`` has them, below ``folder``."""
    return {f"{folder}{number}.png": png(number) for number in range(first, last)}


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(
            {
                "images/part1.zip": zipped(parts(last=2)),
                "images/part2.tar": tarred(parts(first=2)),
            },
            id="two",
        ),
        pytest.param({"images/all.tar.gz": gzip.compress(tarred(parts("images/")))}, id="top"),
        pytest.param(
            {
                f"images/all.tar.a{c}": tarred(parts())[n * 3000 :][:3000]
                for n, c in enumerate("abcd")
            },
            id="pieces",
        ),
        pytest.param({"data/images/all.zip": zipped(parts())}, id="one folder down"),
    ],
)
@pytest.mark.parametrize("words", [(), ("--part-size", "1K")], ids=["whole", "parts"])
def test_archives_that_are_alone_in_the_images_folder_are_extracted_into_it(
    tmp_path: Path, files: dict[str, bytes], words: tuple[str, ...]
) -> None:
    home = "data/" if any(name.startswith("data/") for name in files) else ""
    put(tmp_path / "source" / f"{home}prompts.jsonl", b"".join(map(line, PICTURES)))
    for name, data in files.items():
        put(tmp_path / "source" / name, data)
    brought = complete_run(tmp_path, tmp_path / "source", *words)
    assert brought.problems == []
    assert {name: data for name, data in brought.files.items() if ".png" in name} == PICTURES
    assert "corrected" not in brought.text


def test_an_archive_within_the_images_folder_may_bring_records(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 2)):
        some = parts("images/", first=first, last=first + 2)
        records = {"prompts.jsonl": b"".join(map(line, some))}
        put(tmp_path / "source" / "images" / f"{name}.tar", tarred({**some, **records}))
    put(tmp_path / "source" / "README.md", b"x")
    brought = complete_run(tmp_path, tmp_path / "source")
    assert brought.problems == []
    assert brought.files["prompts.jsonl"] == b"".join(map(line, PICTURES))


def test_archives_within_a_folder_of_the_images_go_there(
    tmp_path: Path,
) -> None:
    for name in ("train", "test"):
        put(tmp_path / "source" / "images" / name / "all.zip", zipped({"0.png": png(len(name))}))
    records = [f"images/{name}/0.png" for name in ("train", "test")]
    source = put(tmp_path / "source" / "prompts.jsonl", b"".join(map(line, records)))
    brought = complete_run(tmp_path / "one", source)
    assert brought.problems == []
    assert {name for name in brought.files if ".png" in name} == set(records)


def test_archives_among_images_are_refused_with_the_option_that_extracts_them(
    tmp_path: Path,
) -> None:
    put(tmp_path / "source" / "images" / "0.png", png(0))
    put(tmp_path / "source" / "images" / "rest.zip", zipped(parts(first=1)))
    source = put(tmp_path / "source" / "prompts.jsonl", b"".join(map(line, PICTURES)))
    with pytest.raises(SourceError, match=r"the images folder contains archives .* --nested"):
        complete_run(tmp_path / "plain", source)
    brought = complete_run(tmp_path / "nested", source, "--nested")
    assert brought.problems == []
    assert {name: data for name, data in brought.files.items() if ".png" in name} == PICTURES


def test_without_the_option_a_hint_names_it(tmp_path: Path) -> None:
    data = {"n03.npz": b"PK", "n04.csv.gz": b"x", "n05.zarr.zip": b"PK"}
    source = nested(tmp_path, {**TREES, **data})
    brought = complete_run(tmp_path, source, "--layout", "files")
    assert brought.problems == []
    assert "2 files are archives themselves" in brought.text
    assert "launch with --nested to extract them in place" in brought.text


def test_without_the_option_a_hint_names_archives_that_it_would_not_open(tmp_path: Path) -> None:
    files = {"a.rar": b"Rar!\x1a\7\1\0", "b.tar.gz.aa": b"x", "news.ar": b"n", "t.parquet": b"PAR1"}
    brought = complete_run(tmp_path, nested(tmp_path, files), "--layout", "files")
    assert brought.problems == []
    assert "2 files are archives that are not opened inside archives, such as 'b." in brought.text


@pytest.mark.parametrize("words", [(), ("--nested",), ("--output", "zip")])
def test_a_hint_names_a_zip_whose_name_has_no_ending(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    source = nested(tmp_path, {"TFR": zipped({"1.png": ONE}), "labels": b"text"})
    brought = complete_run(tmp_path, source, "--layout", "files", *words)
    assert brought.problems == []
    assert "1 file is an archive that is not opened inside archives, such as 'TFR'" in brought.text


def test_an_inner_archive_that_is_not_read_stays_and_is_reported(tmp_path: Path) -> None:
    inner = bz2.compress(tarred({"1.png": ONE}))
    files = {"a.rar": b"Rar!", "b.tar.gz.aa": b"x", "c.gz": b"x", "d.tbz": inner}
    files |= {"e.tar.gz_00": b"x", "f.zip.part01": b"x", "g.parquet": b"x", "h.tar.txt": b"x"}
    brought = complete_run(tmp_path, nested(tmp_path, files), *FILES)
    assert brought.problems == []
    del files["d.tbz"]
    assert brought.files == {"d/1.png": ONE, **files}
    assert "5 files inside it stay packed" in brought.text
    assert "unpack the archive and launch with --local-path on the folder" in brought.text


def test_a_table_within_an_archive_is_named_where_records_are_missing(tmp_path: Path) -> None:
    brought = complete_run(tmp_path, nested(tmp_path, {"data/x.parquet": b"PAR1"}))
    assert "'data/x.parquet' provides none, because it is inside an archive" in brought.text


def test_compressed_records_within_an_archive_are_named_where_records_are_missing(
    tmp_path: Path,
) -> None:
    files = {"a.png": ONE, "metadata.jsonl.gz": gzip.compress(line("a.png"))}
    brought = complete_run(tmp_path, nested(tmp_path, files))
    assert "'metadata.jsonl.gz' provides none, because it is compressed inside" in brought.text


def test_records_none_of_which_names_an_image_are_refused_with_the_layout_that_takes_them(
    tmp_path: Path,
) -> None:
    source = nested(tmp_path, {"prompts.jsonl": b'{"text": "a"}\n{"text": "b"}\n'})
    (problem,) = complete_run(tmp_path / "one", source).problems
    assert "launch with --layout files" in problem
    assert "--on-bad-record" not in problem  # drop would leave no record
    assert complete_run(tmp_path / "two", source, "--layout", "files").problems == []


def test_a_top_folder_that_shows_late_in_an_inner_archive_is_judged_by_all_of_it(
    tmp_path: Path,
) -> None:
    images = {f"site/images/{number}.bin": bytes([number]) * (3 << 20) for number in range(4)}
    files = {"site/prompts.jsonl": b"", **images, "other/readme.txt": b"late"}
    inner = {"a.tar.gz": gzip.compress(tarred(files), 1)}
    brought = complete_run(tmp_path, nested(tmp_path, inner), "--nested", "--skip-verify")
    assert "site/images/0.bin" in brought.files and "other/readme.txt" in brought.files


def test_the_manifest_names_the_nested_archive_of_each_file(tmp_path: Path) -> None:
    folder, plan = planned(tmp_path, nested(tmp_path, TREES), *FILES)
    run_download(folder, plan, [plan.shards[0].id], Progress(), refetch=frozenset())
    finished(folder, plan, list(plan.parts()))
    [part] = plan.parts()
    entries = manifest.read_manifest(folder.manifest(part))
    found = [(entry.origin, entry.inner and entry.inner.archive) for entry in entries]
    assert found == [(0, "n01.tar"), (1, "n02.tar")]
    assert not list(Staging(plan).archives.iterdir())


def test_a_path_that_is_a_file_here_and_a_folder_there_names_its_remedy(tmp_path: Path) -> None:
    files = {"a.tar": tarred({"d/1.png": ONE}), "b.tar": tarred({"d/1.png/2.png": TWO})}
    source = nested(tmp_path, files)
    brought = complete_run(tmp_path / "error", source, *FILES)
    assert "is both a file and a folder" in brought.text
    assert "--on-collision per-shard" in brought.text
    own = complete_run(tmp_path / "own", source, *FILES, *OWN)
    assert own.files == {"0000-o/a.tar/d/1.png": ONE, "0000-o/b.tar/d/1.png/2.png": TWO}
