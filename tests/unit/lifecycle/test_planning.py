"""From shards to parts and tasks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from jobs import model
from jobs.errors import UsageError
from jobs.model import Options, Output, Plan, Shard, ShardKind, SourceKind, SourceRef, Stage
from jobs.sources.base import SourceRequest
from orchestrator.lifecycle import planning
from orchestrator.lifecycle.request import LEAST_PART_SIZE, LaunchRequest
from tests.support.builders.runs import RunBuilder, shard

HOUR = datetime(2026, 1, 2, tzinfo=timezone.utc)
SOURCE = SourceRef(SourceKind.URL, "https://host/")


def planned(shards: Sequence[Shard], **options: Any) -> Plan:
    asked = SourceRequest(SourceKind.URL, ("https://host/",))
    request = LaunchRequest(asked, dest=Path("/d"), options=Options(**options))
    return planning.plan_run(SOURCE, shards, request, "r", HOUR)


@pytest.mark.parametrize(
    ("size", "part_size", "parts"),
    [
        pytest.param(None, 100, 1, id="unknown size"),
        pytest.param(0, 100, 1, id="empty"),
        pytest.param(100, 100, 1, id="exactly one"),
        pytest.param(101, 100, 2, id="a byte more"),
        pytest.param(1000, 100, 10, id="ten"),
        pytest.param(127 << 20, 1 << 30, 1, id="not worth two tasks"),
        pytest.param(128 << 20, 1 << 30, 2, id="worth two tasks"),
        pytest.param(1 << 30, 1 << 30, 4, id="one of full size"),
    ],
)
def test_parts_of_a_shard(size: int | None, part_size: int, parts: int) -> None:
    assert planning.parts_of(shard("s", size=size), part_size) == parts


@pytest.mark.parametrize(
    ("size", "worth", "parts"),
    [
        pytest.param(200, 1, 4, id="as many as its size needs"),
        pytest.param(251, 1, 8, id="equal shares of two tasks, and of four"),
        pytest.param(0, 1, 1, id="not worth two tasks"),
        pytest.param(0, 2, 4, id="many small files"),
    ],
)
def test_parts_of_a_folder(size: int, worth: int, parts: int) -> None:
    tree = structs.replace(shard("s", size=size), kind=ShardKind.TREE, parts=worth)
    assert planning.parts_of(tree, 50) == parts


def test_nothing_to_do_is_said() -> None:
    with pytest.raises(UsageError, match="contains neither an archive"):
        planned([])


def test_parts_without_end_are_refused_before_one_is_made() -> None:
    shards = [shard("s", size=15 * 10**9)]
    with pytest.raises(UsageError, match=r"3,662,110 parts.*use 1M or more"):
        planned(shards, part_size=4096)


def test_small_shards_may_be_many() -> None:
    shards = [shard(f"s{i}", size=1) for i in range(planning.MOST_PARTS + 2)]
    planning.check_parts(shards, LEAST_PART_SIZE)


def test_archives_stay_beside_the_data_unless_a_temp_folder_is_named() -> None:
    beside = planned([shard("s")])
    assert beside.temp == "/d/.incoming/r/archives"
    request = LaunchRequest(
        SourceRequest(SourceKind.URL, ()), dest=Path("/d"), temp_dir=Path("/scratch")
    )
    assert planning.plan_run(SOURCE, [shard("s")], request, "r", HOUR).temp == "/scratch/r"


@pytest.mark.parametrize("seed", range(50))
def test_every_part_is_given_to_exactly_one_task(seed: int) -> None:
    numbers = random.Random(seed)
    largest = 10 ** numbers.randint(0, 4)
    sizes = [numbers.randint(0, largest) for _ in range(numbers.randint(1, 30))]
    most, part_size = numbers.randint(1, 12), numbers.randint(200, 4000)
    shards = [shard(f"s{i:02}", size=size) for i, size in enumerate(sizes)]
    plan = planned(shards, part_size=part_size)
    parts = [part.id for part in plan.parts()]
    tasks = planning.tasks_for(plan, [], parts, most=most)
    extract = [task for task in tasks if task.stage is Stage.EXTRACT]
    assert sorted(item for task in extract for item in task.items) == sorted(parts)
    assert len(extract) == min(most, len(parts))
    assert [task.number for task in extract] == list(range(len(extract)))
    weight = model.part_weights(plan)
    loads = [sum(weight[item] for item in task.items) for task in extract]
    # Longest processing time first: no task has more than the mean and one part.
    assert max(loads) <= sum(loads) / len(loads) + max(weight.values())


@pytest.mark.parametrize("downloads", [1, 2, 9])
def test_every_shard_is_given_to_exactly_one_download_task(downloads: int) -> None:
    shards = [shard(f"s{i}", size=100 << i) for i in range(5)]
    plan = planned(shards)
    ids = [shard.id for shard in plan.shards]
    tasks = planning.tasks_for(plan, ids, [], most=4, downloads=downloads)
    found = [task for task in tasks if task.stage is Stage.DOWNLOAD]
    assert sorted(item for task in found for item in task.items) == ids
    assert [task.number for task in found] == list(range(min(downloads, len(ids))))
    if downloads == 2:
        assert {task.items for task in found} == {("s4",), ("s0", "s1", "s2", "s3")}


@pytest.mark.parametrize(
    ("output", "gigabytes", "most", "expected"),
    [
        (Output.WEBDATASET, 3, 256, 0),  # less than two tasks need
        (Output.WEBDATASET, 200, 256, 6),
        (Output.ZIP, 200, 4, 4),
        (Output.ZIP, 20_000, 256, 16),
        (Output.SQUASHFS, 20_000, 256, 0),  # one image
        (Output.FILES, 20_000, 256, 0),
    ],
)
def test_tasks_that_pack_have_enough_to_do(
    output: Output, gigabytes: int, most: int, expected: int
) -> None:
    shards = [shard("a", size=gigabytes << 29), shard("b", size=gigabytes << 29)]
    plan = RunBuilder(*shards, options=Options(output=output)).plan
    assert planning.pack_tasks(plan, most) == expected
    tasks = planning.tasks_for(plan, [], [], most=most, packs=expected)
    assert [task.stage for task in tasks] == [Stage.PACK] * expected + [Stage.FINALIZE]
    assert [task.number for task in tasks[:-1]] == list(range(expected))


def test_finalize_is_always_there_and_download_only_where_needed() -> None:
    plan = RunBuilder(shard("a", parts=2), shard("b")).plan
    stages = [task.stage for task in planning.tasks_for(plan, [], [], most=4)]
    assert stages == [Stage.FINALIZE]
