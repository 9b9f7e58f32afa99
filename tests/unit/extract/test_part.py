"""One part's pass, over members from memory: where files go, what manifests say."""

from __future__ import annotations

import errno
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.archives.base import Member, TopChanged
from jobs.errors import (
    ArchiveError,
    Cause,
    OrchestrateError,
    Stopped,
    StorageError,
    TooLargeError,
    UnsafeMemberError,
)
from jobs.extract.part import WrittenPart, write_part
from jobs.extract.part_job import PartJob
from jobs.extract.paths import PathFilter, key_of
from jobs.model import (
    Fetched,
    Format,
    Layout,
    Links,
    OnCollision,
    Options,
    Part,
    PartSummary,
    Shard,
    ShardKind,
    SourceFile,
)
from jobs.outputs.write_pool import WritePool
from jobs.runtime.progress import Progress
from jobs.storage import atomic
from tests.support.archives.members import FakeArchive, file, folder, link
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RunBuilder

FILES = Layout("files", records="", images="")


class PartRun(Run):
    """A run of one shard, whose archive is made of members."""

    def extract_members(
        self,
        members: Sequence[Member],
        *,
        part: int = 0,
        count: int = 1,
        top: str | None = None,
        progress: Progress | None = None,
    ) -> PartSummary:
        archive = FakeArchive(members, top=top)
        return self.extract_from(archive, part=part, count=count, progress=progress)

    def extract_from(
        self,
        archive: FakeArchive,
        *,
        part: int = 0,
        count: int = 1,
        progress: Progress | None = None,
    ) -> PartSummary:
        return self.written(archive, part=part, count=count, progress=progress).finish()

    def written(
        self,
        archive: FakeArchive,
        *,
        part: int = 0,
        count: int = 1,
        progress: Progress | None = None,
    ) -> WrittenPart:
        shard = self.plan.shards[0]
        fetched = Fetched(shard.id, Format.TAR, (), (), (), ())
        one = Part(shard.id, part, count)
        work = PartJob(self.folder, self.plan, shard, fetched, one, progress or Progress())
        return write_part(work, archive)


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., PartRun]:
    def make(**options: Any) -> PartRun:
        shard = Shard("s0", ShardKind.ARCHIVE, (SourceFile("pages.tar", "x", 10),))
        made = RunBuilder(shard, options=Options(**options)).on_disk(tmp_path)
        made.staging.make_folders()
        return PartRun(made.folder, made.plan)

    return make


@pytest.fixture
def run(new_run: Callable[..., PartRun]) -> PartRun:
    return new_run(layout=FILES)


ONLY = Part("s0", 0, 1)


def test_files_are_in_place_and_the_manifest_names_each_with_size_and_crc(run: PartRun) -> None:
    summary = run.extract_members([folder("a/"), file("a/b.txt", b"hello"), file("./c", b"")])
    assert run.tree() == {"a/b.txt": b"hello", "c": b""}
    assert [(entry.path, entry.size, entry.crc32) for entry in run.entries(ONLY)] == [
        ("a/b.txt", 5, f"{zlib.crc32(b'hello'):08x}"),
        ("c", 0, "00000000"),
    ]
    assert (summary.files, summary.bytes, summary.members) == (2, 5, 3)
    assert summary == run.summary(ONLY)


def test_warnings_are_those_of_the_part_although_the_next_one_is_read_before_it_is_finished(
    run: PartRun,
) -> None:
    class Warned(FakeArchive):
        part_warnings: tuple[str, ...] = ()

        def members(self, part: Part) -> Iterator[Member]:
            self.part_warnings = ()
            yield from super().members(part)
            self.part_warnings = (f"of part {part.index}",)

    archive = Warned([file("a"), file("b")])
    written = [run.written(archive, part=index, count=2) for index in range(2)]
    assert [each.finish().warnings for each in written] == [("of part 0",), ("of part 1",)]


def test_another_digest_than_crc32_is_there_where_it_is_asked_for(
    new_run: Callable[..., PartRun],
) -> None:
    run = new_run(layout=FILES, digest="sha256")
    run.extract_members([file("a", b"x")])
    digest = run.entries(ONLY)[0].digest
    assert digest is not None and digest.startswith("2d711642b726b044")


