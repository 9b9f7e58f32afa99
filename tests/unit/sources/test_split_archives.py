"""Pieces of one archive are recognised by name, bytes and size, and gaps are found."""

from __future__ import annotations

import gzip
import itertools
import random
import string
from collections.abc import Sequence

import pytest

from jobs.errors import Cause, SourceError
from jobs.model import Layout, Shard, ShardKind, SourceFile, SourceKind
from jobs.sources import shard_selection, split_archives
from jobs.sources.base import SourceRequest
from jobs.sources.families import families
from tests.support.builders.contents import in_pieces, tarred

GZIP = gzip.compress(random.Random(1).randbytes(3000))
ZIP = b"PK\x03\x04" + random.Random(2).randbytes(2000)
NOISE = random.Random(3).randbytes(5000)
TEXT = b"plain text, line by line\n" * 200
FILES = Layout("files")


def tar(name: str = "a") -> bytes:
    return tarred({name: b""})


def pieces(names: Sequence[str], data: bytes = GZIP) -> dict[str, bytes]:
    return in_pieces(data, *names)


def shards(
    files: dict[str, bytes],
    *join: str,
    layout: Layout = FILES,
    sizes: bool = True,
    seen: bool = True,
) -> tuple[Shard, ...]:
    """The selection from ``files``; without ``sizes`` or ``seen``: sizes or bytes are unknown."""
    given = [SourceFile(n, n, len(d) if sizes else None) for n, d in sorted(files.items())]
    request = SourceRequest(SourceKind.LOCAL, ("x",), layout=layout, join=join)
    most = 10_000 if seen else 0
    look = shard_selection.Look(lambda name: files[name][:1024], most, free=True)
    found = shard_selection.sort_out(given, request, look, where="the source")
    return shard_selection.shards_of(found)


def grouped(files: dict[str, bytes], *join: str) -> list[tuple[ShardKind, tuple[str, ...]]]:
    found = shards(files, *join)
    return [(shard.kind, tuple(file.name for file in shard.files)) for shard in found]


def letters(stem: str, count: int, width: int = 2) -> list[str]:
    marks = itertools.product(string.ascii_lowercase, repeat=width)
    return [stem + "".join(mark) for mark in itertools.islice(marks, count)]


SETS = [
    pytest.param(["d.tar.gz.aa", "d.tar.gz.ab", "d.tar.gz.ac"], "d.tar.gz", id="split's letters"),
    pytest.param(["d.tar.gzaa", "d.tar.gzab", "d.tar.gzac"], "d.tar.gz", id="no separator"),
    pytest.param(["d.tar.gz.a", "d.tar.gz.b"], "d.tar.gz", id="one letter"),
    pytest.param(["d.tar.gz00", "d.tar.gz01"], "d.tar.gz", id="digits"),
    pytest.param(["d.tar.bz200", "d.tar.bz201"], "d.tar.bz2", id="digits behind digits"),
    pytest.param(["d.tar.gz_00", "d.tar.gz_01"], "d.tar.gz", id="underscore"),
    pytest.param(["d.tar.gz-00", "d.tar.gz-01"], "d.tar.gz", id="dash"),
    pytest.param(["d.tar.gz.0", "d.tar.gz.1"], "d.tar.gz", id="single digits"),
    pytest.param(["d.tar.part-00", "d.tar.part-01"], "d.tar", id="part-00"),
    pytest.param(["d.tar.part-00-of-02", "d.tar.part-01-of-02"], "d.tar", id="part of"),
    pytest.param(["d.partaa", "d.partab"], "d", id="partaa without an ending"),
    pytest.param(["d.zip.001", "d.zip.002"], "d.zip", id="001"),
    pytest.param([f"a.tar.gz_part{n}" for n in range(1, 13)], "a.tar.gz", id="part1 to part12"),
    pytest.param(["a.tar.gz_part_aa", "a.tar.gz_part_ab"], "a.tar.gz", id="part_aa"),
    pytest.param(["part_aa", "part_ab"], "part_aa", id="nothing but part"),
    pytest.param(["chunk_aa", "chunk_ab"], "chunk_aa", id="chunk"),
    pytest.param(["images_aa", "images_ab"], "images", id="a word of its own"),
    pytest.param(["xaa", "xab"], "x", id="split's default"),
    pytest.param(["x00", "x01"], "x", id="split's default, digits"),
    pytest.param(letters("x", 30), "x", id="more than 26"),
    pytest.param(letters("d.tar.gz.", 120), "d.tar.gz", id="marks that are endings elsewhere"),
    pytest.param(letters("x", 700, 3), "x", id="three letters"),
    pytest.param([*letters("x", 650), "xzaaa", "xzaab"], "x", id="split widens"),
    pytest.param([f"x{n:02x}" for n in range(20)], "x", id="hexadecimal"),
    pytest.param(["20bn-v2-00", "20bn-v2-01", "20bn-v2-02"], "20bn-v2", id="a number after a dash"),
    pytest.param(["G.z000", "G.z001"], "G.zip", id="z000"),
    pytest.param(["G.z00", "G.z01"], "G.zip", id="z00"),
    pytest.param(["s-00.tar.gz", "s-01.tar.gz"], "s.tar.gz", id="slices named as archives"),
    pytest.param(["xaa.tar.gz", "xab.tar.gz"], "x.tar.gz", id="split's additional suffix"),
    pytest.param(["x_aa.bin", "x_ab.bin"], "x.bin", id="a suffix without meaning"),
    pytest.param(["d.tar.gz.AA", "d.tar.gz.AB"], "d.tar.gz", id="capitals"),
    pytest.param(["part_A", "part_B"], "part_A", id="one capital"),
    pytest.param(["s-0-of-2.tar.gz", "s-1-of-2.tar.gz"], "s.tar.gz", id="slices of"),
    pytest.param(["d.part1.bin", "d.part2.bin"], "d.bin", id="a part's suffix without meaning"),
    pytest.param(["a/d_00", "a/d_01"], "a/d", id="in a folder"),
]


