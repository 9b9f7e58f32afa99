"""Sound archives as odd tools make them, brought from the command line to the published files."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from msgspec import structs

from jobs.archives.limits import FLOOR
from jobs.archives.zip.archive import ZipArchive
from jobs.archives.zip.entry import XZ, ZSTD
from jobs.download.stage import run_download
from jobs.errors import ArchiveError, Cause, SourceError
from jobs.extras import zstd
from jobs.model import Layout, Options, Output
from jobs.runtime.progress import Progress
from jobs.storage import atomic
from tests.support.archives.rawtar import END, header, member
from tests.support.archives.rawzip import DEFLATE, STORED, Raw, zip_of
from tests.support.archives.reading import opened
from tests.support.builders.complete_run import complete_run, finished
from tests.support.builders.contents import line, png, tarred
from tests.support.builders.runs import RunBuilder
from tests.support.servers.webserver import FaultyServer

UNIX, FAT, NTFS, NTFS_TOO, VFAT = 3, 0, 10, 11, 14


def put(path: Path, data: bytes) -> Path:
    """The file's folder, which is the source of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.parent


def zipped(
    files: Mapping[str, bytes], *, host: int = UNIX, encoding: str = "utf-8", method: int = DEFLATE
) -> bytes:
    """A zip whose names are in ``encoding``, made on the system ``host``."""
    return zip_of(
        [
            Raw(name.encode(encoding), data, method, made_by=host << 8 | 20, attributes=0)
            for name, data in files.items()
        ]
    )


def dataset(*names: str) -> dict[str, bytes]:
    """Records and the images that they name."""
    images = {name: png(number) for number, name in enumerate(names)}
    return {"prompts.jsonl": b"".join(map(line, images)), **images}


PAGES = dataset(*(f"images/{number:03d}.png" for number in range(6)))


# Folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--output", "zip")], ids=["files", "zip"])
def test_records_in_a_copied_folder_may_be_links_and_have_links(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    for name in ("train/0.png", "train/1.png"):
        source = put(tmp_path / "source" / name, png(0)).parent
    put(source / "lists" / "first", line("0.png") + line("1.png"))
    (source / "train" / "metadata.jsonl").symlink_to("../lists/first")
    (source / "latest").symlink_to("train/metadata.jsonl")
    (source / "train" / "2.png").symlink_to("0.png")
    brought = complete_run(tmp_path, source, *words)
    assert brought.problems == []
    if words:
        return
    assert brought.files["metadata.jsonl"] == line("train/0.png") + line("train/1.png")
    assert brought.files["latest"] == brought.files["lists/first"] == line("0.png") + line("1.png")
    assert (tmp_path / "data" / "train" / "2.png").readlink() == Path("0.png")


def test_the_cache_of_the_hubs_client_is_refused_with_the_snapshot(tmp_path: Path) -> None:
    repo = tmp_path / "datasets--org--name"
    source = put(repo / "blobs" / "0123", b"a").parent
    put(repo / "refs" / "main", b"abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "a.txt").symlink_to("../../blobs/0123")
    with pytest.raises(SourceError, match=r"such as '.*/snapshots/abc'"):
        complete_run(tmp_path, source, "--layout", "files")
    brought = complete_run(tmp_path, repo / "snapshots" / "abc", "--layout", "files")
    assert brought.files == {"a.txt": b"a"}


def test_that_a_name_is_not_utf8_is_said_where_no_record_can_name_it(tmp_path: Path) -> None:
    members = [member("images/真.png".encode("gbk"), png(0))]
    members.append(member(b"prompts.jsonl", line("images/真.png")))
    source = put(tmp_path / "source" / "d.tar", b"".join(members) + END)
    assert "not UTF-8, so no record names it" in complete_run(tmp_path, source).text


def test_a_link_in_a_copied_folder_to_a_leftover_of_a_desktop_is_copied_as_a_file(
    tmp_path: Path,
) -> None:
    source = put(tmp_path / "source" / "a.txt", b"a")
    put(source / "@eaDir" / "b.txt", b"b")
    (source / "b.txt").symlink_to("@eaDir/b.txt")
    brought = complete_run(tmp_path, source, "--layout", "files")
    assert brought.files == {"a.txt": b"a", "b.txt": b"b"}


def test_a_copied_folder_may_hold_any_number_of_bytes(tmp_path: Path) -> None:
    source = put(tmp_path / "source" / "small.txt", b"x")
    large = source / "large.bin"
    large.touch()
    with large.open("r+b") as file:  # a hole, which is read and written as one
        file.truncate(FLOOR + 4096)
    brought = complete_run(tmp_path, source, "--layout", "files", "--max-expansion", "1")
    assert brought.problems == []
    assert (Path(brought.plan.dest) / "large.bin").stat().st_size == FLOOR + 4096


def test_archives_in_a_copied_folder_are_limited_by_what_was_listed(tmp_path: Path) -> None:
    bomb = zipped({f"{number}.bin": bytes(26 << 20) for number in range(4)})
    source = put(tmp_path / "source" / "some.txt", b"x")
    put(source / "sub" / "bomb.zip", bomb)
    words = ("--layout", "files", "--nested", "--include", "s*")
    brought = complete_run(tmp_path / "one", source, *words)
    assert "--max-expansion" in brought.text
    assert brought.files == {}
    brought = complete_run(tmp_path / "two", source, *words, "--max-expansion", "2000")
    assert brought.problems == []


def test_more_members_than_allowed_name_the_option_that_allows_them(tmp_path: Path) -> None:
    source = put(tmp_path / "source" / "d.tar", tarred(PAGES))
    brought = complete_run(tmp_path / "one", source, "--max-members", "6")
    assert "contains more than the 6 members allowed" in brought.text
    assert "--max-members" in brought.text
    assert complete_run(tmp_path / "two", source, "--max-members", "7").files == PAGES


TAR_OF_FOUR = tarred({f"{n}.bin": bytes([n + 1]) * 30_000 for n in range(4)})
HOLE = 30_720 + 512  # behind the first member and its header


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("e.tar", bytes(1 << 20), id="nothing came"),
        pytest.param("e.tar.gz", bytes(1 << 20), id="nothing came, of a compressed one"),
        pytest.param("e.zip", bytes(1 << 20), id="nothing came, of a zip"),
        pytest.param(
            "e.tar", TAR_OF_FOUR[: HOLE - 512].ljust(len(TAR_OF_FOUR), b"\0"), id="half of it came"
        ),
    ],
)
@pytest.mark.parametrize("size", ["512M", "20K"])
def test_a_file_whose_space_was_reserved_and_never_filled_is_not_complete(
    tmp_path: Path, name: str, data: bytes, size: str
) -> None:
    put(tmp_path / "source" / "a.tar", tarred(PAGES))
    put(tmp_path / "source" / name, data)
    words = ("--layout", "files", "--part-size", size)
    brought = complete_run(tmp_path, tmp_path / "source", *words)
    assert "an unfinished download?" in brought.text
    assert brought.files == {}


