"""Kills and full disks in an update of packed files: the old state is whole until the new one is;
and in a repair of them.

Row 1 of docs/faults.md for updates and repairs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from examples.samples import tree_digest
from tests.faults.test_matrix_output import OUTPUTS, Record
from tests.support.builders.contents import page_tar, png
from tests.support.cli import Cli
from tests.support.faults.forkfaults import Fault
from tests.support.faults.forkshop import Ended, Shop
from tests.support.faults.matrix import LAUNCH, restore

pytestmark = pytest.mark.faults


class Scene:
    """A published dataset, whose source has changed since."""

    def __init__(self, shop: Shop, base: Path, output: str) -> None:
        self.shop = shop
        self.cli = Cli(base)
        self.source, self.dest = base / "source", base / "data"
        self.source.mkdir(parents=True)
        self.words: list[str | Path] = ["--local-path", self.source, *OUTPUTS[output][0]]
        for n in range(4):
            (self.source / f"s-{n}.tar").write_bytes(page_tar([2 * n, 2 * n + 1]))
        self.launch(self.dest)
        self.old = tree_digest(self.dest)

    def change(self) -> None:
        """Change the source: one archive, one fewer, one more."""
        (self.source / "s-1.tar").write_bytes(page_tar([2, 3], "new "))
        (self.source / "s-2.tar").unlink()
        (self.source / "s-4.tar").write_bytes(page_tar([8, 9]))

    def launch(self, dest: Path) -> None:
        self.shop.run(self.cli, *LAUNCH, "--dest", dest, *self.words)

    def update(self, fault: Fault | None = None) -> Ended:
        words = ("update", self.dest, "--engine", "local", "--yes")
        return self.shop.run(self.cli, *words, fault=fault, rc=None)


@pytest.fixture(scope="module")
def published(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scene]:
    """Scenes with an output: launched once, then copied back to the same place."""
    root = tmp_path_factory.mktemp("published")
    launched = cache(lambda output: Scene(shop, root / output, output))

    def make(output: str) -> Scene:
        scene = launched(output)
        restore(root / output)
        return scene

    return make


@pytest.fixture(scope="module")
def updated(
    published: Callable[[str], Scene], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, str]]:
    """What a new launch publishes of the new state with an output."""

    @cache
    def digest(output: str) -> dict[str, str]:
        scene = published(output)
        scene.change()
        fresh = tmp_path_factory.mktemp("fresh") / "data"
        scene.launch(fresh)
        return tree_digest(fresh)

    return digest


@pytest.mark.parametrize(
    ("output", "where", "what", "step", "least"),
    [
        ("webdataset", "launcher", "SIGKILL", 13, 3),
        ("webdataset", "launcher", "ENOSPC", 17, 3),
        ("webdataset", "extraction", "SIGKILL", 5, 3),
        ("webdataset", "extraction", "ENOSPC", 7, 2),
        ("webdataset", "finalize", "SIGKILL", 13, 5),
        ("zip", "extraction", "ENOSPC", 9, 2),
        ("squashfs", "extraction", "SIGKILL", 9, 2),
    ],
)
def test_an_update_that_ends_anywhere_is_resumed_and_the_old_state_is_whole_until_then(
    shop: Shop,
    published: Callable[[str], Scene],
    updated: Callable[[str], dict[str, str]],
    record_property: Record,
    output: str,
    where: str,
    what: str,
    step: int,
    least: int,
) -> None:
    new = updated(output)
    met, at = 0, 1
    while True:
        scene = published(output)
        scene.change()
        ended = scene.update(Fault(where, at, what, lasting=what == "ENOSPC"))
        assert ended.orphans == 0
        if not ended.fired:
            break
        met += 1
        if (scene.dest / "RECEIPT.json").exists():
            assert tree_digest(scene.dest) in (scene.old, new)
        resumed = shop.run(scene.cli, "resume", rc=None)
        if resumed.rc or tree_digest(scene.dest) == scene.old:  # no run was created
            assert where == "launcher", resumed
            assert scene.update().rc == 0
        assert tree_digest(scene.dest) == new
        assert not (scene.dest / ".incoming").exists()
        carried = [shard["carried"] for shard in receipt(scene.dest)["shards"]]
        assert carried == [True, False, True, False] or where == "launcher"
        at += step
    assert tree_digest(scene.dest) == new
    record_property("met", met)
    assert met >= least


@pytest.mark.parametrize(
    ("output", "where", "step", "least"),
    [
        ("webdataset", "launcher", 9, 5),
        ("webdataset", "extraction", 7, 2),
        ("squashfs", "finalize", 13, 3),
    ],
)
def test_a_repair_that_is_killed_anywhere_is_finished_by_the_next_resume(
    shop: Shop,
    published: Callable[[str], Scene],
    record_property: Record,
    output: str,
    where: str,
    step: int,
    least: int,
) -> None:
    met, at = 0, 1
    while True:
        scene = published(output)
        (victim,) = (path for path in scene.dest.glob("data*") if png(4) in path.read_bytes())
        data = victim.read_bytes()
        victim.write_bytes(data.replace(png(4), png(5)))
        fault = Fault(where, at, attempt=2)
        ended = shop.run(scene.cli, "resume", "--deep", fault=fault, rc=None)
        assert ended.orphans == 0
        if not ended.fired:
            break
        met += 1
        shop.run(scene.cli, "resume", "--deep")
        assert tree_digest(scene.dest) == scene.old
        assert not (scene.dest / ".incoming").exists()
        at += step
    assert tree_digest(scene.dest) == scene.old
    record_property("met", met)
    assert met >= least


def receipt(dest: Path) -> dict[str, list[dict[str, bool]]]:
    found: dict[str, list[dict[str, bool]]] = json.loads((dest / "RECEIPT.json").read_bytes())
    return found
