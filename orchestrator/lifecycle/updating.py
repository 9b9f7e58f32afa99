"""Updates of a published dataset: what changed at its source, and a run that fetches only that.

The run replaces the dataset like any other run, but does not fetch unchanged shards: its extract
tasks take their files from the published dataset (``jobs.finalize.carrying``).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from jobs.errors import RunFolderError, SourceError, with_message
from jobs.model import Plan, Published, Shard, Stage
from jobs.sources import registry, url_lists
from jobs.storage import presence
from jobs.storage.receipt import Receipt
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from orchestrator.engines.registry import LOCAL
from orchestrator.engines.slurm.arguments import arguments_for
from orchestrator.lifecycle import launching
from orchestrator.lifecycle.launching import Planned
from orchestrator.lifecycle.request import LaunchRequest, override

if TYPE_CHECKING:
    from jobs.finalize.carrying import CarryPlan


@dataclass(frozen=True)
class PlannedUpdate:
    """What changed at the source of a published dataset, and a run that applies the changes."""

    planned: Planned
    before: Plan  # of the run that published the dataset
    changed: tuple[Shard, ...]  # changed or new at the source
    removed: tuple[Shard, ...]  # no longer at the source
    refetched: tuple[Shard, ...]  # unchanged, but their files cannot be reused

    @property
    def nothing_to_do(self) -> bool:
        return not (self.changed or self.removed)

    @property
    def unversioned(self) -> list[Shard]:
        """Those of ``changed`` that may be unchanged: the source has no version and no digest."""
        known = {shard.name for shard in self.before.shards}
        return [
            shard
            for shard in self.changed
            if shard.name in known
            and any(file.digest is None and file.version is None for file in shard.files)
        ]

    @property
    def reasons(self) -> dict[str, list[Shard]]:
        """The ``refetched`` shards by the reason, the end of a sentence on them."""
        known = self.planned.carry.reasons if self.planned.carry else {}
        found: dict[str, list[Shard]] = {}
        for shard in self.refetched:
            found.setdefault(known[shard.id], []).append(shard)
        return found

    @property
    def reused(self) -> tuple[Shard, ...]:
        """The shards whose files are taken from the published dataset."""
        left = set(self.planned.shards_left)
        return tuple(shard for shard in self.planned.plan.shards if shard.id not in left)


def plan_update(
    dest: Path,
    *,
    log_dir: Path,
    revision: str | None = None,
    engine: str | None = None,
    tasks: int | None = None,
    temp_limit: int | None = None,
    changes: Mapping[str, object] | None = None,
) -> PlannedUpdate:
    """Ask the source of the dataset in ``dest`` what changed; changes nothing.

    The options are those of the launch, except for ``revision`` (of a repository or a DOI),
    ``engine``, ``tasks``, ``temp_limit`` (bytes of archives stored at a time) and the fields of
    its resources in ``changes``. The run folder is searched in ``log_dir``, then at the path in the
    receipt. Raises ``VerificationError`` without a valid receipt, ``RunFolderError`` without the
    run folder, ``UsageError`` if the dataset cannot be updated with these options, ``SourceError``
    as a launch does.
    """
    from jobs.finalize import carrying  # a launch starts faster without

    dest = dest.expanduser().absolute()
    receipt = carrying.published_receipt(dest)
    folder = _run_folder(receipt, log_dir)
    old = folder.load_plan()
    private = folder.load_private()
    request = _request(folder, old, private, dest, log_dir, revision, changes or {})
    asked: dict[str, Any] = {"engine": engine, "tasks": tasks, "temp_limit": temp_limit}
    request = replace(
        request,
        **{name: value for name, value in asked.items() if value is not None},
    )
    if request.temp_limit is not None:
        request = replace(request, download_tasks=1)  # the only one that knows what is stored

    def carry(new: Plan) -> CarryPlan:
        # A dataset that was moved has its files beside its receipt.
        moved = structs.replace(old, dest=str(dest))
        same = carrying.same_shards(old, new)
        return carrying.plan_carry(folder, moved, receipt, same, new=new)

    try:
        planned = _planned(request, carry)
    except SourceError as error:
        if not url_lists.may_have_expired(error, private.values()):
            raise
        again = (
            f"`resume {shlex.quote(str(dest))} --url-list FILE` stores new addresses of the files"
        )
        raise with_message(error, f"{error.message} ({again}; then run `update` again)") from error
    state = Published(old.run_id, receipt.published, old.source.revision)
    plan = structs.replace(planned.plan, history=(*receipt.history, state))
    return _compared(old, replace(planned, plan=plan))


def _planned(request: LaunchRequest, carry: Callable[[Plan], CarryPlan]) -> Planned:
    """The plan of a launch. The launch's script (``then``) is stored but waits for Slurm."""
    if request.then is None or request.engine != LOCAL:
        return launching.plan(request, carry)
    planned = launching.plan(replace(request, then=None), carry)
    note = f"{request.then}, the launch's --then, is not submitted, because this is not on Slurm"
    return replace(planned, request=request, notes=(*planned.notes, note))


