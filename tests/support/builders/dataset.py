"""A dataset that is published, updated and repaired from a folder of archives, in this process."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.samples import tree_digest
from jobs.download.stage import run_download
from jobs.extract.child_process import PartExtractor
from jobs.finalize import carrying
from jobs.finalize.repair import RepairWork, reset_damaged
from jobs.finalize.stage import run_finalize
from jobs.model import Options, Outcome, Problem, SourceKind
from jobs.runtime.progress import Progress
from jobs.sources.base import SourceRequest
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from jobs.verify.dataset import verify_dataset
from orchestrator.lifecycle import launching
from orchestrator.lifecycle.launching import Planned
from orchestrator.lifecycle.request import LaunchRequest
from orchestrator.lifecycle.updating import PlannedUpdate, plan_update
from tests.support.builders.made_run import extracted


class Dataset:
    """A folder of archives, and the dataset that is published from it, in this process."""

    def __init__(self, tmp: Path, options: Options | None = None, ending: str = "tar") -> None:
        self._tmp = tmp
        self._options = options or Options()
        self._ending = ending
        self.source, self.dest, self.logs = tmp / "source", tmp / "data", tmp / "logs"
        self.source.mkdir()

    def path(self, name: str) -> Path:
        return self.source / f"{name}.{self._ending}"

    def launch(self, dest: Path | None = None, **fields: Any) -> None:
        """Publish in ``dest`` (None: its own); ``fields``: others of the request."""
        options = self._options
        source = SourceRequest(
            SourceKind.LOCAL,
            (str(self.source),),
            layout=options.layout,
            folder_times=options.folder_times,
            nested=options.nested,
        )
        request = LaunchRequest(source, dest or self.dest, log_dir=self.logs, options=options)
        assert work(launching.plan(replace(request, **{"engine": "local", **fields}))) is None

    def plan(self, **changes: Any) -> PlannedUpdate:
        return plan_update(self.dest, **{"log_dir": self.logs, **changes})

    def update(self) -> PlannedUpdate:
        update = self.plan()
        assert work(update.planned) is None
        return update

    def reset(self, *, deep: bool = True) -> RepairWork:
        """Verify the dataset, and reset what is damaged."""
        report = verify_dataset(self.dest, deep=deep, workers=1, progress=Progress())
        assert not report.ok
        return reset_damaged(self.run, self.run.load_plan(), report)

    @property
    def run(self) -> RunFolder:
        """The folder of the run that published the dataset."""
        return RunFolder(self.logs / carrying.published_receipt(self.dest).run_id)

    def equals_a_new_launch(self) -> bool:
        fresh = self._tmp / "fresh" / self.dest.name  # shards are named after it
        shutil.rmtree(fresh, ignore_errors=True)
        self.launch(fresh)
        return published(self.dest) == published(fresh)


def work(planned: Planned) -> Problem | None:
    """Do the whole run, without an engine; returns the problem of finalize."""
    folder, plan = planned.folder, planned.plan
    folder.create(plan)
    if planned.carry is not None:
        planned.carry.write(folder)
    atomic.create_json(folder.submission(1), planned.draft)
    return attempt(folder)


def attempt(folder: RunFolder) -> Problem | None:
    """Do what is left of a run; returns the problem of finalize."""
    plan = folder.load_plan()
    Staging(plan).make_folders()
    shards = [shard.id for shard in plan.shards if shard.id not in folder.fetched_ids()]
    run_download(folder, plan, shards, Progress(), refetch=frozenset(), extracts=False)
    extractor = PartExtractor(folder, plan, Progress())
    left = [part for part in plan.parts() if part.id not in folder.finished_ids()]
    assert {result.outcome for result in extracted(extractor, *left)} <= {Outcome.OK}
    return run_finalize(folder, plan, Progress())[1]


def published(dest: Path) -> tuple[dict[str, str], bytes]:
    """All published files except the receipt, which describes the run."""
    return tree_digest(dest), (dest / "MANIFEST.jsonl").read_bytes()
