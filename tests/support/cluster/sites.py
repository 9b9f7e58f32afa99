"""A cluster, a shell on its login node and a run there, for tests that disturb runs on Slurm."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import Signals
from typing import Any

from examples import samples
from jobs.model import Heartbeat, Resources, Stage
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from tests.support.cli import Cli, Done
from tests.support.cluster.guard import descendants_of
from tests.support.cluster.slurm import PrivateSlurm, QueueRow

LAUNCH = ("launch", "--engine", "slurm", "--yes", "--mem", "500M", "--time", "10")
OVER = ("done", "incomplete", "failed", "cancelled")


@dataclass(frozen=True)
class Site:
    """A cluster and a shell on its login node."""

    slurm: PrivateSlurm
    cli: Cli
    wrappers: Path | None = field(default=None)

    # What a user types --------------------------------------------------------------------

    def launch(self, dest: Path, *words: str | Path, **env: str) -> str:
        """Launch and do not wait; the finalize job's id comes back."""
        done = self.cli.having(**env).run(*LAUNCH, "--dest", dest, "--parsable", *words)
        return done.out.strip()

    def resume(self, *words: str | Path, rc: int | None = 0) -> Done:
        return self.cli.run("resume", *words, rc=rc)

    def status(self) -> Any:
        return self.cli.status()

    # What there is ------------------------------------------------------------------------

    def run_folder(self) -> RunFolder:
        return RunFolder(self.cli.runs()[-1])

    def asked(self, number: int, stage: Stage = Stage.EXTRACT) -> Resources:
        """The resources that the jobs of a submission requested."""
        return self.run_folder().load_submission(number).resources[stage.value]

    def jobs(self, stage: Stage | None = None) -> list[QueueRow]:
        """The newest run's jobs and array tasks in the queue."""
        run_id = self.run_folder().run_id
        end = f"-{stage.value}" if stage else ""
        return [r for r in self.slurm.squeue() if f"-{run_id}-" in r.name and r.name.endswith(end)]

    def finished(self) -> dict[str, int]:
        """When each shard that is fetched and each part that is extracted was finished (ns)."""
        folder = self.run_folder()
        paths = [*folder.manifests.glob("*.jsonl"), *folder.path.glob("shards/*.json")]
        return {path.name: path.stat().st_mtime_ns for path in paths}

    def repeated(self, before: dict[str, int]) -> int:
        """How many of those were processed again since."""
        now = self.finished()
        return sum(now.get(name, at) != at for name, at in before.items())

    # Waiting ------------------------------------------------------------------------------

    def wait(self, predicate: Callable[[], object], timeout: float = 60) -> None:
        self.slurm.wait_for(predicate, timeout)

    def wait_running(self, stage: Stage, count: int = 1) -> list[QueueRow]:
        """The rows of a stage's tasks, once that many of them run."""
        found: list[QueueRow] = []

        def running() -> bool:
            found[:] = [row for row in self.jobs(stage) if row.state == "RUNNING"]
            return len(found) >= count

        self.wait(running)
        return found

    def over(self) -> Any:
        """The output of `status --json` in another shell, once no job of the run is queued."""
        self.wait(lambda: not self.jobs(), 90)
        self.wait(lambda: self.status()["state"] in OVER, 90)
        return self.status()

    def check_published(
        self, dest: Path, pages: Pages, before: dict[str, int] | None = None
    ) -> None:
        """The run ends with these pages published; what was ``finished`` before is as it was."""
        assert self.over()["state"] == "done"
        assert self.repeated(before or {}) == 0
        assert published(dest) == pages.tree

    # Disturbing ---------------------------------------------------------------------------

    def wrapping(self, name: str, body: str) -> Site:
        """The same site with a shell script ahead of a Slurm command; ``$REAL`` is the command.

        Jobs find it too, as they get the shell's environment. Its calls are in `calls`.
        """
        folder = self.wrappers or self.cli.cwd / "bin"
        folder.mkdir(exist_ok=True)
        real = shutil.which(name)
        assert real is not None
        path = folder / name
        log = folder / f"{name}.log"
        asked = 'case "$*" in --version) exec $REAL --version;; esac'  # is there a Slurm at all?
        head = f'#!/bin/bash\nREAL={real}\nLOG={log}\n{asked}\necho "$*" >> $LOG\n'
        path.write_text(f"{head}{body}\n")
        path.chmod(0o755)
        cli = self.cli.having(PATH=f"{folder}:{os.environ['PATH']}")
        return replace(self, cli=cli, wrappers=folder)

    def calls(self, name: str) -> list[str]:
        """The arguments of each call of a wrapped command."""
        assert self.wrappers is not None
        path = self.wrappers / f"{name}.log"
        return path.read_text().splitlines() if path.exists() else []

    def at_work(self, number: int, *, stage: Stage = Stage.EXTRACT) -> Worker:
        """A task's process of the first attempt, stopped as soon as it has started to work."""
        folder = self.run_folder()
        path = folder.heartbeat(stage, number)
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError, ValueError):
                beat = atomic.read_json(path, Heartbeat)
                if beat.attempt == 1:
                    break
            assert time.monotonic() < deadline, "the task did not begin"
            time.sleep(0.005)
        worker = Worker(int(beat.owner.split(":")[1]))
        worker.stop()
        assert not folder.result(stage, number, 1).exists(), "the task was too quick"
        return worker


