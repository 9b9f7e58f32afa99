"""A run on this machine that a fault meets, and what must hold of it whatever the fault was."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.samples import tree_digest
from tests.support.cli import Cli
from tests.support.faults.forkfaults import Fault
from tests.support.faults.forkshop import Ended, Shop

LAUNCH = ("launch", "--engine", "local", "--yes", "--retries", "0", "--parallel", "2")


@dataclass
class Scene:
    """A shell of its own, a destination, and what an undisturbed run publishes there."""

    shop: Shop
    base: Path
    source: Sequence[str | Path]  # the options that name it
    whole: dict[str, str]  # tree_digest
    cli: Cli = field(init=False)

    def __post_init__(self) -> None:
        self.base.mkdir(parents=True, exist_ok=True)
        self.cli = Cli(self.base)

    @property
    def dest(self) -> Path:
        return self.base / "data"

    @property
    def run(self) -> Path:
        """The only run there is."""
        (found,) = self.cli.runs()
        return found

    def launch(
        self, *words: str | Path, fault: Fault | None = None, rc: int | None = None
    ) -> Ended:
        words = (*LAUNCH, "--dest", self.dest, *self.source, *words)
        return self.shop.run(self.cli, *words, fault=fault, rc=rc)

    def resume(self, *words: str | Path, rc: int | None = 0) -> Ended:
        return self.shop.run(self.cli, "resume", *words, rc=rc)

    def manifests(self) -> dict[str, int]:
        """When the manifest of each finished part was written, of all runs, in ns."""
        return {
            str(path): path.stat().st_mtime_ns
            for path in self.cli.cwd.glob("logs/*/manifests/*.jsonl")
        }

    def submitted_twice(self) -> int:
        """Parts that more than one submission was to extract."""
        seen: dict[str, int] = {}
        for path in self.cli.cwd.glob("logs/*/submissions/*.json"):
            for task in json.loads(path.read_bytes())["tasks"]:
                if task["stage"] == "extract":
                    for part in task["items"]:
                        seen[part] = seen.get(part, 0) + 1
        return sum(1 for count in seen.values() if count > 1)

    def check_nothing_half_published(self) -> None:
        """Where there is a receipt, there is all."""
        if (self.dest / "RECEIPT.json").exists():
            assert tree_digest(self.dest) == self.whole

    def check_complete(self) -> None:
        """The same bytes as an undisturbed run, and nothing of the work left."""
        assert not (self.dest / ".incoming").exists()
        assert (self.dest / "RECEIPT.json").is_file()
        assert tree_digest(self.dest) == self.whole

    def finish(self) -> int:
        """Resume (launch anew where nothing was submitted); parts that were submitted twice.

        No part whose manifest was there may be written again.
        """
        self.check_nothing_half_published()
        finished = self.manifests()
        resumed = self.resume(rc=None)
        if resumed.rc != 0:
            assert "there is no run" in resumed.err or "never submitted" in resumed.err, resumed
            self.launch(rc=0)
        assert resumed.orphans == 0
        self.check_complete()
        after = self.manifests()
        assert {path: after.get(path) for path in finished} == finished
        return self.submitted_twice()


def restore(folder: Path) -> None:
    """Have in ``folder`` what was in it at the first call for it."""
    kept = folder.with_name(f"{folder.name}-kept")
    if kept.exists():
        shutil.rmtree(folder)
        shutil.copytree(kept, folder, symlinks=True)
    else:
        shutil.copytree(folder, kept, symlinks=True)


def killed_runs(make: Callable[[str], Scene], where: str, first: int, step: int) -> Iterator[Scene]:
    """Runs, each killed ``step`` calls later than the one before: the first at call ``first``.

    ``where``: the process, as in ``Fault``. The last run, which has fewer calls, must be complete.
    """
    for at in itertools.count(first, step):
        scene = make(str(at))
        ended = scene.launch(fault=Fault(where, at))
        assert ended.orphans == 0
        if not ended.fired:
            scene.check_complete()
            return
        yield scene
