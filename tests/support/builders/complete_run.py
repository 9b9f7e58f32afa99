"""A complete run in this process, from command line options to the published dataset, in 0.1 s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.download.stage import run_download
from jobs.errors import OrchestrateError
from jobs.extract.child_process import PartExtractor
from jobs.finalize.stage import run_finalize
from jobs.model import Part, Plan
from jobs.runtime.progress import Progress
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import INCOMING, MANIFEST, RECEIPT
from orchestrator import api
from orchestrator.cli import options, request_from_options
from orchestrator.cli.launch import command
from tests.support.builders.made_run import extracted


@dataclass
class CompleteRun:
    """The outcome of a run."""

    folder: RunFolder
    plan: Plan
    problems: list[str]  # of download, extraction and finalize, in this order
    lines: tuple[str, ...]  # finalize's own

    @property
    def text(self) -> str:
        """All messages to the user."""
        return "\n".join((*self.problems, *self.lines))

    @property
    def files(self) -> dict[str, bytes]:
        """The published files by path, without receipt and manifest."""
        dest = Path(self.plan.dest)
        ours = {RECEIPT, MANIFEST}
        return {
            name: path.read_bytes()
            for path in sorted(dest.rglob("*"))
            if path.is_file() and (name := str(path.relative_to(dest))) not in ours
            if not name.startswith(f"{INCOMING}/")
        }


def complete_run(root: Path, source: Path | Sequence[str], *words: str) -> CompleteRun:
    """Launch with a local ``source`` (or options that name one); run and dataset in ``root``."""
    folder, plan = planned(root, source, *words)
    downloaded = run_download(
        folder, plan, [shard.id for shard in plan.shards], Progress(), refetch=frozenset()
    )
    problems = [item.problem.message for item in downloaded if item.problem is not None]
    there = folder.finished_ids()  # the archives of these may be gone
    left = [part for part in plan.parts() if part.id not in there]
    return finished(folder, plan, left, problems)


def planned(root: Path, source: Path | Sequence[str], *words: str) -> tuple[RunFolder, Plan]:
    """The run folder and the plan of such a launch; no stage has run yet."""
    places = ["--dest", str(root / "data"), "--log-dir", str(root / "logs")]
    named = ("--local-path", str(source)) if isinstance(source, Path) else source
    argv = [*named, *places, "--engine", "local", *words]
    values = command.make_context("launch", argv).params
    options.OutputMode.take(values)
    values.pop("show_config")
    made = api.plan(request_from_options.request(values))
    made.folder.create(made.plan)
    return made.folder, made.plan


def finished(
    folder: RunFolder, plan: Plan, parts: list[Part], problems: list[str] | None = None
) -> CompleteRun:
    """Extract ``parts`` of the fetched shards, in that order, and finalize."""
    problems = list(problems or ())
    attempts = PartExtractor(folder, plan, Progress())
    here = folder.fetched_ids()
    items = extracted(attempts, *(part for part in parts if part.shard in here))
    problems += [item.problem.message for item in items if item.problem]
    try:
        summary, problem = run_finalize(folder, plan, Progress())
    except OrchestrateError as error:  # as in a task
        return CompleteRun(folder, plan, [*problems, error.message], ())
    problems += [problem.message] if problem else []
    return CompleteRun(folder, plan, problems, summary.lines)