@pytest.mark.parametrize("to", [512, 10_240, 64 << 10, 1 << 20])
def test_a_tar_may_be_padded_as_writers_do(tmp_path: Path, to: int) -> None:
    whole = tarred(PAGES).rstrip(b"\0")
    data = whole.ljust(-(-len(whole) // 512) * 512 + 1024, b"\0")
    data = data.ljust(-(-len(data) // to) * to, b"\0")
    assert complete_run(tmp_path, put(tmp_path / "source" / "d.tar", data)).files == PAGES


@pytest.mark.parametrize("after", [b"\n", b"five\n", b"junk" * 99])
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize(
    ("name", "compressed"),
    [
        ("d.tar.gz", gzip.compress),
        ("d.tar.xz", lzma.compress),
    ],
)
def test_bytes_after_a_compressed_tar_are_refused_with_what_unpacks_it(
    tmp_path: Path, name: str, compressed: Callable[[bytes], bytes], streams: int, after: bytes
) -> None:
    half = len(tarred(PAGES)) // streams
    pieces = [tarred(PAGES)[:half], *([tarred(PAGES)[half:]] if streams > 1 else [])]
    source = put(tmp_path / "source" / name, b"".join(map(compressed, pieces)) + after)
    text = complete_run(tmp_path / "refused", source).text
    assert "data that is not a compressed stream follows the last stream" in text
    assert "is complete, unpack it" in text
    assert "--local-path on the folder" in text


def test_of_a_piece_alone_the_message_says_that_it_may_be_one(tmp_path: Path) -> None:
    data = b"\x8c\x07piece" * 300
    text = complete_run(tmp_path, put(tmp_path / "source" / "d-07.tar.gz", data)).text
    assert "or it is a piece of a split archive without the others" in text


def test_a_gzip_that_was_cut_is_not_said_to_be_complete(tmp_path: Path) -> None:
    source = put(tmp_path / "source" / "d.tar.gz", gzip.compress(tarred(PAGES))[:-1])
    text = complete_run(tmp_path / "refused", source).text
    assert "the compressed stream is truncated" in text
    assert "is complete" not in text


def test_a_zip_may_end_in_a_line_break_that_a_web_server_added(tmp_path: Path) -> None:
    source = put(tmp_path / "source" / "d.zip", zipped(PAGES) + b"\r\n")
    assert complete_run(tmp_path, source).files == PAGES


def test_half_of_a_tars_end_mark_is_refused_with_what_unpacks_it(tmp_path: Path) -> None:
    members = b"".join(member(name.encode(), data) for name, data in PAGES.items())
    text = complete_run(tmp_path, put(tmp_path / "source" / "d.tar", members + bytes(512))).text
    assert "the end mark is incomplete; if `tar -tf` lists everything, unpack it" in text


@pytest.mark.parametrize(("name", "data"), [("a.tar", tarred({})), ("a.zip", zip_of([]))])
def test_an_archive_without_files_among_others_is_named(
    tmp_path: Path, name: str, data: bytes
) -> None:
    source = put(tmp_path / "source" / name, data)
    put(source / "b.txt", b"b")
    brought = complete_run(tmp_path, source, "--layout", "files")
    assert brought.files == {"b.txt": b"b"}
    assert f"{name}: contains no files; was it complete" in brought.text


def test_a_source_without_any_file_is_refused(tmp_path: Path) -> None:
    source = put(tmp_path / "source" / "d.tar", tarred({}))
    text = complete_run(tmp_path, source, "--layout", "files").text
    assert "the source contains no file" in text
    assert "--records-file" not in text


# Zips of Windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [FAT, NTFS, NTFS_TOO, VFAT])
def test_backslashes_separate_where_windows_wrote_them(tmp_path: Path, host: int) -> None:
    files = {name.replace("/", "\\"): data for name, data in PAGES.items()}
    data = zipped({"images\\": b"", **files}, host=host)
    brought = complete_run(tmp_path, put(tmp_path / "source" / "d.zip", data))
    assert brought.problems == []
    assert brought.files == PAGES


def test_backslashes_are_part_of_a_name_elsewhere(tmp_path: Path) -> None:
    files = {"a\\b.txt": b"1"}
    source = put(tmp_path / "source" / "unix.zip", zipped(files, host=UNIX))
    assert complete_run(tmp_path / "one", source, "--layout", "files").files == files
    slashes = {"sub/a\\b.txt": b"1"}
    source = put(tmp_path / "other" / "fat.zip", zipped(slashes, host=FAT))
    assert complete_run(tmp_path / "two", source, "--layout", "files").files == slashes


@pytest.mark.parametrize(
    "name", ["..\\evil.txt", "\\evil.txt", "\\\\host\\evil.txt", "a\\..\\..\\x"]
)
def test_a_name_of_windows_that_leaves_the_dataset_is_refused(tmp_path: Path, name: str) -> None:
    source = put(tmp_path / "source" / "d.zip", zipped({name: b"x"}, host=FAT))
    brought = complete_run(tmp_path, source, "--layout", "files")
    assert "damaged or hostile" in brought.text
    assert brought.files == {}


def test_a_folder_known_only_by_its_attributes_is_a_folder(tmp_path: Path) -> None:
    entries = [Raw(b"images", made_by=20, attributes=0x10)]
    entries += [Raw(name.encode(), data, made_by=20) for name, data in PAGES.items()]
    brought = complete_run(tmp_path, put(tmp_path / "source" / "d.zip", zip_of(entries)))
    assert brought.files == PAGES


@pytest.mark.parametrize("host", [UNIX, FAT, NTFS])
def test_names_that_are_utf_8_and_do_not_say_so_are_read_as_utf_8(
    tmp_path: Path, host: int
) -> None:
    files = dataset("images/é1.png", "images/漢字.png")
    brought = complete_run(tmp_path, put(tmp_path / "source" / "d.zip", zipped(files, host=host)))
    assert brought.files == files
    assert "--zip-encoding" not in brought.text


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("cp932", ["images/テスト1.png", "images/ソ表.png"]),
        ("gbk", ["images/漂亮.png", "images/风景.png"]),
        ("cp1251", ["images/Привет.png", "images/мир.png"]),
    ],
)
def test_names_in_another_encoding_are_read_in_the_one_that_is_given(
    tmp_path: Path, encoding: str, names: list[str]
) -> None:
    files = dataset(*names)
    source = put(tmp_path / "source" / "d.zip", zipped(files, host=FAT, encoding=encoding))
    brought = complete_run(tmp_path / "one", source)
    (problem,) = brought.problems
    assert "2 names are not UTF-8 and decoded as cp437" in problem
    assert "launch with --zip-encoding" in problem
    assert brought.files == {}
    assert complete_run(tmp_path / "two", source, "--zip-encoding", encoding).files == files


def test_names_that_are_utf_8_by_chance_follow_the_others_of_their_archive(
    tmp_path: Path,
) -> None:
    by_chance = "图片"
    assert by_chance.encode("gbk").decode("utf-8") != by_chance
    files = {f"{name}.txt": b"x" for name in (by_chance, "漂亮", "风景")}
    source = put(tmp_path / "source" / "d.zip", zipped(files, host=FAT, encoding="gbk"))
    brought = complete_run(tmp_path, source, "--layout", "files", "--zip-encoding", "gbk")
    assert brought.files == files
    assert "3 names are not UTF-8 and decoded as gbk" in brought.text


def test_a_backslash_within_a_character_separates_nothing(tmp_path: Path) -> None:
    files = dataset("images\\ソ.png", "images\\表.png")
    assert files["prompts.jsonl"].count(b"\\\\") == 2
    files["prompts.jsonl"] = files["prompts.jsonl"].replace(b"\\\\", b"/")
    data = zipped(files, host=FAT, encoding="cp932")
    source = put(tmp_path / "source" / "d.zip", data)
    brought = complete_run(tmp_path, source, "--zip-encoding", "cp932")
    assert brought.files == {name.replace("\\", "/"): data for name, data in files.items()}


def test_a_name_that_the_encoding_does_not_have_is_refused_with_the_option(tmp_path: Path) -> None:
    files = {"texts/\xff\xfe.txt": b"x"}
    source = put(tmp_path / "source" / "d.zip", zipped(files, host=FAT, encoding="latin-1"))
    brought = complete_run(tmp_path / "one", source, "--layout", "files", "--zip-encoding", "gbk")
    assert "not valid in gbk" in brought.text
    assert "--zip-encoding" in brought.text
    words = ("--layout", "files", "--zip-encoding", "latin-1")
    assert complete_run(tmp_path / "two", source, *words).files == files


def test_the_warning_comes_once_for_an_archive_in_many_parts(tmp_path: Path) -> None:
    files = {f"sub/{number}é.bin": bytes([number]) * 2000 for number in range(40)}
    entries = [Raw(name.encode("cp437"), data, 0) for name, data in files.items()]
    source = put(tmp_path / "source" / "d.zip", zip_of(entries))
    brought = complete_run(tmp_path, source, "--layout", "files", "--part-size", "16K")
    assert len(brought.plan.parts()) > 4
    assert brought.files == files
    assert brought.text.count("40 names are not UTF-8") == 1


# Zips without zip64 ------------------------------------------------------------------------------


def test_a_count_that_has_overflowed_is_proven_by_the_directory(tmp_path: Path) -> None:
    # As macOS's Finder ends it: no zip64 records, the count modulo 65,536.
    path = tmp_path / "d.zip"
    path.write_bytes(
        zip_of([Raw(b"%d" % number, method=STORED) for number in range(65_540)], count=4)
    )
    reader, _, _ = opened(path)
    assert isinstance(reader, ZipArchive)
    assert sum(1 for _ in reader.names()) == 65_540
    assert reader.find(b"0") and reader.find(b"65539")


def test_a_count_that_is_wrong_otherwise_is_refused(tmp_path: Path) -> None:
    data = zip_of([Raw(b"a"), Raw(b"b"), Raw(b"c")], count=2)
    brought = complete_run(tmp_path, put(tmp_path / "source" / "d.zip", data), "--layout", "files")
    assert "its end record counts 2 entries, but its directory has 3" in brought.text


def _beyond_4_gib(path: Path, sizes: list[int], names: list[str]) -> Path:
    """A zip of files of ``sizes``, which are holes, and then images; all numbers overflow."""
    files: list[tuple[str, int, bytes]] = [(f"h{n}", size, b"") for n, size in enumerate(sizes)]
    files += [(name, len(png(1)), png(1)) for name in names]
    records = b""
    with path.open("wb") as out:
        for name, size, content in files:
            reported = (zlib.crc32(content), size & 0xFFFFFFFF, size & 0xFFFFFFFF, len(name))
            at, raw = out.tell() & 0xFFFFFFFF, name.encode()
            local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, *reported, 0)
            out.write(local + raw + content)
            out.seek(size - len(content), os.SEEK_CUR)
            entry = (b"PK\1\2", 0x315, 20, 0, 0, 0, 33, *reported, 0, 0, 0, 0, 0o100644 << 16, at)
            records += struct.pack("<4s6H3L5H2L", *entry) + raw
        end = (0, 0, len(files), len(files), len(records), out.tell() & 0xFFFFFFFF, 0)
        out.write(records + struct.pack("<4s4H2LH", b"PK\5\6", *end))
    return path


def test_offsets_that_have_overflowed_are_proven_by_what_comes_before(tmp_path: Path) -> None:
    path = _beyond_4_gib(
        tmp_path / "d.zip", [3 << 30, 2 << 30, 1 << 30, 3 << 30], ["0.png", "1.png"]
    )
    reader, _, _ = opened(path)
    for name in (b"0.png", b"1.png"):
        member = reader.find(name)
        assert member is not None
        assert b"".join(map(bytes, member.chunks)) == png(1)


@pytest.mark.parametrize("sizes", [[5 << 30], [5 << 30, 7], [7, 5 << 30], [1 << 30, 9 << 30, 7]])
def test_a_size_that_has_overflowed_is_refused_with_a_way_out(
    tmp_path: Path, sizes: list[int]
) -> None:
    path = _beyond_4_gib(tmp_path / "d.zip", sizes, ["0.png"])
    with pytest.raises(ArchiveError, match="one of its members has more than 4 GiB") as caught:
        opened(path)[0].find(b"0.png")
    assert caught.value.cause is Cause.UNSUPPORTED
    assert "--local-path FOLDER" in caught.value.message


# Tars one behind the other -----------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", ["512M", "2K"])
def test_concatenated_tars_are_one_archive(tmp_path: Path, size: str, packed: bool) -> None:
    items = list(PAGES.items())
    data = b"".join(tarred(dict(items[first : first + 2])) for first in (0, 2, 4, 6))
    name = "d.tar"
    if packed:
        data, name = gzip.compress(data[:20_480]) + gzip.compress(data[20_480:]), "d.tar.gz"
    source = put(tmp_path / "source" / name, data)
    brought = complete_run(tmp_path, source, "--part-size", size)
    assert brought.problems == []
    assert brought.files == PAGES


@pytest.mark.parametrize("parts", [1, 3])
def test_the_last_of_concatenated_tars_may_be_padded_more_than_the_others(
    tmp_path: Path, parts: int
) -> None:
    path = tmp_path / "a.tar"
    last = b"".join(member(b"%d" % number, b"x" * 3000) for number in range(6)) + END
    path.write_bytes(tarred({"first": b"1"}) + last.ljust(1 << 17, b"\0"))
    run = RunBuilder(path, parts=parts, options=Options(layout=Layout("files"))).fetched(tmp_path)
    assert [result.problem for result in run.extract()] == [None] * parts


# Streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["512M", "1K"])
@pytest.mark.parametrize("name", ["d.tar.gz", "d.tgz", "d.gz"])
def test_a_tar_that_was_compressed_twice_is_read(tmp_path: Path, name: str, size: str) -> None:
    data = gzip.compress(gzip.compress(tarred(PAGES)))
    brought = complete_run(tmp_path, put(tmp_path / "source" / name, data), "--part-size", size)
    assert brought.problems == []
    assert brought.files == PAGES


@pytest.mark.parametrize("method", [ZSTD, XZ])
def test_a_zip_of_zstd_or_xz_is_read(tmp_path: Path, method: int) -> None:
    pack = zstd().compress if method == ZSTD else lzma.compress
    entries = [Raw(name.encode(), data, method, content=pack(data)) for name, data in PAGES.items()]
    brought = complete_run(tmp_path / "one", put(tmp_path / "source" / "d.zip", zip_of(entries)))
    assert brought.files == PAGES
    broken = Raw(b"a.txt", b"text", method, content=pack(b"text")[:-3])
    source = put(tmp_path / "other" / "d.zip", zip_of([broken]))
    brought = complete_run(tmp_path / "two", source, "--layout", "files")
    assert "member 'a.txt'" in brought.text and "truncated" in brought.text


# What cannot be read, and its messages -----------------------------------------------------------


def test_a_format_that_another_program_reads_is_reported_with_its_name(tmp_path: Path) -> None:
    for method, what, program in ((9, "deflate64", "7z x"), (97, "method 97", "the program that")):
        words = f"{what}, which is not supported; unpack the archive ({program}"
        data = zip_of([Raw(b"a", b"x", method)])
        source = put(tmp_path / f"source{method}" / "d.zip", data)
        brought = complete_run(tmp_path / f"{method}", source, "--layout", "files")
        assert words in brought.text
        assert "launch with --local-path on the folder" in brought.text
        assert "fetch" not in brought.text


def test_for_volumes_of_a_tar_the_message_says_how_to_join_them(tmp_path: Path) -> None:
    first = header(b"big.bin", 3000) + bytes(1024)
    second = header(b"big.bin", 1976, kind=b"M") + bytes(2048) + END
    put(tmp_path / "source" / "v1.tar", first)
    source = put(tmp_path / "source" / "v2.tar", second)
    brought = complete_run(tmp_path, source, "--layout", "files")
    assert "the archive ends earlier (a volume of tar -M ends like this, too)" in brought.text
    assert "unpack them together (tar -xM -f FIRST -f SECOND …)" in brought.text


def test_a_damaged_archive_that_is_read_in_place_is_put_there_again_and_resumed(
    tmp_path: Path,
) -> None:
    good = gzip.compress(tarred(PAGES))
    source = put(tmp_path / "source" / "d.tar.gz", good[:-8] + bytes(4) + good[-4:])
    brought = complete_run(tmp_path, source)
    assert "replace it with an intact copy and run `resume`" in brought.text
    assert "--exclude" not in brought.text  # nothing would be left
    put(tmp_path / "source" / "d.tar.gz", good)
    folder, plan = brought.folder, brought.plan
    run_download(folder, plan, [plan.shards[0].id], Progress(), refetch=frozenset())
    assert finished(folder, plan, list(plan.parts())).files == PAGES


def test_a_zip_may_have_an_entry_for_its_top_folder_as_dropbox_writes_it(tmp_path: Path) -> None:
    entries = [Raw(b"/", b"", STORED), *(Raw(name.encode(), data) for name, data in PAGES.items())]
    source = put(tmp_path / "source" / "d.zip", zip_of(entries))
    brought = complete_run(tmp_path, source)
    assert (brought.problems, brought.files) == ([], PAGES)


def test_of_a_damaged_archive_in_pieces_the_message_asks_for_the_last_one(tmp_path: Path) -> None:
    data = gzip.compress(tarred(PAGES))
    for number, name in enumerate(("d.tar.gz.aa", "d.tar.gz.ab")):
        source = put(tmp_path / "source" / name, data[number * 100 : number * 100 + 100])
    assert (
        "it is joined from 2 files, 'd.tar.gz.aa' to 'd.tar.gz.ab': if one is missing, launch "
        "again with all of them; else replace it with an intact copy and run `resume`"
    ) in complete_run(tmp_path, source).text


def test_a_damaged_archive_without_the_published_digest_is_reported_as_a_bad_copy(
    tmp_path: Path,
) -> None:
    good = gzip.compress(tarred(PAGES))
    put(tmp_path / "source" / "md5sum.txt", f"{hashlib.md5(good).hexdigest()}  d.tar.gz".encode())
    source = put(tmp_path / "source" / "d.tar.gz", good[:-8] + bytes(8))
    brought = complete_run(tmp_path, source, "--layout", "files")
    assert "the published digest is md5:" in brought.text
    assert "leave it out (--exclude), and launch again" in brought.text
    assert "contact its publisher" not in brought.text


def test_of_a_wrong_list_beside_a_url_the_message_has_the_option_that_replaces_it(
    tmp_path: Path,
) -> None:
    data = gzip.compress(tarred(PAGES))
    with FaultyServer({"/d.tar.gz": data, "/SHA256SUMS": b"0" * 64 + b"  d.tar.gz\n"}) as web:
        url = ("--url", web.url("/d.tar.gz"))
        assert "launch with --sha256" in complete_run(tmp_path / "a", url).text
        right = ("--sha256", hashlib.sha256(data).hexdigest())
        assert complete_run(tmp_path / "b", (*url, *right)).files == PAGES


def test_a_damaged_archive_with_the_published_digest_is_reported_as_the_publishers_fault(
    tmp_path: Path,
) -> None:
    broken = gzip.compress(tarred(PAGES))[:-8] + bytes(8)
    put(tmp_path / "source" / "e.tar", tarred({"other.txt": b"x"}))
    put(
        tmp_path / "source" / "SHA256SUMS",
        f"{hashlib.sha256(broken).hexdigest()}  d.tar.gz".encode(),
    )
    source = put(tmp_path / "source" / "d.tar.gz", broken)
    words = ("--layout", "files")
    brought = complete_run(tmp_path / "one", source, *words)
    assert (
        "its digest matches the published one, so contact its publisher, or launch without it"
        in brought.text
    )
    brought = complete_run(tmp_path / "two", source, *words, "--exclude", "d.tar.gz")
    assert brought.files == {"other.txt": b"x"}


@pytest.mark.parametrize("how", ["files", "zip"])
def test_of_one_path_in_several_parts_of_a_tar_the_last_file_counts(
    tmp_path: Path, how: str
) -> None:
    """A part that is written while the archive arrives does not know which files come later."""
    pad = [member(b"pad%d" % n, b"x" * 3000) for n in range(4)]
    twice = [member(b"a", b"old"), member(b"b", b"B"), *pad, member(b"a", b"A"), member(b"b", b"B")]
    published = []
    for is_known in (True, False):
        folder = tmp_path / str(is_known)
        folder.mkdir()
        for name, members in (("0.tar", [member(b"a", b"A"), *pad]), ("1.tar", twice)):
            (folder / name).write_bytes(b"".join(members) + END)
        options = Options(layout=Layout("files"), output=Output(how))
        made = RunBuilder(folder / "0.tar", folder / "1.tar", parts=3, options=options)
        run = made.fetched(folder)
        evidence = run.folder.load_fetched(run.shard_ids[1])
        assert evidence is not None
        assert evidence.superseded
        if not is_known:
            unknown = structs.replace(evidence, superseded=())
            atomic.write_json(run.folder.fetched(run.shard_ids[1]), unknown)
        assert all(result.problem is None for result in run.extract())
        run.finish()
        published.append(
            {
                path.name: path.read_bytes()
                for path in run.staging.dest.iterdir()
                if path.is_file() and path.name != "RECEIPT.json"
            }
        )
    assert published[0] == published[1]
    if how == "files":
        assert (published[0]["a"], published[0]["b"]) == (b"A", b"B")


STRIPPED = ("--layout", "files", "--strip-components", "1")


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "words", [(), ("--no-overlap",), ("--output", "zip")], ids=["arriving", "later", "packed"]
)
def test_files_that_differ_in_stripped_folders_only_are_not_lost(
    tmp_path: Path, words: tuple[str, ...], parts: int
) -> None:
    size = 5 << 19  # of each file: a part is about 8 MiB at least
    data = [bytes([letter]) * size for letter in b"abcd"] if parts > 1 else [b"a", b"b", b"c", b"d"]
    names = [b"train/0", b"train/1", b"val/0", b"val/1"]
    tar = b"".join(map(member, names, data)) + END
    source = put(tmp_path / "source" / "a.tar", tar)
    words = (*STRIPPED, *words, "--part-size", "8M", "--max-expansion", "2")
    brought = complete_run(tmp_path / "one", source, *words)
    assert len(brought.plan.parts()) == parts
    assert "'0' has different content" in brought.text
    assert "from val) than in train of shard a.tar" in brought.text
    assert "without --strip-components" in brought.text
    if "zip" not in words:
        brought = complete_run(tmp_path / "two", source, *words, "--on-collision", "keep-first")
        assert brought.problems == []
        assert brought.files == {"0": data[0], "1": data[1]}


