"""Everything that would go wrong hours later is said before anything is submitted, all at once."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from jobs.errors import PreflightError
from jobs.model import (
    Options,
    Output,
    Plan,
    Published,
    Shard,
    ShardKind,
    SourceFile,
    SourceKind,
    SourceRef,
    utc_now,
)
from jobs.storage import atomic
from jobs.storage.receipt import ReceiptHead
from orchestrator import filesystems
from orchestrator.lifecycle import preflight, space
from tests.support.builders.runs import RUN_ID, RunBuilder, shard

HUGE = 1 << 60  # more than any disk of a test machine has


def plan(dest: Path, *, temp: Path | None = None, size: int | None = 1000, shards: int = 2) -> Plan:
    made = (shard(f"{number:04d}", size=size) for number in range(shards))
    return RunBuilder(*made, dest=dest, temp=temp and temp / RUN_ID).plan


def local(made: Plan, source: Path) -> Plan:
    return structs.replace(made, source=SourceRef(SourceKind.LOCAL, str(source)))


def test_a_place_with_room_has_no_problem_and_is_not_touched(tmp_path: Path) -> None:
    made = plan(tmp_path / "new" / "data", temp=tmp_path / "temp")
    assert preflight.problems(made, tmp_path / "logs" / "run") == []
    preflight.check(made)
    assert list(tmp_path.iterdir()) == []


def test_all_problems_come_at_once_a_line_each(tmp_path: Path) -> None:
    dest, file = tmp_path / "data", tmp_path / "file"
    dest.mkdir()
    (dest / "letter.txt").write_bytes(b"")
    file.write_bytes(b"")
    with pytest.raises(PreflightError) as caught:
        preflight.check(plan(dest, temp=file / "temp", size=HUGE))
    lines = caught.value.message.split("\n")
    assert len(lines) == 4
    assert "is not a folder" in lines[0]
    assert "letter.txt" in lines[1]
    assert "need at least" in lines[2]
    assert "inodes left" in lines[3]


def test_a_umask_that_closes_our_own_files_is_named(tmp_path: Path) -> None:
    before = os.umask(0o277)
    try:
        (line,) = preflight.problems(plan(tmp_path / "data"))
        assert os.umask(0o277) == 0o277
    finally:
        os.umask(before)
    assert line.startswith("the umask 0277 takes permissions from you")


def test_a_folder_whose_file_system_reports_an_error_is_a_problem(tmp_path: Path) -> None:
    dead = tmp_path / ("x" * 300) / "temp"  # an error for each call, as from a dead mount
    (line,) = preflight.problems(plan(tmp_path / "data", temp=dead))
    assert line.startswith("the folder for archives (--temp-dir) '")
    assert line.endswith("too long for this file system; choose another one")


@pytest.mark.parametrize(
    ("logs", "in_the_way"),
    [
        ("images/logs", True),
        ("prompts.jsonl/logs", True),
        ("README", True),
        ("RECEIPT.json", True),
        ("logs", False),
        ("mine/images", False),
        (".", False),
    ],
)
def test_a_log_folder_may_lie_in_the_destination_but_not_where_the_dataset_will(
    tmp_path: Path, logs: str, in_the_way: bool
) -> None:
    made = plan(tmp_path / "data")
    loose = Shard("0002", ShardKind.FILE, (SourceFile("README", "README", 1),))
    made = structs.replace(made, shards=(*made.shards, loose))
    found = preflight.problems(made, tmp_path / "data" / logs / made.run_id)
    assert [("where the dataset will be" in line) for line in found] == [True] * in_the_way


def test_a_log_folder_is_in_the_way_of_a_folder_that_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "logs").mkdir(parents=True)
    tree = Shard("0000", ShardKind.TREE, (SourceFile("source", str(source), 1),))
    made = local(structs.replace(plan(tmp_path / "data"), shards=(tree,)), source)
    (line,) = preflight.problems(made, tmp_path / "data" / "logs" / made.run_id)
    assert "--log-dir" in line
    assert preflight.problems(made, tmp_path / "data" / "other" / made.run_id) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_a_dataset_of_another_run_may_be_replaced_only_if_it_was_there_at_launch(
    tmp_path: Path, overwrite: bool, later: bool
) -> None:
    made = structs.replace(plan(tmp_path), options=Options(overwrite=overwrite))
    when = made.created + timedelta(hours=1 if later else -1)
    atomic.write_json(tmp_path / "RECEIPT.json", ReceiptHead(run_id="other", published=when))
    if overwrite and not later:
        preflight.check_not_taken(made)
        return
    with pytest.raises(PreflightError, match="run other published"):
        preflight.check_not_taken(made)


def test_an_update_replaces_its_dataset_though_another_clock_dates_that_later(
    tmp_path: Path,
) -> None:
    made = structs.replace(plan(tmp_path), options=Options(overwrite=True))
    later = made.created + timedelta(minutes=3)
    atomic.write_json(tmp_path / "RECEIPT.json", ReceiptHead(run_id="other", published=later))
    preflight.check_not_taken(structs.replace(made, history=(Published("other", later),)))


def _publish(dest: Path, run_id: str) -> None:
    atomic.write_json(dest / "RECEIPT.json", ReceiptHead(run_id=run_id, published=utc_now()))


def test_a_run_that_published_is_in_nobodys_way(tmp_path: Path) -> None:
    made = plan(tmp_path)
    preflight.check_not_taken(made)
    _publish(tmp_path, made.run_id)
    preflight.check_not_taken(made)


def test_bytes_of_archives_and_data_on_one_file_system_add_up(tmp_path: Path) -> None:
    free = filesystems.free_space(tmp_path)[0].bytes
    assert free is not None
    two_thirds = free * 2 // 3
    assert preflight.problems(plan(tmp_path / "d", size=free // 3, shards=1)) == []
    (line,) = preflight.problems(plan(tmp_path / "d", size=two_thirds, shards=1))
    assert "archives and data need at least" in line
    in_place = local(plan(tmp_path / "d", size=two_thirds, shards=1), tmp_path / "elsewhere")
    assert preflight.problems(in_place) == []


def test_a_file_system_that_reports_no_size_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=4096, f_files=0, f_favail=0, f_flag=0)
    monkeypatch.setattr(os, "statvfs", lambda path: sizes)
    assert preflight.problems(plan(tmp_path / "d", size=HUGE)) == []


@dataclass
class Left:
    """Unfinished work."""

    shards_left: tuple[str, ...]
    parts_left: tuple[str, ...]


def test_what_is_left_of_a_run_needs_only_room_for_that(tmp_path: Path) -> None:
    made = plan(tmp_path / "d", size=HUGE)
    with pytest.raises(PreflightError, match="need at least"):
        preflight.check_space(made, Left((made.shards[0].id,), (made.parts()[0].id,)))
    preflight.check_space(made, Left((), ()))


def test_another_place_is_proposed_to_a_launch_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "is_read_only", lambda path: True)
    made = plan(tmp_path / "d", size=HUGE)
    left = Left(tuple(s.id for s in made.shards), tuple(p.id for p in made.parts()))
    assert all("choose another" in line for line in preflight.problems(made))
    for lines in (preflight.problems(made, left=left), preflight.problems_of_rest(made, left)):
        assert lines[0].endswith("is on a read-only file system; change that, then try again")
        assert lines[-1].endswith("left; free some space") or "inodes" in lines[-1]
        assert not any("choose another" in line for line in lines)
    (_, line, *_) = preflight.problems(made, tmp_path / "logs" / "run", left=left)
    assert line.startswith("the run folder (--log-dir)")
    assert line.endswith("is on a read-only file system; choose another one")


def test_inodes_are_counted_where_the_file_system_has_a_number(
    tmp_path: Path, quota_tool: Callable[[str, str], None]
) -> None:
    quota_tool("lfs", "/scratch 100 0 0 - 999990 0 1000000 -")
    made = structs.replace(plan(tmp_path / "d"), options=Options(expect_records=79413))
    (line, _) = preflight.problems(made)
    assert "79,415 files" in line
    assert "your quota has 10 inodes left" in line
    assert line.endswith("or pack the dataset into few files with --output webdataset or squashfs")


def test_a_dataset_that_is_packed_needs_room_for_its_bytes_twice_and_few_inodes(
    tmp_path: Path, quota_tool: Callable[[str, str], None]
) -> None:
    quota_tool("lfs", "/scratch 100 0 0 - 999990 0 1000000 -")
    options = Options(output=Output.WEBDATASET, expect_records=79413)
    made = structs.replace(plan(tmp_path / "d"), options=options)
    assert preflight.problems(made) == []
    free = filesystems.free_space(tmp_path)[0].bytes
    assert free is not None
    large = plan(tmp_path / "d", size=free * 2 // 3, shards=1)
    options = structs.replace(options, shard_size=HUGE)
    made = structs.replace(local(large, tmp_path / "elsewhere"), options=options)
    (line,) = preflight.problems(made)
    assert "data (stored twice while it is packed) need at least" in line


@pytest.fixture
def quota_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a quota tool that prints a line on PATH."""

    def put(name: str, line: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{line}'\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")

    return put


def test_a_lustre_quota_counts_and_is_named(
    tmp_path: Path, quota_tool: Callable[[str, str], None]
) -> None:
    quota_tool("lfs", "/scratch 999* 0 1000 - 5 0 0 -")
    lines = preflight.problems(plan(tmp_path / "d", size=10_000))
    assert "your quota has 1.02 kB left" in lines[0]
    assert "your group's quota" in lines[1]


def test_a_lustre_quota_of_the_folder_s_project_and_group_counts(
    tmp_path: Path, quota_tool: Callable[[str, str], None]
) -> None:
    quota_tool("lfs", "")
    script = tmp_path / "bin" / "lfs"
    script.write_text(
        '#!/bin/sh\ncase "$*" in "project -d "*) echo "  1001 P $3" ;; '
        '"quota -q -p 1001 "*) echo "/s 5 0 0 - 90 0 100 -" ;; '
        '"quota -q -g 4321 "*) echo "/s 5 0 0 - 70 0 100 -" ;; esac\n'
    )
    dest = tmp_path / "shared"
    dest.mkdir()
    lefts = {room.of: room.inodes for room in filesystems.free_space(dest)[1:]}
    assert lefts == {"the project's quota": 10}
    if os.geteuid() == 0:
        os.chown(dest, -1, 4321)
        dest.chmod(0o2775)
        lefts = {room.of: room.inodes for room in filesystems.free_space(dest)[1:]}
        assert lefts == {"your group's quota": 30, "the project's quota": 10}


def test_gpfs_quotas_of_user_group_and_fileset_count(
    tmp_path: Path,
    quota_tool: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = (
        "mmlsquota::HEADER:version:reserved:reserved:filesystemName:quotaType:id:name:blockUsage:"
        "blockQuota:blockLimit:blockInDoubt:blockGrace:filesUsage:filesQuota:filesLimit:"
        "filesInDoubt:filesGrace:remarks:quota:defQuota:fid:filesetname:"
    )
    row = "mmlsquota::0:1:::fs1:{}:none:{}:0:{}:0:none:e:on:off::{}:"
    rows = {
        "-Y fs1": [
            row.format("USR:1001:me:90:100:0:0", 5, 0, "mine"),
            row.format("USR:1001:me:99:100:0:0", 5, 0, "another"),
        ],
        f"-Y -g {os.getegid()} fs1": [row.format("GRP:1:lab:0:0:0:0", 70, 100, "")],
        "-Y -j mine fs1": [row.format("FILESET:7:mine:0:0:0:0", 90, 100, "")],
    }
    quota_tool("mmlsattr", "fileset name:         mine")
    quota_tool("mmlsquota", "")
    cases = "".join(
        f'"{words}") echo "{chr(10).join([head, *of])}" ;; ' for words, of in rows.items()
    )
    (tmp_path / "bin" / "mmlsquota").write_text(f'#!/bin/sh\ncase "$*" in {cases} esac\n')
    assert filesystems.free_space(tmp_path)[1:] == []  # of another type
    monkeypatch.setattr(filesystems, "mount_of", lambda path: ("/gpfs", "gpfs", "/dev/fs1"))
    assert filesystems.free_space(tmp_path)[1:] == [
        filesystems.FreeSpace(10 * 1024, None, "your quota"),
        filesystems.FreeSpace(None, 30, "your group's quota"),
        filesystems.FreeSpace(None, 10, "the quota of the fileset mine"),
    ]


def test_a_quota_of_the_mount_counts_and_another_mounts_does_not(
    tmp_path: Path, quota_tool: Callable[[str, str], None]
) -> None:
    device = filesystems.mount_of(tmp_path)[2]
    quota_tool("quota", f"{device} 2000* 1000 1500 600000 5 0 0 0")
    assert "your quota has 0 B left" in preflight.problems(plan(tmp_path / "d"))[0]
    quota_tool("quota", "/dev/other 2000* 1000 1500 600000 5 0 0 0")
    assert preflight.problems(plan(tmp_path / "d")) == []


@pytest.mark.parametrize("line", ["", "none", "/s a b c - d e f -", "/s 1 0 0 - 1 0 0 -"])
def test_a_quota_tool_without_output_stops_nothing(
    tmp_path: Path, quota_tool: Callable[[str, str], None], line: str
) -> None:
    quota_tool("lfs", line)
    assert preflight.problems(plan(tmp_path / "d")) == []


def test_a_temp_folder_within_the_destination_is_refused(tmp_path: Path) -> None:
    dest = tmp_path / "data"
    for temp in (dest / "images", dest, dest / ".incoming", dest / ".incoming" / "temp"):
        (line,) = preflight.problems(plan(dest, temp=temp))
        assert "--temp-dir is inside the destination" in line
    for elsewhere in (tmp_path, None):
        assert preflight.problems(plan(dest, temp=elsewhere)) == []


def test_a_run_folder_that_would_be_removed_after_the_run_is_refused(tmp_path: Path) -> None:
    made = plan(tmp_path / "data", temp=tmp_path / "scratch")
    (line,) = preflight.problems(made, tmp_path / "scratch" / RUN_ID)
    assert "--temp-dir and --log-dir are the same folder" in line
    for name in (".incoming", ".archives"):
        (line,) = preflight.problems(made, tmp_path / "data" / name / "run")
        assert "choose another --log-dir" in line


@pytest.mark.parametrize(
    ("source", "dest", "words"),
    [
        ("a", "a", "source"),
        ("a", "a/b", "copy of itself"),
        ("a/b", "a", "is inside the destination"),
        ("a", "link/b", "copy of itself"),
        ("a", "ab", None),
    ],
)
def test_source_and_destination_may_not_lie_in_one_another(
    tmp_path: Path, source: str, dest: str, words: str | None
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    lines = preflight.problems(local(plan(tmp_path / dest), tmp_path / source))
    assert len(lines) == (words is not None)
    assert words is None or words in lines[0]


def test_a_folder_that_is_copied_may_not_hold_the_log_folder(tmp_path: Path) -> None:
    tree = Shard("0000-tree", ShardKind.TREE, (SourceFile("d", "/d", 5),))
    source = tmp_path / "source"
    made = local(structs.replace(plan(tmp_path / "d"), shards=(tree,)), source)
    (line,) = preflight.problems(made, source / "logs" / "run")
    assert "choose another --log-dir" in line
    assert preflight.problems(made, tmp_path / "logs" / "run") == []


def test_a_destination_may_hold_what_is_no_data(tmp_path: Path) -> None:
    for name in (".incoming", "lost+found", ".archives", "logs"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / ".nfs0001").write_bytes(b"")
    made = plan(tmp_path / "data")
    assert preflight.problems(made, tmp_path / "data" / "logs" / "run") == []
    assert len(preflight.problems(made)) == 1


def test_a_published_dataset_is_named_by_its_run_unless_it_is_to_be_replaced(
    tmp_path: Path,
) -> None:
    made = plan(tmp_path)
    (tmp_path / "images").mkdir()
    _publish(tmp_path, "20250101-run")
    (line,) = preflight.problems(made)
    assert "20250101-run published" in line
    _publish(tmp_path, made.run_id)
    assert preflight.problems(made) == []
    (tmp_path / "RECEIPT.json").unlink()
    over = structs.replace(made, options=Options(overwrite=True))
    assert preflight.problems(over) == []


def test_a_dangling_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to("nowhere")
    (line,) = preflight.problems(plan(tmp_path / "data"))
    assert "dangling link" in line


def test_unknown_sizes_are_reported_and_stop_nothing(tmp_path: Path) -> None:
    made = plan(tmp_path / "d", size=None)
    assert preflight.problems(made) == []
    (note,) = preflight.notes(made, on_slurm=False)
    assert "2 shards" in note
    table = Shard("0000-a", ShardKind.FILE, (SourceFile("a.csv", "http://host/a.csv"),))
    _, note = preflight.notes(structs.replace(made, shards=(table,)), on_slurm=False)
    assert note.startswith("'a.csv': with neither a size nor a digest")


def test_a_tree_is_copied_without_archives(tmp_path: Path) -> None:
    tree = Shard("0000-tree", ShardKind.TREE, (SourceFile("d", "/d", 5),))
    made = local(structs.replace(plan(tmp_path / "d"), shards=(tree,)), tmp_path / "d2")
    assert [need.bytes for need in space.needs(made, None)] == [0, 5]


def test_a_mount_is_found_by_its_longest_name() -> None:
    point, kind, _ = filesystems.mount_of(Path("/proc/self"))
    assert (point, kind) == ("/proc", "proc")


def test_limits_of_this_shell_that_tasks_may_reach_are_said_at_launch(tmp_path: Path) -> None:
    made = plan(tmp_path / "d", size=5000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def notes(**how: Any) -> list[str]:
        """Without the note on a file system that other machines do not see."""
        return [note for note in preflight.notes(made, **how) if "not see" not in note]

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
        assert notes() == []
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
        (said,) = notes(on_slurm=False)
        assert "(ulimit -f)" in said and "--sbatch-arg=--propagate=NONE" in said
        assert notes() == [said]
        assert notes(sbatch_args=["--propagate=NONE"]) == []
        here = notes(sbatch_args=["--propagate=NONE"], download_here=True)
        assert here == [said]
        (unknown,) = preflight.notes(plan(tmp_path / "d", size=None), on_slurm=False)[1:]
        assert unknown == said
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_folders_that_nodes_may_not_see_are_noted_once_and_the_source_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "local_type", lambda path: "tmpfs")
    made = local(plan(tmp_path / "d"), tmp_path / "source")
    made = structs.replace(made, temp=f"{made.dest}/.incoming/{RUN_ID}/archives")
    first = [note.partition(" ")[0] for note in preflight.notes(made, tmp_path / "logs")]
    assert first == ["--local-path", "--dest", "--log-dir"]
    made = structs.replace(made, temp=str(tmp_path / "temp"))
    assert any(note.startswith("--temp-dir") for note in preflight.notes(made))


def test_options_for_sbatch_in_the_environment_are_said_to_be_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "pages")
    made = local(plan(tmp_path / "d"), tmp_path / "source")
    assert any(note.startswith("SBATCH_ACCOUNT, set in") for note in preflight.notes(made))
    assert preflight.notes(made, on_slurm=False) == []


def test_times_that_archives_keep_are_said_at_launch(tmp_path: Path) -> None:
    made = plan(tmp_path / "d")
    options = structs.replace(made.options, preserve_times=True)
    (said,) = preflight.notes(structs.replace(made, options=options), on_slurm=False)
    assert said.startswith("--preserve-times keeps") and "removes old files" in said
    assert preflight.notes(made, on_slurm=False) == []


def test_that_a_folder_keeps_its_top_folders_is_said_at_launch(tmp_path: Path) -> None:
    made = plan(tmp_path / "d")
    made = structs.replace(made, options=structs.replace(made.options, strip_components=1))
    assert preflight.notes(made, on_slurm=False) == []
    folder = structs.replace(made.shards[0], kind=ShardKind.TREE)
    (said,) = preflight.notes(structs.replace(made, shards=(folder,)), on_slurm=False)
    assert said.startswith("--strip-components is for archives")