@pytest.mark.parametrize(("names", "joined_name"), SETS)
def test_pieces_are_one_archive_in_the_order_of_their_marks(
    names: list[str], joined_name: str
) -> None:
    files = pieces(names, GZIP[:10] + random.Random(4).randbytes(5000))
    (shard,) = shards(files)
    assert (shard.kind, shard.name) == (ShardKind.ARCHIVE, joined_name)
    assert [file.name for file in shard.files] == names


@pytest.mark.parametrize(("names", "joined_name"), [s for s in SETS if len(s.values[0]) > 2])  # type: ignore[arg-type]
def test_a_gap_is_found_at_launch(names: list[str], joined_name: str) -> None:
    files = pieces(names, GZIP[:10] + random.Random(4).randbytes(5000))
    del files[names[1]]
    with pytest.raises(SourceError, match=r"missing beside .* --exclude .* --join none"):
        shards(files)


@pytest.mark.parametrize(
    "names",
    [
        ["d.tar.gz.aa", "d.tar.gz.ab", "d.tar.gz.ac"],
        ["d.tar.gz00", "d.tar.gz01", "d.tar.gz02", "d.tar.gz03"],
        ["d.zip.001", "d.zip.002", "d.zip.003"],
        ["chunk_aa", "chunk_ab", "chunk_ac"],
        ["20bn-v2-00", "20bn-v2-01", "20bn-v2-02", "20bn-v2-03"],
        ["G.z00", "G.z01", "G.z02"],
    ],
    ids=lambda names: names[0],
)
def test_a_set_without_its_first_piece_is_not_published_raw(names: list[str]) -> None:
    files = pieces(names)
    del files[names[0]]
    with pytest.raises(SourceError, match=r"missing.*--join none"):
        shards(files)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["d.tar.gz.aa", "d.tar.gz.ac"], "ab"),
        (["d.tar.gz.ab", "d.tar.gz.ac"], "aa"),
        (["d.zip.001", "d.zip.004"], "002, 003"),
        (["d.tar.part-00-of-03", "d.tar.part-01-of-03"], "02"),
        (["a.tar.gz_part1", "a.tar.gz_part12"], "2, 3, 4, 5, 6 and 5 more"),
    ],
)
@pytest.mark.parametrize("seen", [True, False])
def test_what_is_missing_is_named(names: list[str], missing: str, seen: bool) -> None:
    first = pieces(["0", *names])["0"]
    files = pieces(names) | ({names[0]: first} if "a" in names[0][-2:] or "0" in names[0] else {})
    with pytest.raises(SourceError, match=f"{missing} of them"):
        shards(files, seen=seen)


def test_two_pieces_with_one_number_are_not_joined() -> None:
    with pytest.raises(SourceError, match="two of its pieces have the same number"):
        shards(pieces(["d.tar.gz.part1", "d.tar.gz.part01", "d.tar.gz.part2"]))


@pytest.mark.parametrize(
    ("head", "text"),
    [
        pytest.param("é".encode() * 50, True, id="whole characters"),
        pytest.param("é".encode() * 50 + b"\xc3", True, id="the last one is cut"),
        pytest.param(b"a\xc3" + b"a" * 50, False, id="one within is not"),
        pytest.param(b"a\0a", False, id="a zero"),
    ],
)
def test_first_bytes_are_text_if_they_are_utf8(head: bytes, text: bool) -> None:
    assert split_archives.is_text(head) is text


