"""Kills of a run that packs: after `resume`, the shards of an undisturbed run, to the byte.

Row 1 of docs/faults.md for packed outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from examples.samples import tree_digest
from tests.support.faults.forkshop import Shop
from tests.support.faults.matrix import LAUNCH, Scene, killed_runs

pytestmark = pytest.mark.faults

Record = Callable[[str, object], None]
# By output: its options, and the names that are published besides the records.
OUTPUTS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "webdataset": (
        ("--output", "webdataset", "--shard-records", "3"),
        ["data-000000.tar", "data-000001.tar", "data-000002.tar", "data.json"],
    ),
    "zip": (
        ("--output", "zip", "--shard-size", "40K"),
        ["data-000000.zip", "data-000001.zip", "data-000002.zip"],
    ),
    "squashfs": (("--output", "squashfs"), ["data.squashfs"]),
}


@pytest.fixture(scope="module")
def undisturbed(
    shop: Shop, archives: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Scene]:
    """What an undisturbed run, with one task, publishes of the archives with an output."""

    @cache
    def run(output: str) -> Scene:
        options, names = OUTPUTS[output]
        base = tmp_path_factory.mktemp(output)
        scene = Scene(shop, base, ("--local-path", archives, *options), {})
        shop.run(scene.cli, *LAUNCH, "--dest", scene.dest, *scene.source, "--tasks", "1", rc=0)
        whole = tree_digest(scene.dest)
        assert sorted(whole) == [*names, "prompts.jsonl"]
        return replace(scene, whole=whole)

    return run


@pytest.mark.parametrize(
    ("output", "where", "first", "step", "least"),
    [
        pytest.param(
            *(output, where, first, step, least),
            id=f"{output}-{where}-{first}",
            marks=[pytest.mark.exhaustive] if first > start else [],
        )
        for output, where, start, step, least in (
            ("webdataset", "download", 1, 9, 2),
            ("webdataset", "extract", 1, 6, 1),
            ("webdataset", "extraction", 1, 4, 2),
            ("webdataset", "finalize", 1, 12, 6),
            ("zip", "finalize", 2, 16, 3),
            ("squashfs", "finalize", 2, 20, 2),
        )
        for first in range(start, start + step, 3)
    ],
)
def test_a_task_killed_at_any_call_that_changes_a_file_ends_in_the_same_shards(
    shop: Shop,
    undisturbed: Callable[[str], Scene],
    served: tuple[str, ...],
    tmp_path: Path,
    record_property: Record,
    output: str,
    where: str,
    first: int,
    step: int,
    least: int,
) -> None:
    options, whole = OUTPUTS[output][0], undisturbed(output).whole

    def make(name: str) -> Scene:
        return Scene(shop, tmp_path / name, (*served, *options), whole)

    kills = 0
    for here in killed_runs(make, where, first, step):
        here.finish()
        kills += 1
    record_property("kills", kills)
    assert kills >= least