def test_what_a_check_finds_is_in_the_manifest(new_run: Callable[..., PartRun]) -> None:
    run = new_run()
    run.extract_members([file("images/a.png", b"<html><body>sign in</body></html>")])
    assert "HTML" in str(run.entries(ONLY)[0].problem)


def test_the_records_file_is_separate_and_in_the_manifest(new_run: Callable[..., PartRun]) -> None:
    run = new_run()
    summary = run.extract_members([file("prompts.jsonl", b"{}\n"), file("images/notes.txt", b"x")])
    assert run.records("s0") == b"{}\n"
    assert run.tree() == {"images/notes.txt": b"x"}
    assert summary.records
    assert {entry.path for entry in run.entries(ONLY)} == {"prompts.jsonl", "images/notes.txt"}


def test_of_two_records_files_the_last_counts_and_that_is_reported(
    new_run: Callable[..., PartRun],
) -> None:
    run = new_run()
    summary = run.extract_members(
        [file("prompts.jsonl", b"{1}\n{2}\n"), file("prompts.jsonl", b"{}\n")]
    )
    assert run.records("s0") == b"{}\n"
    assert summary.files == 1
    assert "replaced" in summary.warnings[0]


def test_junk_is_left_out_and_counted(run: PartRun) -> None:
    members = [file("__MACOSX/a", b"1"), file("d/._x", b"2"), file("d/.DS_Store", b"3")]
    summary = run.extract_members([*members, file("d/x", b"4")])
    assert run.tree() == {"d/x": b"4"}
    assert summary.left_out == {"__MACOSX": 1, "._*": 1, ".DS_Store": 1}


def test_junk_is_left_out_whatever_its_name_and_below_whatever_folder(
    new_run: Callable[..., PartRun],
) -> None:
    run = new_run()
    icons = ["top/images/Icon\r", "__MACOSX/top/images/._Icon\r"]
    others = ["./__MACOSX/x", "top/__MACOSX/y", "top/@eaDir/a/b.jpg"]
    members = [file(name, b"1") for name in (*icons, *others)]
    summary = run.extract_members([*members, file("top/images/a", b"x" * 9)], top="top")
    assert run.tree() == {"images/a": b"x" * 9}
    assert summary.left_out == {"Icon": 1, "__MACOSX": 3, "@eaDir": 1}


def test_a_control_character_in_the_name_of_data_is_refused(run: PartRun) -> None:
    with pytest.raises(UnsafeMemberError, match="control character"):
        run.extract_members([file("images/Icon\r.png", b"1")])


def test_the_top_folder_that_the_reader_found_goes(new_run: Callable[..., PartRun]) -> None:
    run = new_run()
    members = [folder("top/"), file("top/prompts.jsonl", b"{}\n"), file("top/images/a", b"x" * 9)]
    run.extract_members(members, top="top")
    assert list(run.tree()) == ["images/a"]
    assert run.records("s0") == b"{}\n"


def test_strip_components_removes_so_many_and_counts_what_is_above(
    new_run: Callable[..., PartRun],
) -> None:
    run = new_run(layout=FILES, strip_components=2)
    summary = run.extract_members([file("a/b/c/d", b"1"), file("a/readme", b"2")])
    assert run.tree() == {"c/d": b"1"}
    assert summary.left_out == {"above --strip-components": 1}


def test_files_of_two_folders_that_are_stripped_do_not_replace_each_other(
    new_run: Callable[..., PartRun],
) -> None:
    run = new_run(layout=FILES, strip_components=1)
    members = [
        file("one/a", b"1"),
        file("one/a", b"first"),  # replaces the one before
        file("two/a", b"second"),
        link("one/l", "one/a", hard=True),
        link("one/b", "one/a", hard=True),
        file("two/b", b"B"),
    ]
    summary = run.extract_members(members)
    found = sorted((each.path, each.stripped, each.size) for each in run.entries(ONLY))
    assert found == [
        ("a", "one", 5), ("a", "two", 6), ("b", "one", 5), ("b", "two", 1), ("l", "one", 5)
    ]  # fmt: skip
    assert run.tree()["l"] == b"first"
    assert summary.warnings == (
        "1 member was replaced by later ones with the same path, such as 'a'",
    )