def test_pieces_may_be_called_by_their_offsets() -> None:
    cut = pieces(["a", "b", "c"])
    size = len(cut["a"])
    names = [f"d.zip.part{offset}" for offset in (0, size, 2 * size)]
    files = dict(zip(names, cut.values(), strict=True))
    assert grouped(files) == [(ShardKind.ARCHIVE, tuple(names))]


@pytest.mark.parametrize(
    "files",
    [
        {"r.tar.gz.part1": GZIP, "r.tar.gz.part2": GZIP},
        {"s-0.tar": tar("a"), "s-1.tar": tar("b")},
        {"a_1": ZIP, "a_2": ZIP},
        {"n01.tar": tar("a"), "n07.tar": tar("b"), "n99.tar": tar("c")},
        {"aa.tar": tar("a"), "ab.tar": tar("b")},
    ],
)
def test_archives_of_their_own_are_apart(files: dict[str, bytes]) -> None:
    assert grouped(files) == [(ShardKind.ARCHIVE, (name,)) for name in files]


@pytest.mark.parametrize(
    "files",
    [
        {"part-00000": TEXT, "part-00001": TEXT, "part-00002": TEXT[:80]},
        {"data_00": NOISE, "data_01": NOISE, "data_02": NOISE[:80]},
        {"data_batch_1": NOISE, "data_batch_2": NOISE + b"x", "data_batch_3": NOISE},
        {"model_a": NOISE, "model_b": NOISE},
        {"corpus.br": TEXT, "corpus.ar": TEXT},
        {"train-000001.bin": NOISE, "train-000002.bin": NOISE[:100]},
        {"app.log.1": TEXT, "app.log.2": TEXT * 2},
        {"d.npz": ZIP, "e.docx": ZIP, "f.pt": ZIP},
        {"part-0.jsonl": TEXT, "part-1.jsonl": TEXT},
        {"a1": TEXT, "a01": TEXT},
    ],
)
def test_files_of_data_with_numbers_are_taken_as_they_are(files: dict[str, bytes]) -> None:
    assert grouped(files) == [(ShardKind.FILE, (name,)) for name in sorted(files)]


def test_a_spanned_zip_without_its_last_segment_is_refused_at_launch() -> None:
    files = {"d.z01": b"PK\x07\x08" + ZIP, "d.z02": NOISE[:999]}
    with pytest.raises(SourceError, match=r"'d.zip' is missing, the last segment"):
        shards(files)


def test_files_of_one_size_to_the_last_are_no_pieces_whose_first_is_missing() -> None:
    files = {f"data_batch_{number}": NOISE for number in range(1, 6)}
    assert grouped(files) == [(ShardKind.FILE, (name,)) for name in files]


@pytest.mark.parametrize("sizes", [(300, 301, 302), (300, 300, 300)])
@pytest.mark.parametrize("ending", ["tfrecord", "jsonl", "csv"])
def test_shards_of_a_data_format_that_count_themselves_are_files_of_their_own(
    ending: str, sizes: tuple[int, ...]
) -> None:
    files = {f"x.{ending}-{n:05d}-of-00003": NOISE[:size] for n, size in enumerate(sizes)}
    assert grouped(files) == [(ShardKind.FILE, (name,)) for name in files]


@pytest.mark.parametrize("name", ["d.tar.md5x", "d.tar.2023", "d.tar.idx", "x.parts"])
def test_a_chance_ending_is_no_piece(name: str) -> None:
    assert grouped({name: TEXT}) == [(ShardKind.FILE, (name,))]


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(
            {"a_0": GZIP, "a_1": NOISE, "a_2": NOISE + b"x"}, id="sizes that no splitter makes"
        ),
        pytest.param(pieces(["p.jsonl.aa", "p.jsonl.ab"], TEXT), id="pieces of a text"),
        pytest.param({"p.jsonl.00": TEXT, "p.jsonl.01": TEXT * 2}, id="a text by lines"),
        pytest.param({"xaa": TEXT, "xab": TEXT * 2}, id="split of a text without an ending"),
    ],
)
def test_what_is_not_clear_is_refused_and_join_decides(files: dict[str, bytes]) -> None:
    with pytest.raises(SourceError, match="--join none") as refused:
        shards(files)
    glob = refused.value.message.split("--join ")[1].split("'")[1]
    names = tuple(sorted(files))
    apart = grouped(files, "none")
    assert [group for _, group in apart] == [(name,) for name in names]
    if names[0] == "xaa":  # of which nothing says what the whole would be
        with pytest.raises(SourceError, match="does not begin like an archive"):
            shards(files, glob)
    else:
        assert [group for _, group in grouped(files, glob)] == [names]


