"""From a published dataset to its next state: what changed at the source, and a run for just that.

The run is one like any other that replaces a dataset, except that unchanged shards are not fetched:
its extract tasks take their files from the published dataset (``jobs.finalize.carrying``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from msgspec import structs

from jobs.errors import RunFolderError, UsageError
from jobs.finalize import carrying
from jobs.finalize.carrying import PublishedReceipt
from jobs.model import Plan, Published, Shard, SourceKind, SourceRef, Stage
from jobs.sources.base import SourceRequest, key_of
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from jobs.storage.staging import Staging
from orchestrator.lifecycle import launching
from orchestrator.lifecycle.launching import Planned
from orchestrator.lifecycle.request import LaunchRequest, override

_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class PlannedUpdate:
    """What changed at the source of a published dataset, and the run that would follow."""

    planned: Planned
    before: Plan  # of the run that published
    new: tuple[Shard, ...]  # changed, or not there before
    gone: tuple[Shard, ...]  # not there any more
    again: tuple[Shard, ...]  # unchanged, but not to be taken from the published dataset

    @property
    def nothing_to_do(self) -> bool:
        return not (self.new or self.gone)

    @property
    def kept(self) -> tuple[Shard, ...]:
        """The shards that are taken from the published dataset."""
        left = set(self.planned.shards_left)
        return tuple(shard for shard in self.planned.plan.shards if shard.id not in left)


def plan_update(
    dest: Path,
    *,
    log_dir: Path,
    revision: str | None = None,
    engine: str | None = None,
    tasks: int | None = None,
    changes: Mapping[str, object] | None = None,
) -> PlannedUpdate:
    """Ask the source of the dataset in ``dest`` what changed; touches nothing.

    Options are those of the launch; ``revision`` (of a repository or a DOI), ``engine`` and
    ``tasks`` replace its own, ``changes`` the fields of its resources. The run folder that the
    receipt names is looked for in ``log_dir`` first. Raises ``VerificationError`` where there is no
    receipt, ``RunFolderError`` where the run folder is gone, ``SourceError`` as a launch does.
    """
    dest = dest.expanduser().absolute()
    receipt = carrying.read_receipt(dest)
    folder = _run_folder(receipt, log_dir)
    old = folder.load_plan()
    private = _private(folder)
    request = _request(folder, old, private, dest, log_dir, revision)
    if engine is not None:
        request = replace(request, engine=engine)
    if tasks is not None:
        request = replace(request, tasks=tasks)
    if changes:
        resources = override({"all": request.resources}, changes)["all"]
        request = replace(request, resources=resources)
    planned = launching.plan(request)
    state = Published(old.run_id, receipt.published, old.source.revision)
    plan = structs.replace(planned.plan, history=(*receipt.history, state))
    same = carrying.same_shards(old, plan)
    # Where the dataset was moved by now, its files are where the receipt is.
    carry = carrying.plan_carry(folder, structs.replace(old, dest=str(dest)), receipt, same)
    names = {shard.name for shard in plan.shards}
    return PlannedUpdate(
        replace(planned, plan=plan, carry=carry),
        old,
        new=tuple(shard for shard in plan.shards if shard.id not in same),
        gone=tuple(shard for shard in old.shards if shard.name not in names),
        again=tuple(s for s in plan.shards if s.id in same and s.id not in carry.evidence),
    )


def _run_folder(receipt: PublishedReceipt, log_dir: Path) -> RunFolder:
    """The run folder of the run that published, which must be the user's own."""
    places = [log_dir.expanduser().absolute() / receipt.run_id]
    if receipt.run_dir:
        places.append(Path(receipt.run_dir))
    folder = next((RunFolder(p) for p in places if p.is_dir()), None)
    if folder is None:
        raise RunFolderError(
            f"the folder of run {receipt.run_id}, which published the dataset, is not in "
            f"{' nor at '.join(map(str, places))}; give its place with --log-dir. If it is gone, "
            "launch again with --overwrite, which fetches everything"
        )
    folder.check()
    return folder


def _private(folder: RunFolder) -> Mapping[str, str]:
    try:
        return atomic.read_json(folder.private, dict[str, str])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise RunFolderError(
            f"{folder.private} cannot be read ({type(error).__name__}); launch again"
        ) from None


def _request(
    folder: RunFolder,
    old: Plan,
    private: Mapping[str, str],
    dest: Path,
    log_dir: Path,
    revision: str | None,
) -> LaunchRequest:
    """The launch of ``old`` again, into the same place."""
    numbers = folder.submission_numbers()
    if not numbers:
        raise RunFolderError(
            f"{folder.submissions} is empty, so the options of run {old.run_id} are not known; "
            "launch again with --overwrite"
        )
    first, last = folder.load_submission(numbers[0]), folder.load_submission(numbers[-1])
    asked = last.resources[Stage.EXTRACT.value]
    download = last.resources[Stage.DOWNLOAD.value]
    local = (last.onward or last.engine) == "local"
    return LaunchRequest(
        source=_source(old, private, revision),
        dest=dest,
        temp_dir=_temp_dir(old),
        log_dir=log_dir,
        options=structs.replace(old.options, overwrite=True, expect_records=None),
        engine=old.engine,
        # On this machine as many as it has cores, which may be another machine by now.
        parallel=None if local else last.parallel,
        resources=asked,
        download_partition=download.partition if download.partition != asked.partition else None,
        download_sbatch_args=download.sbatch_args[len(asked.sbatch_args) :],
        download_on="login" if first.onward else "cluster",
        retries=first.retries,
        temp_limit=first.temp_limit,
        then=Path(first.then) if first.then else None,
    )


def _temp_dir(old: Plan) -> Path | None:
    """The launch's ``--temp-dir``; None where archives lay in the staging folder."""
    temp = Path(old.temp)
    return None if Staging(old).root in temp.parents else temp.parent


def _source(old: Plan, private: Mapping[str, str], revision: str | None) -> SourceRequest:
    """What the launch of ``old`` asked its source for; URLs with their secrets again."""
    ref, options = old.source, old.options
    if revision is not None and ref.kind not in (SourceKind.HUB, SourceKind.DOI):
        raise UsageError(
            f"--revision {revision}: the dataset came from {ref.locator}, which has no revisions"
        )
    _check_endpoint(ref)
    locators: tuple[str, ...] = (ref.locator,)
    if ref.kind is SourceKind.URL:
        locators = tuple(
            _named_url(file.name, private.get(key_of(shard.id, index), file.locator))
            for shard in old.shards
            for index, file in enumerate(shard.files)
        )
    return SourceRequest(
        kind=ref.kind,
        locators=locators,
        files=ref.files,
        include=ref.include,
        exclude=ref.exclude,
        revision=revision or ref.asked_revision,
        repo_type=ref.repo_type,
        header_env=options.header_env,
        layout=options.layout,
        folder_times=options.folder_times,
        join=ref.join,
        nested=options.nested,
    )


def _named_url(name: str, url: str) -> str:
    """A line of a list of URLs, with the name that the file has; one with spaces goes without."""
    return url if len(name.split()) > 1 else f"{name}\t{url}"


def _check_endpoint(ref: SourceRef) -> None:
    """A repository is asked for where it came from."""
    if ref.kind is not SourceKind.HUB:
        return
    now = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    if now != (ref.endpoint or _HUB):
        raise UsageError(
            f"the dataset came from {ref.endpoint or _HUB}, but HF_ENDPOINT names {now}; set "
            f"HF_ENDPOINT={ref.endpoint or _HUB}"
        )