def test_the_records_of_two_folders_that_are_stripped_are_refused(
    new_run: Callable[..., PartRun],
) -> None:
    run = new_run(strip_components=1)
    members = [file("one/prompts.jsonl", b"{}\n"), file("two/prompts.jsonl", b"[]\n")]
    with pytest.raises(ArchiveError, match="'one/prompts") as error:
        run.extract_members(members)
    assert error.value.cause is Cause.COLLISION


def test_each_shard_can_have_a_folder_of_its_own(new_run: Callable[..., PartRun]) -> None:
    run = new_run(on_collision=OnCollision.PER_SHARD)
    run.extract_members([file("images/a", b"x"), file("b\xff".encode("latin-1"), b"y")])
    paths = {entry.path for entry in run.entries(ONLY)}
    assert paths == {"images/s0/a", "s0/b\\xff"}


def test_of_two_members_with_one_path_the_last_counts_and_that_is_reported(run: PartRun) -> None:
    summary = run.extract_members([file("a", b"longer"), file("b", b"2"), file("./a", b"new")])
    assert run.tree() == {"a": b"new", "b": b"2"}
    assert sorted((entry.path, entry.size) for entry in run.entries(ONLY)) == [("a", 3), ("b", 1)]
    assert (summary.files, summary.bytes) == (2, 4)
    assert summary.warnings == (
        "1 member was replaced by later ones with the same path, such as 'a'",
    )


def test_a_member_that_a_later_part_replaces_is_not_written(run: PartRun) -> None:
    member = file("a", b"old")
    member.superseded = True
    summary = run.extract_members([member, file("b", b"2")])
    assert run.tree() == {"b": b"2"}
    assert "replaced" in summary.warnings[0]


def test_paths_that_differ_in_case_only_are_reported(run: PartRun) -> None:
    summary = run.extract_members(
        [file("Ähre", b"1"), file("ähre", b"2"), file("C", b""), file("c", b"")]
    )
    assert len(run.tree()) == 4
    assert summary.warnings[0].startswith("2 paths differ from another only in case")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\nb", ""])
def test_an_unsafe_name_refuses_the_part_and_leaves_no_manifest(run: PartRun, name: str) -> None:
    with pytest.raises(UnsafeMemberError, match=r"pages\.tar"):
        run.extract_members([file("ok", b"1"), file(name, b"2")])
    assert list(run.folder.manifests.iterdir()) == []


def test_a_path_that_is_both_file_and_folder_refuses_the_part(run: PartRun) -> None:
    for members in ([file("a", b""), file("a/b", b"")], [file("a/b", b""), file("a", b"")]):
        with pytest.raises(ArchiveError) as caught:
            run.extract_members(members)
        assert caught.value.cause is Cause.COLLISION