def test_pieces_of_a_plain_file_are_joined_under_its_name() -> None:
    (shard,) = shards(pieces(["p.jsonl.aa", "p.jsonl.ab"], TEXT), "p.jsonl.*")
    assert (shard.kind, shard.name) == (ShardKind.FILE, "p.jsonl")


def test_join_takes_names_that_no_splitter_makes_in_their_natural_order() -> None:
    files = pieces(["front", "middle 2", "middle 10", "rear"])
    files["other.tar"] = tar()
    assert grouped(files, "front", "none")[0] == (ShardKind.ARCHIVE, ("front",))
    assert grouped(files, "[fmr]*")[0] == (
        ShardKind.ARCHIVE,
        ("front", "middle 2", "middle 10", "rear"),
    )


def test_join_may_name_several_sets_with_one_glob() -> None:
    files = pieces(["a/x_0", "a/x_1"]) | pieces(["b/x_0", "b/x_1"])
    assert grouped(files, "x_*") == [
        (ShardKind.ARCHIVE, ("a/x_0", "a/x_1")),
        (ShardKind.ARCHIVE, ("b/x_0", "b/x_1")),
    ]


def test_join_that_matches_nothing_is_a_slip() -> None:
    with pytest.raises(SourceError, match="matches no file") as refused:
        shards({"a.tar": tar()}, "b*")
    assert refused.value.cause is Cause.USAGE


def test_slices_of_a_plain_tar_may_begin_at_its_headers() -> None:
    names = ["d.tar.aa", "d.tar.ab", "d.tar.ac"]
    files = {name: tar(name) for name in names}
    assert grouped(files) == [(ShardKind.ARCHIVE, tuple(names))]


def test_without_sizes_or_bytes_the_names_decide() -> None:
    names = ["d.tar.gz.aa", "d.tar.gz.ab"]
    for known in ({"sizes": False}, {"seen": False}):
        (shard,) = shards(pieces(names), **known)  # type: ignore[arg-type]
        assert [file.name for file in shard.files] == names


def test_a_spanned_zip_ends_in_its_zip() -> None:
    spanned = {"b.z01": b"PK\x07\x08" + ZIP, "b.z02": NOISE, "b.zip": NOISE[:9]}
    assert grouped({"a.zip": ZIP} | spanned) == [
        (ShardKind.ARCHIVE, ("a.zip",)),
        (ShardKind.ARCHIVE, ("b.z01", "b.z02", "b.zip")),
    ]
    del spanned["b.z01"]
    with pytest.raises(SourceError, match="01 of them is missing"):
        shards(spanned)


def test_a_zip_beside_its_own_pieces_is_refused() -> None:
    files = pieces(["b.z00", "b.z01"], ZIP) | {"b.zip": ZIP}
    with pytest.raises(SourceError, match=r"'b\.zip' is a separate archive beside the pieces"):
        shards(files)
    del files["b.zip"]
    assert grouped(files) == [(ShardKind.ARCHIVE, ("b.z00", "b.z01"))]


@pytest.mark.parametrize("stem", ["data/x{:03}", "data/{:03}x", "data/{:03}.dat"])
def test_of_files_whose_names_say_nothing_all_are_archives_if_all_begin_like_one(stem: str) -> None:
    given = [SourceFile(stem.format(n), "", 1000 + n) for n in range(100)]
    request = SourceRequest(SourceKind.HUB, ("x",), layout=FILES)

    def archives_of(heads: dict[str, bytes]) -> int:
        look = shard_selection.Look(lambda name: heads.get(name, NOISE), 256)
        return len(shard_selection.sort_out(given, request, look, where="x").groups)

    assert archives_of({}) == 0
    assert archives_of({file.name: GZIP for file in given}) == 100
    assert archives_of({file.name: GZIP for file in given[:90]}) == 90


def test_many_shards_are_looked_through_by_name_and_three_are_looked_into() -> None:
    names = [f"data/shard-{number:05d}.tar" for number in range(10_000)]
    assert [len(family.names) for family in families(names)] == [10_000]
    given = [SourceFile(name, name, 1000) for name in names]
    asked: list[str] = []

    def read(wanted: str) -> bytes:
        asked.append(wanted)
        return tar()

    request = SourceRequest(SourceKind.HUB, ("x",))
    found = shard_selection.sort_out(given, request, shard_selection.Look(read, 256), where="x")
    assert len(found.groups) == 10_000
    assert sorted(asked) == [names[0], names[1], names[-1]]
