"""Bytes decide what a source's files are; all are published, and archives are opened."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from jobs.errors import Cause, SourceError
from tests.support.archives.hostile import COMPRESSIONS
from tests.support.archives.rawzip import STORED, Raw, zip_of
from tests.support.builders.complete_run import complete_run, planned
from tests.support.builders.contents import in_pieces, line, png, tarred, zipped
from tests.support.servers.hubserver import HubServer
from tests.support.servers.webserver import FaultyServer

IMAGES = {f"images/{number}.png": png(number) for number in range(4)}
RECORDS = b"".join(map(line, IMAGES))
ALL: dict[str, bytes] = {"prompts.jsonl": RECORDS, **IMAGES}
FILES = ("--layout", "files")
ZIP = zip_of([Raw(name.encode(), data, STORED) for name, data in ALL.items()])


TAR = tarred(ALL)
PICTURES = tarred(IMAGES)
# A first block of zstd that is larger than the head of a file; the member is junk.
NOISE = {"._noise": b"".join(random.Random(n).randbytes(900) + bytes(100) for n in range(300))}


def source(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root / "source"


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"d.tar.lz4": COMPRESSIONS["lz4"](TAR)}, id="tar.lz4"),
        pytest.param({"d.tlz4": COMPRESSIONS["lz4"](TAR)}, id="tlz4"),
        pytest.param({"d.tar.lzma": COMPRESSIONS["lzma"](TAR)}, id="tar.lzma"),
        pytest.param({"d.tb2": COMPRESSIONS["bz2"](TAR)}, id="tb2"),
        pytest.param({"d.taz": gzip.compress(TAR)}, id="taz"),
        pytest.param({"dataset": gzip.compress(TAR)}, id="no ending"),
        pytest.param({"dataset": COMPRESSIONS["zst"](tarred(NOISE | ALL))}, id="a large block"),
        pytest.param({"d.bin": ZIP}, id="a suffix without meaning"),
        pytest.param(
            {"i.tar": PICTURES, "prompts.jsonl.zst": COMPRESSIONS["zst"](RECORDS)}, id="jsonl.zst"
        ),
        pytest.param(
            {"i.tar": PICTURES, "prompts.jsonl.lz4": COMPRESSIONS["lz4"](RECORDS)}, id="jsonl.lz4"
        ),
        pytest.param(
            {"w/i.tar": PICTURES, "w/prompts.jsonl.xz": COMPRESSIONS["xz"](RECORDS)},
            id="records in a folder",
        ),
        pytest.param({**IMAGES, "prompts.jsonl.gz": gzip.compress(RECORDS)}, id="loose pictures"),
        pytest.param(
            in_pieces(ZIP, "chunk_aa", "chunk_ab", "chunk_ac"), id="pieces without an ending"
        ),
        pytest.param(
            in_pieces(gzip.compress(TAR), "d.tar.gz00", "d.tar.gz01"), id="pieces of a tar.gz"
        ),
        pytest.param(
            {
                "i.tar": PICTURES,
                **in_pieces(gzip.compress(RECORDS), "prompts.jsonl.gz.0", "prompts.jsonl.gz.1"),
            },
            id="pieces of a file",
        ),
    ],
)
def test_bytes_decide_what_is_opened(tmp_path: Path, files: Mapping[str, bytes]) -> None:
    brought = complete_run(tmp_path, source(tmp_path, files))
    assert brought.problems == []
    assert brought.files == ALL


def test_every_file_is_published_whatever_is_next_to_it(tmp_path: Path) -> None:
    loose = {"notes.txt": b"n\n", "stats.json": b"{}", "README.md": b"# d\n", "x.npz": ZIP}
    data = ("a.nii.gz", "b.vcf.gz", "b.vcf.gz.tbi", "c.bam", "r.fa.gz", "r.fastq.gz")
    loose |= dict.fromkeys(data, gzip.compress(b"x"))
    named_otherwise = ("frames.jgz", "tf/train-00000-of-00002", "tf/train-00001-of-00002")
    loose |= dict.fromkeys(named_otherwise, gzip.compress(b"[]"))
    loose |= {"r.fa.gz.gzi": b"x", "song.mxl": ZIP, "w.pt2": ZIP, "y.zarr.zip": ZIP}
    beside = {".gitattributes": b"*", "SHA256SUMS": b"", "._d.tar": bytes(9)}
    brought = complete_run(tmp_path, source(tmp_path, {"d.tar": TAR, **loose, **beside}))
    assert brought.problems == []
    assert brought.files == {**ALL, **loose}


def test_data_that_are_a_zip_by_name_too_are_an_archive_if_they_are_named_alone(
    tmp_path: Path,
) -> None:
    arrays = {"2020.zarr.zip": zipped({"a/0": b"0"}), "2021.zarr.zip": zipped({"a/0": b"1"})}
    place = source(tmp_path, arrays)
    assert complete_run(tmp_path / "all", place, *FILES).files == arrays
    assert complete_run(tmp_path / "one", place / "2020.zarr.zip", *FILES).files == {"a/0": b"0"}
    with FaultyServer({f"/{name}": data for name, data in arrays.items()}) as server:
        urls = [word for name in arrays for word in ("--url", server.url(f"/{name}"))]
        assert complete_run(tmp_path / "urls", urls, *FILES).files == arrays
        assert complete_run(tmp_path / "url", urls[:2], *FILES).files == {"a/0": b"0"}


@pytest.mark.parametrize(
    ("files", "found"), [({"a.txt": b"a"}, "1 file"), ({"a": b"a", "b": b"b"}, "2 files")]
)
def test_without_records_the_number_of_files_is_said(
    tmp_path: Path, files: dict[str, bytes], found: str
) -> None:
    brought = complete_run(tmp_path, source(tmp_path, {"d.tar": tarred(files)}), *FILES)
    assert f"✓ Found {found}" in brought.lines


def test_a_file_of_many_loose_ones_is_opened_and_the_others_are_copied(tmp_path: Path) -> None:
    images = {f"images/{number:03d}.png": png(number % 9) for number in range(501)}
    records = b"".join(map(line, images))
    more = {"w/prompts.jsonl.gz": gzip.compress(records), "README.md": b"#", "w/a.md5": b"x"}
    place = source(tmp_path, {**{f"w/{name}": data for name, data in images.items()}, **more})
    brought = complete_run(tmp_path, place)
    assert brought.problems == []
    assert len(brought.plan.shards) == 3
    assert brought.files == {**images, "prompts.jsonl": records, "README.md": b"#"}


@pytest.mark.parametrize("layout", [FILES, ()])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("b.tar.br", random.Random(1).randbytes(500)),
        ("b.tar.lz", b"LZIP\1\x0c" + bytes(99)),
        ("b.tar.Z", b"\x1f\x9d\x90" + bytes(99)),
        ("b.cpio", b"070701" + b"0" * 99),
        ("b.tar.gz.gpg", random.Random(2).randbytes(500)),
        ("b.tar.enc", b"Salted__" + bytes(99)),
        ("b", b"7z\xbc\xaf\x27\x1c" + bytes(99)),
        ("b.7z.001", b"7z\xbc\xaf\x27\x1c" + bytes(99)),
    ],
)
def test_an_unsupported_format_is_refused_at_launch(
    tmp_path: Path, name: str, data: bytes, layout: tuple[str, ...]
) -> None:
    place = source(tmp_path, {"a.tar": TAR, name: data})
    with pytest.raises(SourceError, match="not supported; unpack it with") as refused:
        complete_run(tmp_path / "refused", place, *layout)
    assert refused.value.cause is Cause.UNSUPPORTED
    exclude = refused.value.message.split("--exclude ")[1].split("'")[1]
    brought = complete_run(tmp_path / "left out", place, *layout, "--exclude", exclude)
    assert brought.files == ALL


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        pytest.param({"e.tar": bytes(4096), "e.tar.aria2": b"\0\1"}, None, id="aria2"),
        pytest.param({"e.tar.gz.part": b"x"}, None, id="a browser's part"),
        pytest.param(
            {"e.tar": b"version https://git-lfs.github.com/spec/v1\n"}, "git lfs pull", id="pointer"
        ),
    ],
)
def test_what_is_not_the_file_itself_is_refused(
    tmp_path: Path, files: dict[str, bytes], remedy: str | None
) -> None:
    place = source(tmp_path, {"a.tar": TAR, **files})
    with pytest.raises(SourceError, match=remedy or "is an unfinished download") as refused:
        complete_run(tmp_path / "refused", place)
    if remedy is None:
        exclude = refused.value.message.split("--exclude ")[1].split("'")[1]
        assert complete_run(tmp_path / "left out", place, "--exclude", exclude).files == ALL


def test_pieces_that_are_named_like_unfinished_downloads_are_joined_by_the_option_that_is_named(
    tmp_path: Path,
) -> None:
    place = source(tmp_path, in_pieces(ZIP, *(f"w/d_part_a{mark}.zip.part" for mark in "abc")))
    with pytest.raises(SourceError, match="if these files are the pieces of one") as refused:
        complete_run(tmp_path / "refused", place)
    join = refused.value.message.split("--join ")[1].strip("'")
    assert complete_run(tmp_path / "joined", place, "--join", join).files == ALL


def test_pieces_in_the_images_folder_are_extracted_there(tmp_path: Path) -> None:
    pictures = {f"{number}.png": png(number) for number in range(4)}
    split = in_pieces(tarred(pictures), *(f"images/p.tar.parta{mark}" for mark in "abc"))
    place = source(tmp_path, {**split, "images/9.png": png(9), "prompts.jsonl": RECORDS})
    with pytest.raises(SourceError, match="launch with --nested to extract each into the folder"):
        complete_run(tmp_path / "refused", place)
    for words in (("--nested",), ("--join", "images/p.tar.part*")):
        brought = complete_run(tmp_path / words[0], place, *words)
        assert brought.problems == []
        assert brought.files == {**ALL, "images/9.png": png(9)}


def test_archives_and_tables_are_taken_as_the_user_says(tmp_path: Path) -> None:
    place = source(tmp_path, {"a.tar": TAR, "data/b.parquet": b"PAR1"})
    with pytest.raises(SourceError, match="may be the same data"):
        complete_run(tmp_path / "refused", place)
    brought = complete_run(tmp_path / "archives", place, "--exclude", "*.parquet")
    assert brought.files == ALL


def test_an_archive_that_nobody_saw_at_launch_is_never_published_unopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.sources.local._MOST_HEADS", 0)
    place = source(tmp_path, {"a.txt": b"a", "b.bin": TAR})
    for name, folder in (("tree", place), ("file", place / "b.bin")):
        brought = complete_run(tmp_path / name, folder, *FILES)
        assert "'b.bin' is an archive (tar) that would stay unopened" in brought.text
        assert brought.files == {}
    monkeypatch.undo()
    assert complete_run(tmp_path / "alone", place, *FILES, "--include", "b.bin").files == ALL


def test_an_archive_within_a_compressed_file_is_not_published_unopened(tmp_path: Path) -> None:
    place = source(tmp_path, {"d.zip.gz": gzip.compress(ZIP)})
    brought = complete_run(tmp_path / "plain", place, *FILES)
    assert "--nested" in brought.text and brought.files == {}
    assert complete_run(tmp_path / "nested", place, *FILES, "--nested").files == ALL


def test_one_piece_selects_its_complete_set(tmp_path: Path) -> None:
    names = ("chunk_aa", "chunk_ab", "chunk_ac")
    place = source(tmp_path, {**in_pieces(ZIP, *names), "other.tar": b"x"})
    for index, name in enumerate(names):
        assert complete_run(tmp_path / str(index), place / name).files == ALL


Served = Callable[[Mapping[str, bytes]], Sequence[str]]


@pytest.fixture(params=["hub", "url"])
def served(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    web: FaultyServer,
    hub: HubServer,
) -> Served:
    """Has files served by a Hub or a web site; the words that name them."""
    for name, value in hub.env.items():
        monkeypatch.setenv(name, value)

    def serve(files: Mapping[str, bytes]) -> Sequence[str]:
        if request.param == "hub":
            hub.add_repo("org/d", dict(files))
            return ("--hf-repo", "org/d")
        for name, data in files.items():
            web.put(f"/{name}", data)
        return [word for name in files for word in ("--url", web.url(f"/{name}"))]

    return serve


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"dataset": gzip.compress(TAR), "notes.txt": b"n"}, id="no ending"),
        pytest.param({"d.tlz4": COMPRESSIONS["lz4"](TAR), "notes.txt": b"n"}, id="tlz4"),
        pytest.param({**in_pieces(ZIP, "x-00", "x-01", "x-02"), "notes.txt": b"n"}, id="pieces"),
        pytest.param(
            {
                "i.tar": PICTURES,
                **in_pieces(
                    COMPRESSIONS["xz"](RECORDS), "prompts.jsonl.xz.aa", "prompts.jsonl.xz.ab"
                ),
                "notes.txt": b"n",
            },
            id="pieces of a file",
        ),
    ],
)
def test_servers_are_asked_for_first_bytes(
    tmp_path: Path, served: Served, files: Mapping[str, bytes]
) -> None:
    brought = complete_run(tmp_path, served(files))
    assert brought.problems == []
    assert brought.files == {**ALL, "notes.txt": b"n"}


def test_an_unsupported_format_on_a_server_is_refused_at_launch(
    tmp_path: Path, served: Served
) -> None:
    with pytest.raises(SourceError, match="cpio is not supported"):
        complete_run(tmp_path, served({"a.tar": TAR, "b": b"070701" + b"0" * 99}), *FILES)


def test_a_gap_is_found_on_servers(tmp_path: Path, served: Served) -> None:
    files = in_pieces(ZIP, "x-00", "x-01", "x-02")
    del files["x-01"]
    with pytest.raises(SourceError, match="01 of them is missing"):
        complete_run(tmp_path, served(files))


def test_the_hub_is_asked_for_few_first_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer
) -> None:
    for name, value in hub.env.items():
        monkeypatch.setenv(name, value)
    texts = {f"t/{number}": b"text" for number in range(200)}
    hub.add_repo("org/d", {**{f"s-{n}.tar": TAR for n in range(50)}, **texts})
    monkeypatch.setattr("jobs.sources.hub.HubSource.most_heads", 40)
    planned(tmp_path, ("--hf-repo", "org/d"), *FILES)
    assert len(hub.asked("/datasets/org/d/resolve/*")) <= 40


def test_records_that_are_there_twice_count_once(tmp_path: Path) -> None:
    brought = complete_run(tmp_path, source(tmp_path, {"d.tar": TAR, "prompts.jsonl": RECORDS}))
    assert brought.files == ALL
    assert "its records are the same as those of d.tar and are counted once" in brought.text


def parquet(**columns: list[object]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


@pytest.mark.parametrize("words", [(), FILES], ids=["records", "files"])
def test_a_table_that_has_nothing_to_do_with_images_is_published_as_the_file_it_is(
    tmp_path: Path, words: Sequence[str]
) -> None:
    table = parquet(url=["https://host/a", "https://host/b.jpg"], width=[1, 2])
    files = {"00000.tar": TAR, "00000.parquet": table, "00000_stats.json": b"{}"}
    with pytest.raises(SourceError, match="--include '\\*'"):
        complete_run(tmp_path, source(tmp_path, files), *words)
    brought = complete_run(tmp_path, tmp_path / "source", *words, "--include", "*")
    assert brought.problems == []
    assert brought.files == {**ALL, "00000.parquet": table, "00000_stats.json": b"{}"}


def test_a_table_in_a_folder_with_loose_images_is_published_as_the_file_it_is(
    tmp_path: Path,
) -> None:
    files = {**ALL, "meta/sizes.parquet": parquet(key=["a"], size=[1])}
    assert complete_run(tmp_path, source(tmp_path, files)).files == files


def test_text_tables_alone_need_the_layout_that_the_message_names(tmp_path: Path) -> None:
    files = {"train.parquet": parquet(text=["a", "b"])}
    assert "--layout files" in complete_run(tmp_path, source(tmp_path, files)).text
    brought = complete_run(tmp_path / "again", tmp_path / "source", *FILES)
    assert (brought.problems, brought.files) == ([], files)