def test_records_of_stripped_folders_are_refused_in_whatever_parts_they_are(tmp_path: Path) -> None:
    pad = member(b"train/images/pad.png", png(1) + bytes(9 << 20))
    records = [member(b"%b/prompts.jsonl" % name, line("images/pad.png")) for name in (b"a", b"b")]
    source = put(tmp_path / "source" / "a.tar", records[0] + pad + records[1] + END)
    words = ("--strip-components", "1", "--part-size", "8M", "--verify", "none")
    brought = complete_run(tmp_path, source, *words)
    assert "'b/prompts" in brought.text and "are different files" in brought.text
    assert brought.files == {}


def test_samples_of_stripped_folders_with_the_same_image_are_both_published(tmp_path: Path) -> None:
    samples = [
        member(b"%b/0.png" % name, png(1)) + member(b"%b/0.txt" % name, name)
        for name in (b"a", b"b")
    ]
    source = put(tmp_path / "source" / "a.tar", b"".join(samples) + END)
    brought = complete_run(tmp_path, source, "--strip-components", "1")
    assert brought.problems == []
    records = map(json.loads, brought.files["prompts.jsonl"].splitlines())
    assert [record["txt"] for record in records] == ["a", "b"]


@pytest.mark.parametrize("count", [1, 6], ids=["one chain", "six chains"])
@pytest.mark.parametrize("parts", [1, 5])
def test_a_hard_link_to_a_hard_link_has_the_content_that_was_there_before_it(
    tmp_path: Path, parts: int, count: int
) -> None:
    def link(name: bytes, target: bytes) -> bytes:
        return header(name, kind=b"1", target=target)

    pad = member(b"pad", b"x" * 4000)
    rows = [
        [member(b"a%d" % n, b"A%d" % n) for n in range(count)],
        [member(b"t%d" % n, b"T%d" % n) for n in range(count)],
        [pad, *(link(b"b%d" % n, b"a%d" % n) for n in range(count))],
        [link(b"old%d" % n, b"t%d" % n) for n in range(count)],
        [pad, *(link(b"t%d" % n, b"a%d" % n) for n in range(count))],  # in place of the file
        [pad, *(link(b"c%d" % n, b"b%d" % n) for n in range(count))],
        [pad, *(link(b"new%d" % n, b"t%d" % n) for n in range(count))],
    ]
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(raw for row in rows for raw in row) + END)
    options = Options(layout=Layout("files"))
    run = RunBuilder(path, parts=parts, options=options).fetched(tmp_path)
    assert [result.problem for result in run.extract()] == [None] * parts
    run.finish()
    found = {p.name: p.read_bytes() for p in run.staging.dest.iterdir() if p.name[0] in "abcont"}
    expected = {
        f"{name}{n}": b"A%d" % n for n in range(count) for name in ("a", "b", "c", "t", "new")
    }
    assert found == expected | {f"old{n}": b"T%d" % n for n in range(count)}