def _compared(old: Plan, planned: Planned) -> PlannedUpdate:
    from jobs.finalize import carrying  # as above

    shards = planned.plan.shards
    same = carrying.same_shards(old, planned.plan)
    left, names = set(planned.shards_left), {shard.name for shard in shards}
    return PlannedUpdate(
        planned,
        old,
        changed=tuple(shard for shard in shards if shard.id not in same),
        removed=tuple(shard for shard in old.shards if shard.name not in names),
        refetched=tuple(shard for shard in shards if shard.id in same and shard.id in left),
    )


def _run_folder(receipt: Receipt, log_dir: Path) -> RunFolder:
    """The folder of the run that published the dataset, which must be the user's own."""
    places = [log_dir.expanduser().absolute() / receipt.run_id]
    if receipt.run_dir:
        places.append(Path(receipt.run_dir))
    folder = next((RunFolder(p) for p in places if presence.may_exist(p)), None)
    if folder is None:
        raise RunFolderError(
            f"the folder of run {receipt.run_id}, which published the dataset, does not exist "
            f"at {' or '.join(dict.fromkeys(map(str, places)))}; if it was moved, give its parent "
            "folder with --log-dir; otherwise launch again with --overwrite, which downloads "
            "everything"
        )
    folder.check()
    return folder


def _request(
    folder: RunFolder,
    old: Plan,
    private: Mapping[str, str],
    dest: Path,
    log_dir: Path,
    revision: str | None,
    changes: Mapping[str, object],
) -> LaunchRequest:
    """The request that launched ``old``, for the same destination.

    ``changes``: to the resources of all jobs, except the download job's own partition.
    """
    numbers = folder.submission_numbers()
    if not numbers:
        raise RunFolderError(
            f"{folder.submissions} is empty, so the options of run {old.run_id} are unknown; "
            "launch again with --overwrite"
        )
    first, last = folder.load_submission(numbers[0]), folder.load_submission(numbers[-1])
    extract = last.resources[Stage.EXTRACT.value]
    download = last.resources[Stage.DOWNLOAD.value]
    own = download.partition if download.partition != extract.partition else None
    # Both may have got others since (``recovery.grown``).
    args = [arg for arg in download.sbatch_args if arg not in extract.sbatch_args]
    changed = override(extract, changes)
    args += arguments_for(structs.replace(override(download, changes), partition=None), changed)
    return LaunchRequest(
        source=registry.request_again(old, private, revision),
        dest=dest,
        temp_dir=_temp_dir(old),
        log_dir=log_dir,
        options=structs.replace(old.options, overwrite=True, expect_records=None),
        engine=old.engine,
        tasks=last.most,
        parallel=old.parallel,
        download_tasks=old.download_tasks,
        resources=changed,
        download_partition=own,
        download_sbatch_args=tuple(args),
        download_on=old.download_on,
        retries=first.retries,
        temp_limit=last.temp_limit,
        then=Path(first.then) if first.then else None,
    )


def _temp_dir(old: Plan) -> Path | None:
    """The launch's ``--temp-dir``; None if archives were stored in the staging folder."""
    temp = Path(old.temp)
    return None if Staging(old).root in temp.parents else temp.parent
