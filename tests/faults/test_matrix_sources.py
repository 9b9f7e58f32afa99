"""Local sources that are corrupt, change, are closed, or hold links, holes and odd names.

Rows 54–58 of docs/faults.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from examples import samples
from tests.support.faults.forkfaults import Fault
from tests.support.faults.matrix import Scene

pytestmark = pytest.mark.faults

Stage = Callable[..., Scene]


@pytest.fixture
def copied(archives: Path, tmp_path: Path) -> Path:
    """The folder of archives again, to be changed."""
    return Path(shutil.copytree(archives, tmp_path / "copied"))


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_corrupt_local_archive_is_named_and_the_others_continue(
    scene: Stage, copied: Path, how: str
) -> None:
    here = scene("scene", ("--local-path", copied))
    bad = copied / "shard-0000.tar.gz"
    data = bad.read_bytes()
    half = len(data) // 2
    bad.write_bytes(data[:half] if how == "cut" else data[:half] + bytes(32) + data[half + 32 :])
    ended = here.launch(rc=1)
    assert bad.name in ended.out
    assert len(here.manifests()) == 1
    bad.write_bytes(data)
    here.finish()


def test_a_local_archive_that_changes_under_a_run_is_reported_and_used_as_it_is_now(
    scene: Stage, copied: Path
) -> None:
    here = scene("scene", ("--local-path", copied))
    assert here.launch(fault=Fault("extraction", 3)).fired
    changed = copied / "shard-0000.tar.gz"
    data = changed.read_bytes()
    changed.write_bytes(data)
    os.utime(changed, (1_600_000_000, 1_600_000_000))
    reported = here.resume(rc=None)
    if reported.rc:
        assert "changed" in reported.out
        here.resume()
    here.check_complete()


def test_a_dataset_folder_with_links_holes_and_odd_names_arrives_byte_for_byte(
    scene: Stage, small: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(small, tmp_path / "source"))
    images = source / "images"
    picture = min(images.iterdir())
    (images / "linked.png").symlink_to(picture.name)
    os.link(picture, images / "hard.png")
    with (source / "holes.bin").open("wb") as holes:
        holes.seek(1 << 20)
        holes.write(b"end")
    odd = [" blank ", "-dash", "ünï", "quo'te\"", "*?[a]", "$HOME;true"]
    for name in odd:
        (source / name).write_bytes(name.encode())
    (source / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"bytes")
    here = scene("scene", ("--local-path", source, "--layout", "files"))
    here.whole = samples.tree_digest(source)
    assert here.launch(fault=Fault("extraction", 9)).fired
    here.finish()


def test_a_name_with_a_control_character_is_refused_and_shown_escaped(
    scene: Stage, small: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(small, tmp_path / "source"))
    (source / "new\nline.txt").write_text("one name, two lines")
    here = scene("scene", ("--local-path", source))
    ended = here.launch(rc=1)
    assert "new\\nline.txt" in ended.out
    assert not (here.dest / "RECEIPT.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_all_that_may_not_be_read_is_listed_before_anything_is_copied(
    scene: Stage, copied: Path
) -> None:
    for path in copied.iterdir():
        path.chmod(0)
    here = scene("scene", ("--local-path", copied))
    ended = here.launch(rc=None)
    assert ended.rc != 0
    for path in copied.iterdir():
        assert path.name in ended.err
    assert here.cli.runs() == []


def test_an_odd_umask_and_a_set_gid_destination_keep_the_groups_policy(
    scene: Stage,
) -> None:
    here = scene()
    here.dest.mkdir()
    here.dest.chmod(0o2775)
    before = os.umask(0o077)
    try:
        done = here.cli.run(
            "launch", "--engine", "local", "--yes", "--dest", here.dest, *here.source
        )
    finally:
        os.umask(before)
    assert done.rc == 0
    here.check_complete()
    assert here.dest.stat().st_mode & 0o7777 == 0o2775
    assert here.run.stat().st_mode & 0o777 == 0o700


TRAP = "import pathlib; pathlib.Path({mark!r}).touch(); raise SystemExit('trapped')\n"


def test_no_code_of_the_working_folder_is_run_by_a_task(scene: Stage, tmp_path: Path) -> None:
    here = scene()
    mark = tmp_path / "trapped"
    elsewhere = tmp_path / "hostile"
    for name in ("submitit", "msgspec", "isal", "zlib_ng"):
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name / "__init__.py").write_text(TRAP.format(mark=str(mark)))
    (elsewhere / "jobs.py").write_text(TRAP.format(mark=str(mark)))
    (elsewhere / "sitecustomize.py").write_text(TRAP.format(mark=str(mark)))
    here.cli.cwd.mkdir(exist_ok=True)
    for trap in elsewhere.iterdir():
        trap.rename(here.cli.cwd / trap.name)
    # As the installed command does, with fresh interpreters: forks have imported all already.
    script = "import sys; del sys.path[0]; from orchestrator.cli import main; sys.exit(main())"
    shell = here.cli.program("-c", script)
    done = shell.run("launch", "--engine", "local", "--yes", "--dest", here.dest, *here.source)
    assert done.rc == 0
    here.check_complete()
    assert not mark.exists()
