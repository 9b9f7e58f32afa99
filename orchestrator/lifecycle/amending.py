"""Changes to a run's options that finalize applies to what is already extracted."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from msgspec import structs

from jobs.errors import UsageError
from jobs.model import Format, Layout, Match, OnBadRecord, OnCollision, Options, Plan, ShardKind
from jobs.outputs import registry
from jobs.storage.manifest import read_summary
from jobs.storage.run_folder import RunFolder
from orchestrator.inspection.run_list import run_word
from orchestrator.inspection.state import RunState, RunStatus
from orchestrator.lifecycle import space
from orchestrator.lifecycle.request import check_layout


@dataclass(frozen=True)
class Amendments:
    """Options that a resume changes; None: as they are."""

    layout: Literal["files"] | None = None
    on_bad_record: OnBadRecord | None = None
    on_collision: OnCollision | None = None
    match: Match | None = None
    expect_records: int | None = None
    records_file: str | None = None
    images_dir: str | None = None
    image_field: str | None = None

    def __str__(self) -> str:
        """The options as they are given to `resume`."""
        return " ".join(
            f"--{name.replace('_', '-')} {value.value if isinstance(value, Enum) else value}"
            for name, value in vars(self).items()
            if value is not None
        )

    @property
    def changes_layout(self) -> bool:
        """Whether records and images are looked for in other places."""
        return bool(self.layout or self.records_file or self.images_dir or self.image_field)


def amended(folder: RunFolder, state: RunState, amendments: Amendments) -> Options:
    """The options of the run's plan with ``amendments``.

    Raises ``UsageError`` if the run is active or has published, or if these options would extract
    the archives differently.
    """
    if state.status is RunStatus.DONE:
        raise UsageError(
            f"run {folder.run_id} has published its dataset, whose options cannot be changed any "
            "more; to publish it differently, launch again with --overwrite"
        )
    if state.live:
        raise UsageError(
            f"run {folder.run_id} is still active; run `resume` with these options after it has "
            f"ended, or after `websight-orchestrate cancel {run_word(folder)}`"
        )
    if amendments.on_collision is OnCollision.PER_SHARD:
        raise _differs("--on-collision per-shard extracts each archive into a folder of its own")
    options = state.plan.options
    if amendments.changes_layout:
        options = _with_layout(folder, state, amendments)
    options = structs.replace(options, **dict(_values(amendments)))
    if amendments.on_collision is not None and state.submissions[-1].temp_limit is not None:
        space.check_limit(options)
    if options.packs:
        registry.packed(options.output).check(options)
    return options


def _values(amendments: Amendments) -> Iterator[tuple[str, Any]]:
    for name in ("on_bad_record", "on_collision", "match", "expect_records"):
        if (value := getattr(amendments, name)) is not None:
            yield name, value


def _with_layout(folder: RunFolder, state: RunState, amendments: Amendments) -> Options:
    """The options with another layout, and with the top folder that extraction has removed."""
    plan = state.plan
    if state.parts_left:
        raise UsageError(
            f"{len(state.parts_left)} parts of run {folder.run_id} are not extracted yet; run "
            "`resume` first, and once more with another layout when all parts are extracted"
        )
    layout = plan.options.layout
    if amendments.layout:
        layout = Layout(amendments.layout)
    elif amendments.records_file:
        layout = structs.replace(
            layout, name="websight", records=posixpath.normpath(amendments.records_file)
        )
    if amendments.images_dir:
        layout = structs.replace(layout, images=posixpath.normpath(amendments.images_dir))
    if amendments.image_field:
        layout = structs.replace(layout, image_field=amendments.image_field)
    check_layout(layout)
    apart = amendments.layout or amendments.records_file
    for part in plan.parts():
        summary = read_summary(folder.manifest(part))
        fetched = folder.load_fetched(part.shard)
        is_table = fetched is not None and fetched.format is Format.PARQUET
        if summary.has_records and (summary.samples or is_table):
            raise _differs(f"extraction made the records of {_name(plan, part.shard)}")
        if summary.has_records and apart:
            name = plan.options.layout.records
            raise _differs(f"{_name(plan, part.shard)} contains {name}")
    if plan.options.on_collision is OnCollision.PER_SHARD:
        raise _differs("the folders of --on-collision per-shard depend on the layout")
    return structs.replace(plan.options, layout=layout, strip_components=_stripped(folder, plan))


def _stripped(folder: RunFolder, plan: Plan) -> int:
    """The number of leading folders that extraction has removed from every archive's members."""
    if plan.options.strip_components is not None:
        return plan.options.strip_components
    depths = set()
    for shard in plan.shards:
        if shard.kind is ShardKind.ARCHIVE:
            fetched = folder.load_fetched(shard.id)
            top = fetched.top if fetched is not None else None
            depths.add(0 if top is None else 1 + top.count("/"))
    if len(depths) > 1:
        raise _differs("the top folder of some archives was removed, and that of others was not")
    return max(depths, default=0)


def _name(plan: Plan, shard_id: str) -> str:
    return next(shard.name for shard in plan.shards if shard.id == shard_id)


def _differs(fact: str) -> UsageError:
    return UsageError(
        f"this change needs another extraction, because {fact}; launch again with these options"
    )
