"""Random histories of a run: whatever happens, it ends in the bytes of an undisturbed launch.

A history is a launch, kills, damage to what is staged, noted or published, resumes, updates to the
next revision and repairs. Its number is the seed; HISTORIES=FROM-TO runs those numbers.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from examples import samples
from tests.support.cli import Cli, Done
from tests.support.servers.webserver import FaultyServer

_FIRST, _, _LAST = os.environ.get("HISTORIES", "0-39").partition("-")
_FORMATS = ("tar", "tar.gz", "tar.zst", "zip")
_OUTPUTS = ("files", "webdataset", "zip", "squashfs")
_MOST_RESUMES = 8


@dataclass
class History:
    """One source, one destination, and what happens to them."""

    cli: Cli
    web: FaultyServer
    root: Path
    chance: random.Random
    done: list[str] = field(default_factory=list)  # for the message of a failure

    def __post_init__(self) -> None:
        self.source = self.root / "source"
        self.source.mkdir()
        self.remote = self.chance.random() < 0.5
        self.dest = self.root / "dataset"
        self.formats = [self.chance.choice(_FORMATS) for _ in range(self.chance.randint(1, 4))]
        for number in range(len(self.formats)):
            self.pack(number, seed=number)
        self.words = ["--output", self.chance.choice(_OUTPUTS)]
        self.words += ["--part-size", self.chance.choice(["64K", "512M"])]
        self.words += ["--digest", self.chance.choice(["crc32", "sha256"])]
        if self.words[1] in ("webdataset", "zip"):
            self.words += ["--shard-size", self.chance.choice(["100K", "1G"])]
        if self.remote:
            self.words += self.chance.choice([[], ["--no-overlap"], ["--temp-limit", "600K"]])
            self.words += self.chance.choice([[], ["--connections", "1"], ["--max-rate", "500K"]])

    def pack(self, number: int, *, seed: int) -> None:
        """Put an archive with its own records and images into the source."""
        pages = self.root / f"pages-{number}-{seed}"
        samples.make_dataset(pages, records=self.chance.randint(5, 25), seed=seed)
        (pages / "images").rename(pages / f"images-{number}")
        records = pages / samples.RECORDS
        records.write_text(records.read_text().replace("images/", f"images-{number}/"))
        made = samples.pack_one(pages, self.root / "packed", self.formats[number])
        path = self.source / f"shard-{number}.{self.formats[number]}"
        made.replace(path)
        self.web.put(f"/{path.name}", path.read_bytes())
        shutil.rmtree(pages)

    # What a user does ----------------------------------------------------------------------

    def launch(self, dest: Path, *, kill: bool) -> Done | None:
        source: list[str | Path] = ["--local-path", self.source]
        if self.remote:
            names = sorted(path.name for path in self.source.iterdir())
            source = [word for name in names for word in ("--url", self.web.url(f"/{name}"))]
        words = ("launch", *source, "--dest", dest, "--engine", "local", "--yes", *self.words)
        return self.run(*words, kill=kill)

    def run(self, *words: str | Path, kill: bool) -> Done | None:
        """Run a command, to its end or until it is killed (None)."""
        self.done.append(" ".join(map(str, words[:2])))
        if not kill:
            return self.cli.run(*words, rc=None)
        number = self.chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        with self.cli.start(*words) as process:
            time.sleep(self.chance.uniform(0.2, 1.5))
            whom: Callable[[int, int], None] = self.chance.choice([os.kill, os.killpg])
            if process.poll() is None:
                self.done[-1] += f" killed with {number.name} by {whom.__name__}"
                whom(process.pid, number)
        return None

    def resume(self, *words: str) -> None:
        """Resume until the dataset is published, and rename damaged notes that are named."""
        for attempt in range(_MOST_RESUMES):
            kill = attempt < 3 and self.chance.random() < 0.4
            found = self.run("resume", self.dest, *words, kill=kill)
            if found is not None and found.rc == 0:
                return
            if found is not None:
                self.done[-1] += f" ended with {found.rc}: {found.out[-600:]}{found.err[-300:]}"
                self.rename_what_is_named(found)
        pytest.fail(f"not published after {_MOST_RESUMES} resumes: {self}")

    def rename_what_is_named(self, found: Done) -> None:
        said = "".join((found.out + found.err).split())  # paths are wrapped
        if "renameit" in said:
            for path in (self.cli.cwd / "logs").rglob("*.json"):
                if f"{path}isdamaged" in said:
                    path.rename(f"{path}.damaged")

    # What happens to it --------------------------------------------------------------------

    def damage_staged(self) -> None:
        """Cut or remove something that is staged or noted, and that a run can make again."""
        places = [self.dest / ".incoming", *(self.cli.cwd / "logs").glob("*/*")]
        # What a run cannot make again.
        single = {"plan.json", "claim.json", "private.json", "publish.json", "draft.json"}
        single |= {"submissions", "ready"}
        files = [
            path
            for place in places
            for path in ([place] if place.is_file() else sorted(place.rglob("*")))
            if path.is_file() and single.isdisjoint(path.parts)
        ]
        if files:
            self.damage(self.chance.choice(files), flips=False)

    def damage_published(self) -> None:
        """Damage a file of the dataset, so that it has to be repaired."""
        own = ("RECEIPT.json", "MANIFEST.jsonl")
        files = [path for path in sorted(self.dest.rglob("*")) if path.is_file()]
        files = [path for path in files if path.name not in own and path.stat().st_size]
        self.damage(self.chance.choice(files), flips=True)
        assert self.cli.run("verify", self.dest, "--deep", rc=None).rc == 5, self
        self.resume("--deep")

    def damage(self, path: Path, *, flips: bool) -> None:
        data = path.read_bytes()
        how = self.chance.choice(["removed", "cut", "flipped"] if flips else ["removed", "cut"])
        self.done.append(f"{path.name} {how}")
        if how == "removed":
            path.unlink()
        elif how == "cut":
            path.write_bytes(data[: self.chance.randrange(max(1, len(data)))])
        else:
            place = self.chance.randrange(len(data))
            path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])

    def change_source(self) -> None:
        number = self.chance.randrange(len(self.formats))
        self.pack(number, seed=self.chance.randint(100, 10**6))
        self.done.append(f"shard {number} replaced")

    def update(self) -> None:
        found = self.run("update", self.dest, "--yes", kill=self.chance.random() < 0.4)
        if found is None:
            self.resume()
            found = self.run("update", self.dest, "--yes", kill=False)
        if found is None or found.rc:
            self.resume()

    def is_published(self) -> bool:
        return self.cli.run("verify", self.dest, rc=None).rc == 0

    def content(self, dest: Path) -> dict[str, str]:
        """The SHA-256 of each file but the receipt, whose dates differ."""
        return {
            str(path.relative_to(dest)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(dest.rglob("*"))
            if path.is_file() and path.name != "RECEIPT.json"
        }

    def __str__(self) -> str:
        return " | ".join([f"{self.formats} {self.words}", *self.done])


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", range(int(_FIRST), int(_LAST or _FIRST) + 1))
def test_a_history_ends_in_the_bytes_of_an_undisturbed_launch(
    here: Cli, web: FaultyServer, number: int
) -> None:
    chance = random.Random(number)
    history = History(here, web, here.cwd, chance)
    found = history.launch(history.dest, kill=chance.random() < 0.7)
    assert found is None or found.rc == 0, history
    if found is None:
        for _ in range(chance.randint(0, 2)):
            history.damage_staged()
        if not (history.dest / ".incoming").exists() and not history.is_published():
            again = history.launch(history.dest, kill=False)  # killed before it had begun
            assert again is not None
            assert again.rc == 0, f"{history}: {again.err}"
        history.resume()
    for _ in range(chance.randint(0, 3)):
        if chance.random() < 0.5:
            history.damage_published()
        else:
            history.change_source()
            history.update()
    deep = here.run("verify", history.dest, "--deep", rc=None)
    assert deep.rc == 0, f"{history}: {deep.out}{deep.err}"
    (here.cwd / "other").mkdir()
    fresh = here.cwd / "other" / history.dest.name
    undisturbed = history.launch(fresh, kill=False)
    assert undisturbed is not None
    assert undisturbed.rc == 0, undisturbed.err
    assert history.content(history.dest) == history.content(fresh), history