def test_nothing_is_written_through_an_existing_link(run: PartRun, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (run.staging.data / "soft").symlink_to(outside)
    (run.staging.data / "hard").hardlink_to(outside)
    os.mkfifo(run.staging.data / "pipe")
    run.extract_members([file("soft", b"1"), file("hard", b"2"), file("pipe", b"3")])
    assert outside.read_bytes() == b"precious"
    assert run.tree() == {"soft": b"1", "hard": b"2", "pipe": b"3"}
    assert not (run.staging.data / "soft").is_symlink()


def test_a_folder_that_is_a_link_refuses_the_part(run: PartRun, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (run.staging.data / "d").symlink_to(outside)
    with pytest.raises(UnsafeMemberError):
        run.extract_members([file("d/x", b"1")])
    assert list(outside.iterdir()) == []


def test_what_an_earlier_attempt_left_is_completed_and_cut_to_size(run: PartRun) -> None:
    (run.staging.data / "a").write_bytes(b"much longer than before")
    (run.staging.data / "b").write_bytes(b"ha")
    run.extract_members([file("a", b"short"), file("b", b"whole")])
    assert run.tree() == {"a": b"short", "b": b"whole"}


def test_modes_follow_the_umask_and_keep_the_execute_bit(run: PartRun) -> None:
    old = os.umask(0o027)
    try:
        (run.staging.data / "late").write_bytes(b"")
        (run.staging.data / "late").chmod(0o640)
        run.extract_members(
            [file("a", mode=0o600), file("run.sh", mode=0o4711), file("late", mode=0o755)]
        )
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in run.staging.data.iterdir()}
    assert modes == {"a": 0o640, "run.sh": 0o750, "late": 0o750}


def test_times_are_kept_only_where_that_is_asked_for(new_run: Callable[..., PartRun]) -> None:
    run = new_run(layout=FILES, preserve_times=True)
    run.extract_members([file("a", b"1")])
    status = (run.staging.data / "a").stat()
    assert status.st_mtime == 1_700_000_000
    assert status.st_atime > 1_700_000_000  # as old files are removed by that time too


@pytest.mark.parametrize(("mtime_ns", "is_later"), [(1 << 70, True), (-1 << 70, False)])
def test_a_time_beyond_all_bounds_is_limited(
    new_run: Callable[..., PartRun], mtime_ns: int, is_later: bool
) -> None:
    run = new_run(layout=FILES, preserve_times=True)
    member = file("a", b"1")
    member.mtime_ns = mtime_ns
    run.extract_members([member])
    assert ((run.staging.data / "a").stat().st_mtime > 1_700_000_000) is is_later


def test_lines_are_in_the_archives_order_whatever_the_sizes_are(run: PartRun) -> None:
    sizes = [3, (1 << 20) + 1, 0, 1 << 20, 7, *[1] * 300, 2 << 20, 5]
    data = {f"{number:03d}": os.urandom(size) for number, size in enumerate(sizes)}
    summary = run.extract_members([file(name, content) for name, content in data.items()])
    assert run.tree() == data
    assert [(entry.path, entry.ordinal, entry.crc32) for entry in run.entries(ONLY)] == [
        (name, number, f"{zlib.crc32(content):08x}")
        for number, (name, content) in enumerate(data.items())
    ]
    assert (summary.files, summary.bytes) == (len(sizes), sum(sizes))


def test_a_hard_link_becomes_its_targets_bytes(run: PartRun) -> None:
    members = [file("a", b"one"), link("b", "a", hard=True), link("c", "b", hard=True)]
    run.extract_members([*members, file("d", b"x")])
    assert run.tree() == {"a": b"one", "b": b"one", "c": b"one", "d": b"x"}
    assert (run.staging.data / "b").stat().st_nlink == 1
    assert [entry.path for entry in run.entries(ONLY)] == ["a", "d", "b", "c"]


def test_a_hard_link_to_another_part_gets_the_bytes_from_the_archive(run: PartRun) -> None:
    targets = [file(f"t{number}", str(number).encode()) for number in range(6)]
    links = [link(f"l{number}", f"t{number}", hard=True) for number in range(6)]
    run.extract_members([*targets, *links], part=1, count=2)
    assert run.tree() == {f"l{number}": str(number).encode() for number in range(6)}


def test_two_hard_links_to_one_member_of_another_part_are_both_written(run: PartRun) -> None:
    members = [file(f"t{number}", str(number).encode()) for number in range(8)]
    links = [link(f"l{number}", f"t{number % 6}", hard=True) for number in range(8)]
    run.extract_members([*members, *links], part=1, count=2)
    assert run.tree() == {f"l{number}": str(number % 6).encode() for number in range(8)}


def test_many_links_to_one_member_of_another_part_read_the_archive_once(
    run: PartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[bytes] = []
    find = FakeArchive.find

    def counted(archive: FakeArchive, name: bytes, before: float = math.inf) -> Member | None:
        searched.append(name)
        return find(archive, name, before)

    monkeypatch.setattr(FakeArchive, "find", counted)
    members = [file(f"t{number}", b"%d" % number) for number in range(9)]
    links = [link(f"l{number}", "t0", hard=True) for number in range(9)]
    run.extract_members([*members, *links], part=1, count=2)
    assert run.tree() == {f"l{number}": b"0" for number in range(9)}
    assert searched == [b"t0"]


def test_many_links_are_written_together_as_other_small_files_are(
    new_run: Callable[..., PartRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[None] = []
    drain = WritePool.drain

    def counted(pool: WritePool) -> None:
        waits.append(None)
        drain(pool)

    monkeypatch.setattr(WritePool, "drain", counted)
    links = [link(f"l{number}", "a", hard=bool(number % 2)) for number in range(100)]
    run = new_run(layout=FILES, links=Links.COPY)
    run.extract_members([file("a", b"1"), *links])
    assert run.tree() == {"a": b"1"} | {f"l{number}": b"1" for number in range(100)}
    assert len(waits) < 5


def test_a_records_file_that_is_a_link_comes_beside_others_to_its_target(
    new_run: Callable[..., PartRun],
) -> None:
    run = new_run()
    members = [file(f"t{number}", b"{}\n") for number in range(3)]
    links = [link(name, "t0", hard=True) for name in ("prompts.jsonl", "copy-1", "copy-2")]
    run.extract_members([*members, *links], part=1, count=2)
    assert run.tree() == {"copy-1": b"{}\n", "copy-2": b"{}\n"}


def test_a_link_that_a_later_member_replaces_is_not_written(run: PartRun) -> None:
    summary = run.extract_members([file("a", b"1"), link("b", "a", hard=True), file("b", b"2")])
    assert run.tree() == {"a": b"1", "b": b"2"}
    assert summary.files == 2


@pytest.mark.parametrize("targets", [1, 6])  # searched one by one, and in one pass
def test_a_hard_link_is_to_the_member_before_it_though_a_later_one_replaces_that(
    run: PartRun, targets: int
) -> None:
    names = [f"t{number}" for number in range(targets)]
    members = [
        *(file(name, f"old {name}".encode()) for name in names),
        *(link(f"{name}-kept", name, hard=True) for name in names),
        *(file(name, f"new {name}".encode()) for name in names),
        *(link(f"{name}-later", name, hard=True) for name in names),
    ]
    run.extract_members(members)
    kept = {f"{name}-kept": f"old {name}".encode() for name in names}
    new = {f"{name}{end}": f"new {name}".encode() for name in names for end in ("", "-later")}
    assert run.tree() == {**kept, **new}


@pytest.mark.parametrize("targets", [1, 6])
def test_a_hard_link_to_another_part_is_to_the_member_before_it(run: PartRun, targets: int) -> None:
    names = [f"t{number}" for number in range(targets)]
    members = [
        *(file(name, f"old {name}".encode()) for name in names),
        *(file(f"{name}-other") for name in names),
        *(link(f"{name}-kept", name, hard=True) for name in names),
        *(file(name, f"new {name}".encode()) for name in names),
    ]
    run.extract_members(members, part=1, count=2)
    kept = {f"{name}-kept": f"old {name}".encode() for name in names}
    assert run.tree() == {**kept, **{name: f"new {name}".encode() for name in names}}


def test_a_chain_of_links_ends_at_the_file_that_replaced_one_of_them(run: PartRun) -> None:
    run.extract_members(
        [
            file("a", b"1"),
            link("b", "a", hard=True),
            link("early", "b", hard=True),
            file("b", b"2"),
            link("late", "b", hard=True),
        ]
    )
    assert run.tree() == {"a": b"1", "b": b"2", "early": b"1", "late": b"2"}


def test_of_two_links_with_one_name_the_later_one_counts(run: PartRun) -> None:
    members = [file("a", b"1"), file("x"), file("y"), file("z"), file("b", b"2")]
    links = [link("l", "a", hard=True), link("l", "b", hard=True), file("end")]
    run.extract_members([*members, *links], part=1, count=2)
    assert run.tree()["l"] == b"2"


@pytest.mark.parametrize("target", ["nowhere", "d", "b"])
def test_a_hard_link_to_no_regular_member_refuses_the_part(run: PartRun, target: str) -> None:
    with pytest.raises(ArchiveError, match=r"'b'.*launch with --local-path on the folder"):
        run.extract_members([folder("d"), link("b", target, hard=True)])


def test_a_hard_link_never_reads_what_the_archive_did_not_bring(run: PartRun) -> None:
    (run.staging.data / "secret").write_bytes(b"of another shard")
    with pytest.raises(ArchiveError, match="not a regular member"):
        run.extract_members([link("b", "secret", hard=True)])
    assert not (run.staging.data / "b").exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc/passwd"])
def test_a_hard_link_out_of_the_archive_refuses_the_part(run: PartRun, target: str) -> None:
    with pytest.raises(UnsafeMemberError):
        run.extract_members([link("b", target, hard=True)])


@pytest.mark.parametrize("name", [".incoming/x", ".archives/x", ".incoming"])
def test_a_member_with_a_name_of_the_staging_area_refuses_the_part(run: PartRun, name: str) -> None:
    with pytest.raises(UnsafeMemberError, match="--on-collision per-shard"):
        run.extract_members([file(name, b"1")])


def test_such_a_name_is_published_where_it_is_not_in_the_top_folder(
    new_run: Callable[..., PartRun],
) -> None:
    run = new_run(layout=FILES, on_collision=OnCollision.PER_SHARD)
    run.extract_members([file(".incoming/x", b"1"), file(".incomings", b"2")])
    assert sorted(name.rpartition("/")[2] for name in run.tree()) == [".incomings", "x"]


def test_a_symbolic_link_refuses_the_part(run: PartRun) -> None:
    with pytest.raises(UnsafeMemberError, match="--links copy"):
        run.extract_members([file("a", b"1"), link("b", "a")])


@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc/passwd"])
def test_no_option_is_named_for_a_link_that_none_allows(run: PartRun, target: str) -> None:
    with pytest.raises(UnsafeMemberError, match="outside of the archive") as caught:
        run.extract_members([link("b", target)])
    assert "--links" not in caught.value.message


def test_a_symbolic_link_that_stays_inside_can_be_copied(new_run: Callable[..., PartRun]) -> None:
    run = new_run(layout=FILES, links=Links.COPY)
    members = [link("x/early", "../d/a"), link("x/chain", "./early"), file("d/a", b"1")]
    run.extract_members(members)
    assert run.tree() == {"d/a": b"1", "x/early": b"1", "x/chain": b"1"}


@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc/passwd", "..", ".", "me", "d"])
def test_other_symbolic_links_refuse_the_part_even_then(
    new_run: Callable[..., PartRun], target: str
) -> None:
    run = new_run(layout=FILES, links=Links.COPY)
    with pytest.raises(ArchiveError):
        run.extract_members([file("x/d/a", b"1"), link("x/me", target)])


def test_links_find_their_targets_below_a_stripped_folder(new_run: Callable[..., PartRun]) -> None:
    run = new_run()
    members = [file("top/images/a", b"1"), link("top/images/b", "top/images/a", hard=True)]
    run.extract_members(members, top="top")
    assert run.tree() == {"images/a": b"1", "images/b": b"1"}


def test_more_data_than_the_limit_is_refused_before_it_is_written(run: PartRun) -> None:
    member = file("big", b"")
    member.size = 10 << 40
    with pytest.raises(TooLargeError, match="'big'"):
        run.extract_members([member])
    assert run.tree() == {}


def test_a_member_shorter_than_it_says_refuses_the_part(run: PartRun) -> None:
    member = file("a", b"123")
    member.size = 4
    with pytest.raises(ArchiveError, match="3 of 4 bytes"):
        run.extract_members([member])


def test_a_stop_takes_effect_inside_a_member(run: PartRun) -> None:
    progress = Progress()

    class Slow(FakeArchive):
        def members(self, part: Part) -> Iterator[Member]:
            def chunks() -> Iterator[memoryview]:
                yield memoryview(b"1")
                progress.stop(Cause.TIME_LIMIT, "near")
                yield memoryview(b"2")
                raise AssertionError("went on")

            member = file("a", b"12")
            member.chunks = chunks()
            yield member

    with pytest.raises(Stopped):
        run.extract_from(Slow([]), progress=progress)
    assert list(run.folder.manifests.iterdir()) == []


def test_a_top_folder_that_proves_wrong_is_undone(new_run: Callable[..., PartRun]) -> None:
    run = new_run()

    class Wrong(FakeArchive):
        def members(self, part: Part) -> Iterator[Member]:
            yield from super().members(part)
            if self.top is not None:
                self.top = None
                raise TopChanged("pages.tar: a member lies beside the top folder")

    archive = Wrong([file("top/images/a", b"1"), file("b", b"2")], top="top")
    progress = Progress()
    run.extract_from(archive, progress=progress)
    assert run.tree() == {"top/images/a": b"1", "b": b"2"}
    assert progress.files_done == 2


def test_an_archive_that_changed_while_it_was_read_gets_no_manifest(
    run: PartRun, tmp_path: Path
) -> None:
    path = tmp_path / "pages.tar"
    path.write_bytes(b"now it is so long")
    shard = run.plan.shards[0]
    fetched = Fetched(shard.id, Format.TAR, (str(path),), (3,), (), (0,), in_place=True)
    work = PartJob(run.folder, run.plan, shard, fetched, Part(shard.id, 0, 1), Progress())
    with pytest.raises(OrchestrateError) as caught:
        write_part(work, FakeArchive([file("a", b"1")])).finish()
    assert caught.value.cause is Cause.CHANGED
    assert list(run.folder.manifests.iterdir()) == []


def test_data_and_records_are_durable_under_their_names_before_the_manifest_has_its_name(
    new_run: Callable[..., PartRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = atomic.FileSystem.sync
    run = new_run()

    def sync(file_system: atomic.FileSystem) -> None:
        real(file_system)
        data = (run.staging.data / "images/a").read_bytes()
        synced.append((data, run.records("s0"), len(run.folder.extracted_ids())))

    monkeypatch.setattr(atomic.FileSystem, "sync", sync)
    run.extract_members([file("prompts.jsonl", b"{}\n"), file("images/a", b"1")])
    assert synced == [(b"1", b"{}\n", 0)]


def test_many_empty_files_are_written_out_while_more_come(
    run: PartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[atomic.FileSystem] = []
    monkeypatch.setattr(atomic.FileSystem, "sync", lambda disk: synced.append(disk))
    run.extract_members([file(f"{number}", b"") for number in range(5_000)])
    assert len(synced) == 2


def test_data_on_a_file_system_that_became_read_only_fails_the_part(
    run: PartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As ext4 does after an error; syncfs(2) then succeeds and writes nothing.
    status = os.statvfs_result((4096, 4096, 1, 1, 1, 1, 1, 1, os.ST_RDONLY, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: status)
    with pytest.raises(StorageError, match="read-only") as caught:
        run.extract_members([file("a", b"1")])
    assert caught.value.cause is Cause.READ_ONLY
    assert list(run.folder.manifests.iterdir()) == []


def test_data_that_a_disk_lost_after_it_was_written_fails_the_part(
    run: PartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(file_system: atomic.FileSystem) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(atomic.FileSystem, "sync", sync)
    with pytest.raises(StorageError, match="input/output error") as caught:
        run.extract_members([file("a", b"1")])
    assert caught.value.cause is Cause.IO
    assert list(run.folder.manifests.iterdir()) == []


def test_among_many_names_those_that_come_twice_are_known_and_few_others() -> None:
    seen = PathFilter()
    for number in range(200_000):
        seen.add(b"images/%08d" % number)
    assert len(seen.suspects) < 2_000
    early, late = b"IMAGES/00000007", b"IMAGES/00199999"
    assert seen.add(early) and seen.add(late)
    assert {key_of(early), key_of(late)} <= seen.suspects


def test_a_second_extraction_writes_the_same_manifest(run: PartRun) -> None:
    archive = FakeArchive([file("a", b"1"), file("b", b"2"), file("a", b"3")])
    run.extract_from(archive)
    first = run.folder.manifest(ONLY).read_bytes()
    atomic.write_bytes(run.folder.manifest(ONLY), b"")
    run.extract_from(archive)
    assert run.folder.manifest(ONLY).read_bytes() == first
