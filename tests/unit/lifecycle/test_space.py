"""Space for archives and data: when archives are stored a few at a time, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec import structs

from jobs.errors import UsageError
from jobs.model import OnCollision, Options, Output, Plan, SourceFile, SourceKind, SourceRef
from jobs.sources.base import SourceRequest
from jobs.storage.staging import Staging
from orchestrator import filesystems
from orchestrator.filesystems import FreeSpace
from orchestrator.lifecycle import space
from orchestrator.lifecycle.request import LaunchRequest
from tests.support.builders.runs import RunBuilder, shard

KB = 1000


def plan(
    tmp_path: Path,
    *sizes: int | None,
    temp: Path | None = None,
    options: Options = Options(),  # noqa: B008
) -> Plan:
    dest = tmp_path / "data"
    shards = (shard(f"{number:04d}", size=size) for number, size in enumerate(sizes))
    return RunBuilder(*shards, dest=dest, temp=temp or dest / "archives", options=options).plan


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """Bytes that the file system has left."""
    left: dict[str, int | None] = {"bytes": None}
    monkeypatch.setattr(
        filesystems, "free_space", lambda path: [FreeSpace(left["bytes"], None, "the file system")]
    )
    return left


@pytest.mark.parametrize(
    ("free", "asked", "limit"),
    [
        pytest.param(800, None, None, id="all of it fits"),
        pytest.param(800, 300, 300, id="fits, and less was asked for"),
        pytest.param(600, None, 100, id="half of the 200 that are left beside the data"),
        pytest.param(760, None, 180, id="half of more"),
        pytest.param(510, None, 100, id="one archive fits"),
        pytest.param(600, 150, 150, id="asked for what fits"),
        pytest.param(600, 300, 100, id="asked for more than fits"),
        pytest.param(600, 50, 50, id="asked for too little, which is refused elsewhere"),
        pytest.param(420, None, 100, id="nothing fits, which is refused elsewhere, alone"),
        pytest.param(None, None, None, id="nobody knows"),
        pytest.param(None, 300, 300, id="nobody knows what was asked for to fit"),
    ],
)
def test_a_limit_is_chosen_where_all_archives_do_not_fit_beside_the_data(
    tmp_path: Path,
    room: dict[str, int | None],
    free: int | None,
    asked: int | None,
    limit: int | None,
) -> None:
    made = plan(tmp_path, *[100 * KB] * 4)
    room["bytes"] = None if free is None else free * KB
    asked = None if asked is None else asked * KB
    found = space.choose_limit(made, asked)
    assert found == (None if limit is None else limit * KB)
    note = space.limit_note(made, found, asked)
    # Where the run does not fit with it either, that is the only message.
    assert (note is not None) is (found != asked and not space.problems(made, found))


def test_with_the_chosen_limit_a_run_fits_and_with_too_little_room_it_is_refused(
    tmp_path: Path, room: dict[str, int | None]
) -> None:
    made = plan(tmp_path, *[100 * KB] * 4)
    room["bytes"] = 510 * KB
    assert space.problems(made, space.choose_limit(made, None)) == []
    (line,) = space.problems(made, None)
    assert "archives and data need at least 800.0 kB" in line
    room["bytes"] = 420 * KB
    (line,) = space.problems(made, space.choose_limit(made, None))
    assert "archives (at most 100.0 kB at a time) and data need at least 500.0 kB" in line


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("--keep-archive", Options(keep_archive=True)),
        ("--on-collision keep-first", Options(on_collision=OnCollision.KEEP_FIRST)),
        ("--no-overlap", Options(overlap=False)),
    ],
)
def test_no_limit_is_chosen_where_archives_are_needed_afterwards_and_the_option_is_named(
    tmp_path: Path, room: dict[str, int | None], option: str, options: Options
) -> None:
    made = plan(tmp_path, *[100 * KB] * 4, options=options)
    room["bytes"] = 600 * KB
    limit = space.choose_limit(made, None)
    assert limit is None
    (line,) = space.problems(made, limit)
    assert f"without {option}, archives are deleted as they are extracted" in line
    request = LaunchRequest(
        SourceRequest(SourceKind.HUB, ("org/pages",)),
        options=options,
        temp_limit=1 << 30,
    )
    with pytest.raises(UsageError, match=f"--temp-limit .* cannot be combined with {option}"):
        request.check()


def test_a_limit_without_its_unit_is_taken_for_the_mistake_that_it_is() -> None:
    request = LaunchRequest(SourceRequest(SourceKind.HUB, ("org/pages",)), temp_limit=100)
    with pytest.raises(UsageError, match="did you mean 100G"):
        request.check()


def test_no_limit_is_chosen_for_a_download_in_the_login_shell(
    tmp_path: Path, room: dict[str, int | None]
) -> None:
    room["bytes"] = 600 * KB
    made = plan(tmp_path, *[100 * KB] * 4)
    assert space.choose_limit(made, None, automatic=False) is None
    assert space.choose_limit(made, 150 * KB, automatic=False) == 150 * KB


def test_an_archive_that_is_larger_than_the_limit_is_named_with_what_it_needs(
    tmp_path: Path,
) -> None:
    made = plan(tmp_path, 10 * KB, 300 * KB, 200 * KB)
    (line,) = space.problems(made, 100 * KB)
    assert "'0001.tar.gz' (and 1 more)" in line
    assert "--temp-limit 300000 (300.0 kB) or more" in line
    assert space.problems(made, 300 * KB) == []


@pytest.mark.parametrize(
    ("name", "is_stored"), [("0.tar", False), ("0.zip", False), ("0.parquet", True)]
)
def test_a_tar_or_zip_may_be_larger_than_the_limit_and_others_may_not(
    tmp_path: Path, name: str, is_stored: bool
) -> None:
    made = plan(tmp_path, 100 << 20)
    shard = structs.replace(made.shards[0], files=(SourceFile(name, name, 100 << 20),))
    lines = space.problems(structs.replace(made, shards=(shard,)), 20 << 20)
    found = [line for line in lines if f"'{name}' needs, which is stored completely" in line]
    assert bool(found) == is_stored


def test_shards_that_an_earlier_attempt_made_need_no_more_space(
    tmp_path: Path,
) -> None:
    made = plan(tmp_path, *[100 * KB] * 2, options=Options(output=Output.ZIP))
    assert space.needs(made, None)[1].bytes == 400 * KB
    data = Staging(made).data
    data.mkdir(parents=True)
    (data / "data-000000.zip").write_bytes(bytes(60 * KB))
    (data / "data-000000.part").write_bytes(bytes(60 * KB))
    assert space.needs(made, None)[1].bytes == 340 * KB
    of_tasks = Staging(made).packed / "0123456789abcdef.tasks" / "split"
    of_tasks.mkdir(parents=True)
    (of_tasks / "data-000001.zip").write_bytes(bytes(40 * KB))
    assert space.needs(made, None)[1].bytes == 300 * KB


def test_local_archives_are_read_where_they_are_and_need_no_room(
    tmp_path: Path, room: dict[str, int | None]
) -> None:
    room["bytes"] = 500 * KB
    made = structs.replace(
        plan(tmp_path, *[100 * KB] * 4), source=SourceRef(SourceKind.LOCAL, "/archives")
    )
    assert space.choose_limit(made, None) is None
    assert space.problems(made, 50 * KB) == []


def test_for_the_rest_of_a_run_only_the_rest_counts_and_what_is_there_is_part_of_the_limit(
    tmp_path: Path, room: dict[str, int | None]
) -> None:
    @dataclass
    class Left:
        shards_left: tuple[str, ...]
        parts_left: tuple[str, ...]

    made = plan(tmp_path, *[100 * KB] * 4, temp=tmp_path / "temp")
    ids = [shard.id for shard in made.shards]
    parts = tuple(part.id for part in made.parts() if part.shard in ids[2:])
    left = Left(tuple(ids[2:]), parts)
    archives, data = space.needs(made, None, left)
    assert (archives.bytes, data.bytes) == (200 * KB, 200 * KB)
    room["bytes"] = 350 * KB
    assert space.choose_limit(made, None, left) == 100 * KB
    Path(made.temp).mkdir()
    (Path(made.temp) / "0").write_bytes(b"x" * 60 * KB)
    archives, _ = space.needs(made, 100 * KB, left)
    assert 30 * KB < archives.bytes <= 40 * KB


def test_a_shard_that_finalize_moves_meanwhile_is_no_error(tmp_path: Path) -> None:
    packed = plan(tmp_path, 100, options=Options(output=Output.WEBDATASET))
    data = Staging(packed).data
    data.mkdir(parents=True)
    (data / "data-000000.tar").symlink_to("gone")  # listed, and absent when it is looked at
    assert space.needs(packed, None)[1].bytes >= 200