@dataclass(frozen=True)
class Pages:
    """Archives of small files, and the expected dataset."""

    archives: Path
    tree: dict[str, str]  # sha256 by path

    @classmethod
    def make(cls, folder: Path, counts: Sequence[int]) -> Pages:
        """An archive `shard-N.tar` for each count of files."""
        tree: dict[str, str] = {}
        for index, count in enumerate(counts):
            members = [(f"{index}/{n:06d}.txt", b"%d of %d" % (n, index)) for n in range(count)]
            samples.write_archive(folder / f"shard-{index}.tar", members, "tar")
            tree |= {name: hashlib.sha256(data).hexdigest() for name, data in members}
        return cls(folder, tree)

    @property
    def options(self) -> tuple[str | Path, ...]:
        # Parts are left to the array, whose tasks the faults meet.
        return ("--local-path", self.archives, "--layout", "files", "--no-overlap")


def published(dest: Path) -> dict[str, str]:
    """The dataset published at `dest`, which must contain nothing incomplete."""
    assert not (dest / ".incoming").exists()
    return samples.tree_digest(dest)


@dataclass(frozen=True)
class Worker:
    """A task's process on its node, with its child processes."""

    pid: int

    def send(self, number: Signals) -> None:
        """Send a signal to it and to its children."""
        for pid in (self.pid, *descendants_of(self.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """Stop it, then its children: while it is stopped it starts no other."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, Signals.SIGSTOP)
        while self.alive and _state(self.pid) != "T":  # not before a child it begins is loaded
            time.sleep(0.001)
        self.send(Signals.SIGSTOP)

    def pending(self, number: Signals) -> bool:
        """Whether a signal is pending until it continues (proc(5): SigPnd, ShdPnd)."""
        try:
            text = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        masks = [int(line.split()[1], 16) for line in text.splitlines() if "Pnd:" in line]
        return any(mask >> (number - 1) & 1 for mask in masks)

    @property
    def alive(self) -> bool:
        return Path(f"/proc/{self.pid}/cmdline").exists() and _state(self.pid) != "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def task_with(folder: RunFolder, name: str) -> int:
    """The number of the extract task that has a part of the shard of that name."""
    tasks = folder.load_submission(1).of_stage(Stage.EXTRACT)
    [number] = [task.number for task in tasks if any(name in item for item in task.items)]
    return number


def items(folder: RunFolder, attempt: int, stage: Stage) -> list[str]:
    """The tasks of a submission in a stage."""
    return [i for task in folder.load_submission(attempt).of_stage(stage) for i in task.items]


def kinds(state: Any) -> set[str]:
    """The causes in `status --json`, without finalize's, which follow from the others."""
    return {error["kind"] for error in state["errors"] if error["stage"] != "finalize"}


def gate(path: Path, only: Iterable[Stage] = ()) -> tuple[str, str]:
    """Options that hold tasks on their nodes, before our code starts, while ``path`` exists."""
    path.touch()
    names = "|".join(f"*-{stage.value}" for stage in only) or "*"
    loop = f"while [ -e {path} ]; do sleep 0.1; done"
    return ("--setup", f"case $SLURM_JOB_NAME in {names}) {loop};; esac")
