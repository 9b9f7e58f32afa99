"""Kills of a run that packs: after `resume`, the tars of an undisturbed run, to the byte.

Row 1 of docs/faults.md for `--output webdataset`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from examples.samples import tree_digest
from tests.support.faults.forkfaults import Fault
from tests.support.faults.forkshop import Shop
from tests.support.faults.matrix import LAUNCH, Scene

pytestmark = pytest.mark.faults

Record = Callable[[str, object], None]
PACKED = ("--output", "webdataset", "--shard-records", "3")


@pytest.fixture(scope="module")
def packed(shop: Shop, archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """What an undisturbed run, with one task, publishes of the archives."""
    base = tmp_path_factory.mktemp("packed")
    scene = Scene(shop, base, ("--local-path", archives, *PACKED), {})
    shop.run(scene.cli, *LAUNCH, "--dest", scene.dest, *scene.source, "--tasks", "1", rc=0)
    whole = tree_digest(scene.dest)
    assert sorted(whole) == [
        "data-000000.tar", "data-000001.tar", "data-000002.tar", "data.json", "prompts.jsonl",
    ]  # fmt: skip
    return replace(scene, whole=whole)


@pytest.mark.parametrize(
    ("where", "first", "step", "least"),
    [
        pytest.param("download", 1, 6, 4, id="download"),
        pytest.param("extract", 1, 4, 2, id="extract"),
        pytest.param("extraction", 1, 2, 5, id="extraction"),
        pytest.param("finalize", 1, 5, 12, id="finalize"),
        pytest.param("finalize", 3, 5, 12, id="finalize-3"),
    ],
)
def test_a_task_killed_at_any_call_that_changes_a_file_ends_in_the_same_tars(
    shop: Shop,
    packed: Scene,
    served: tuple[str, ...],
    tmp_path: Path,
    record_property: Record,
    where: str,
    first: int,
    step: int,
    least: int,
) -> None:
    kills = 0
    at = first
    while True:
        here = Scene(shop, tmp_path / str(at), (*served, *PACKED), packed.whole)
        ended = here.launch(fault=Fault(where, at))
        assert ended.orphans == 0
        if not ended.fired:
            here.check_complete()
            break
        kills += 1
        here.finish()
        at += step
    record_property("kills", kills)
    assert kills >= least
