"""The output of launch, update and resume: the plan, the job ids, and the next commands."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import click

from jobs.model import Layout, Options, Plan, Resources, Shard, ShardKind, Stage, utc_now
from jobs.outputs import registry
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted_few
from jobs.storage.staging import MANIFEST
from orchestrator import units
from orchestrator.api import Planned, PlannedUpdate, Resumable
from orchestrator.api import status as status_of
from orchestrator.cli import exit_codes, progress
from orchestrator.cli.options import OutputMode
from orchestrator.display import status_screen, terminal
from orchestrator.inspection import metrics, pending_reasons, run_list, status_json
from orchestrator.inspection.state import RunState, RunStatus

DRY_RUN = "Dry run: nothing was submitted or written."
_FEW = 5  # names on a line
_SHOWN_SHARDS = 12  # of a plan, at most


def plan_lines(planned: Planned) -> list[str]:
    """What a launch will do."""
    plan = planned.plan
    archives = sum(shard.kind is ShardKind.ARCHIVE for shard in plan.shards)
    parts = len(plan.parts())
    tasks = len(planned.draft.of_stage(Stage.EXTRACT))
    lines = [
        f"Run       {plan.run_id}",
        f"Source    {plan.source.kind.value} {plan.source.pinned_name}",
        f"Shards    {len(plan.shards):,} ({units.plural(archives, 'archive')}), {_total(plan)}",
        f"To        {plan.dest}",
        f"Archives  {_archives(planned)}",
        f"Records   {_records(plan.options.layout)}",
        f"Verify    {plan.options.verify.value}, digest {plan.options.digest}",
    ]
    if plan.options.packs:
        lines.append(f"Output    {_packed(plan.options)}")
    throttle = f", {planned.parallel} at a time" if planned.parallel < tasks else ""
    lines.append(
        f"Array     {units.plural(parts, 'part')} in {units.plural(tasks, 'task')}{throttle}"
    )
    if not planned.is_local:
        lines.append(f"Each job  {resource_line(planned.request.resources)}")
    return [*lines, engine_line(planned), *note_lines(planned)]


def note_lines(planned: Planned) -> list[str]:
    """The notes on a launch."""
    return [f"Note      {note}" for note in planned.notes]


def _records(layout: Layout) -> str:
    """Where the records come from, and the option for a dataset that has none."""
    if not layout.has_records:
        return "none: all files are published as they are"
    source = layout.records if layout.name == "websight" else f"{layout.records}, or detected"
    return f"{source}; a dataset without records needs --layout files"


def _packed(wanted: Options) -> str:
    """A packed output and the limits of its shards."""
    output = registry.packed(wanted.output)
    if output.single:
        return f"{wanted.output.value}, one {output.unit}"
    most = f", {wanted.shard_records:,} records" if wanted.shard_records else ""
    return f"{wanted.output.value}, {output.unit}s of at most {units.size(wanted.shard_size)}{most}"


def _archives(planned: Planned) -> str:
    """Where archives are, and how long, where that is not until the dataset is published."""
    plan, limit = planned.plan, planned.temp_limit
    if plan.source.is_local:
        return f"read where they are; temporary files in {plan.temp}"
    if plan.options.keep_archive:
        return f"{plan.temp} (kept)"
    return plan.temp if limit is None else f"{plan.temp} (at most {units.size(limit)} at a time)"


def engine_line(planned: Planned | Resumable) -> str:
    """The engine, and the reason if it may be unexpected."""
    return f"Engine    {planned.engine}{f': {planned.why_local}' if planned.why_local else ''}"


def resource_line(requested: Resources) -> str:
    """The resources of a job, as options of sbatch."""
    words = [
        f"--time={units.format_time(requested.time_min)}",
        f"--cpus-per-task={requested.cpus}",
    ]
    if requested.mem_mb:
        words.append(f"--mem={requested.mem_mb}M")
    for name in ("partition", "account", "qos", "constraint", "exclude", "reservation"):
        if value := getattr(requested, name):
            words.append(f"--{name}={value}")
    return " ".join([*words, *requested.sbatch_args])


def _total(plan: Plan) -> str:
    sizes = [shard.size for shard in plan.shards]
    known = sum(size for size in sizes if size is not None)
    unknown = sizes.count(None)
    more = f" and {unknown} of unknown size" if unknown else ""
    return units.size(known) + more


def _shard_lines(shards: tuple[Shard, ...]) -> list[str]:
    lines = []
    for shard in shards[:_SHOWN_SHARDS]:
        size = "?" if shard.size is None else units.size(shard.size)
        split = f"  ({len(shard.files)} files)" if len(shard.files) > 1 else ""
        lines.append(f"  {size:>9}  {units.plural(shard.parts, 'part'):>10}  {shard.name}{split}")
    if len(shards) > _SHOWN_SHARDS:
        lines.append(f"  … and {len(shards) - _SHOWN_SHARDS} more")
    return lines


def print_lines(lines: Sequence[str]) -> None:
    """Print lines to standard error."""
    _print(terminal.style_of(sys.stderr).encodable("\n".join(lines)), err=True)


def show(lines: Sequence[str]) -> None:
    """Print ``lines`` on standard output."""
    _print(terminal.stdout_style().encodable("\n".join(lines)))


def _print(text: str | bytes, *, err: bool = False) -> None:
    """Print; a reader that has ended, as in `| head`, is no error of the command."""
    try:
        click.echo(text, err=err)
    except BrokenPipeError:
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        setattr(sys, "stderr" if err else "stdout", nowhere)


def announce(planned: Planned, mode: OutputMode) -> None:
    """Print what will be done and, on a terminal, ask whether to continue."""
    print_lines(plan_lines(planned))
    if mode.asks and not _agrees():
        print_lines(["Nothing was started."])
        raise click.exceptions.Exit(exit_codes.INTERRUPTED)


def _agrees() -> bool:
    try:
        return click.confirm("Start?", default=True, err=True)
    except click.Abort:  # Ctrl-C, or the end of the input
        print_lines([""])  # the question has no end of its line yet
        return False


def dry_run(planned: Planned, *, as_json: bool) -> int:
    """Show plan, sizes, array and batch scripts; exit code 3 if the run could not start."""
    problems = planned.problems()
    scripts = planned.scripts()
    if as_json:
        print_json(_dry_json(planned, problems, scripts))
    else:
        lines = [*plan_lines(planned), *_shard_lines(planned.plan.shards)]
        for stage, script in scripts.items():
            lines += ["", f"--- {stage.value} ---", script.rstrip()]
        lines += ["", *(f"✗ {problem}" for problem in problems)]
        show([*lines, DRY_RUN])
    return exit_codes.PREFLIGHT if problems else exit_codes.DONE


def _dry_json(planned: Planned, problems: list[str], scripts: dict[Stage, str]) -> dict[str, Any]:
    plan = planned.plan
    draft = planned.draft
    return {
        "schema": status_json.JSON_SCHEMA,
        "dry_run": True,
        "engine": planned.engine,
        "source": {
            "kind": plan.source.kind.value,
            "locator": plan.source.locator,
            "revision": plan.source.revision,
        },
        "dest": plan.dest,
        "shards": [
            {
                "id": shard.id,
                "name": shard.name,
                "size": shard.size,
                "files": len(shard.files),
                "parts": shard.parts,
            }
            for shard in plan.shards
        ],
        "bytes": sum(shard.size or 0 for shard in plan.shards),
        "parts": len(plan.parts()),
        "temp_limit": planned.temp_limit,
        "array_size": len(draft.of_stage(Stage.EXTRACT)),
        "scripts": {stage.value: script for stage, script in scripts.items()},
        "notes": planned.notes,
        "problems": problems,
    }


def launched(folder: RunFolder, mode: OutputMode) -> int:
    """Print the job ids and the next commands, or how the run ended."""
    state = status_of(folder)
    waited = mode.wait and state.status is RunStatus.RUNNING
    if waited:
        state = _watched(state, folder, mode)
    code = exit_codes.of_state(state)
    if waited and state.status is RunStatus.RUNNING:
        print_lines([_HINTS.format(run=run_list.run_word(folder))])
        code = exit_codes.INTERRUPTED
    if mode.parsable:
        finals = [job for each in state.submissions for job in each.job_ids(Stage.FINALIZE)]
        show([finals[-1] if finals else ""])
    elif mode.as_json:
        print_json(status_json.as_json(state, folder, utc_now()))
    elif waited:
        pass  # already shown
    elif state.status is RunStatus.RUNNING:
        print_lines(submitted_lines(state, folder))
    else:
        look = terminal.stdout_style()
        run = run_list.run_word(folder)
        show([status_screen.render(state, utc_now(), look, run=run).removesuffix("\n")])
    return code


def _watched(state: RunState, folder: RunFolder, mode: OutputMode) -> RunState:
    """The run's last state, after it has ended or Ctrl-C has ended the display."""
    if mode.quiet:
        return progress.watch(lambda: status_of(folder), folder, out=io.StringIO())
    print_lines(submitted_lines(state, folder))
    return progress.watch(lambda: status_of(folder), folder, out=sys.stderr)


_HINTS = """\
Status:   websight-orchestrate status {run} --watch
Cancel:   websight-orchestrate cancel {run}"""


def submitted_lines(state: RunState, folder: RunFolder) -> list[str]:
    """The submitted jobs, and the next commands."""
    last = state.submissions[-1]
    jobs = []
    for stage in Stage:
        if ids := last.job_ids(stage):
            count = len(last.of_stage(stage))
            is_array = stage is Stage.EXTRACT or count > 1
            size = f" [{units.plural(count, 'task')}]" if is_array else ""
            jobs.append(f"{stage.value} {', '.join(ids)}{size}")
    return [f"Submitted {' → '.join(jobs)}", _HINTS.format(run=run_list.run_word(folder))]


def update_lines(update: PlannedUpdate) -> list[str]:
    """What changed at the source, and what an update will do."""
    before, now = update.before.source, update.planned.plan.source
    states = now.pinned_name
    if before.revision != now.revision:
        states = f"{before.pinned_name} → {now.revision}"
    lines = [f"Dataset   {update.planned.plan.dest}", f"Source    {now.kind.value} {states}"]
    if update.nothing_to_do:
        check = f"websight-orchestrate verify {shlex.quote(update.planned.plan.dest)}"
        return [
            *lines,
            "Nothing changed: the dataset is up to date with its source.",
            f"Its published files were not checked; to do that, run: {check}",
        ]
    fetched = (*update.changed, *update.refetched)
    lines.append(f"Reused    {_amount(update.reused)} of the published dataset")
    lines.append(f"Download  {_amount(fetched)}{_names(update.changed)}")
    if any(shard.kind is ShardKind.TREE for shard in update.changed):
        lines.append("          a dataset folder is always copied again, changed or not")
    elif update.unversioned:
        lines.append(
            f"          including {_amount(update.unversioned)}, which may be unchanged: their "
            "server reports neither a version nor a digest"
        )
    for reason, shards in update.reasons.items():
        lines.append(f"          including {_amount(shards)}, unchanged but not reused: {reason}")
    if update.removed:
        lines.append(f"Removed   {_amount(update.removed)}{_names(update.removed)}")
    return lines


def _amount(shards: Sequence[Shard]) -> str:
    size = sum(shard.size or 0 for shard in shards)
    return f"{units.plural(len(shards), 'shard')}, {units.size(size)}"


def _names(shards: Sequence[Shard]) -> str:
    return f": {quoted_few([shard.name for shard in shards], _FEW)}" if shards else ""


def update_json(update: PlannedUpdate, problems: Sequence[str] = ()) -> None:
    """What an update will do, as ``update --dry-run --json`` prints it."""
    planned = update.planned
    print_json(
        {
            "schema": status_json.JSON_SCHEMA,
            "dry_run": True,
            "dest": planned.plan.dest,
            "run_id": update.before.run_id,
            "revision": update.before.source.revision,
            "new_revision": planned.plan.source.revision,
            "nothing_to_do": update.nothing_to_do,
            "reused": [shard.name for shard in update.reused],
            "changed": [shard.name for shard in update.changed],
            "refetched": [shard.name for shard in update.refetched],
            "reasons": {
                reason: [shard.name for shard in shards]
                for reason, shards in update.reasons.items()
            },
            "removed": [shard.name for shard in update.removed],
            "notes": planned.notes,
            "problems": problems,
        }
    )


def resume_lines(planned: Resumable) -> list[str]:
    """What a resume will do."""
    if planned.damage is not None:
        packs = planned.state.plan.options.packs
        fact = _repair(blind=planned.damage.is_blind, packs=packs)
        return [*planned.damage.lines, f"{fact} Until then the receipt is withdrawn."]
    step = planned.step
    if not step.tasks:
        notes = [f"  {note}" for note in step.notes]
        return [_nothing_to_do(planned), *notes, *_stuck(planned.state)]
    work = [f"{units.plural(step.shards, 'shard')} to download"] if step.shards else []
    work += [f"{units.plural(step.parts, 'part')} to extract"] if step.parts else []
    work += ["pack"] if any(task.stage is Stage.PACK for task in step.tasks) else []
    lines = [f"Resume {planned.folder.run_id}: {', '.join([*work, 'finalize'])}"]
    if step.refetch:
        lines.append(f"  downloading again (the archive was damaged): {', '.join(step.refetch)}")
    if step.cancel:
        lines.append(f"  cancelling first (new jobs replace them): {', '.join(step.cancel)}")
    if step.also_after:
        lines.append(f"  left running: {', '.join(step.also_after)}")
    if step.temp_limit is not None and step.shards:
        lines.append(f"  archives: at most {units.size(step.temp_limit)} stored at a time")
    return [*lines, *(f"  {note}" for note in step.notes)]


def _repair(*, blind: bool, packs: bool) -> str:
    """How a resume repairs; ``blind``: nothing is known of the files yet."""
    if not blind:
        fact = "Resume repairs it by extracting the damaged parts again."
        copied = " The members of all others are copied from the published shards."
        return fact + copied if packs else fact
    fact = "Resume repairs it. "
    if packs:
        fact = (
            f"Without {MANIFEST} no member of the published shards can be used again: resume "
            "extracts all archives again, and downloads those that are gone. "
        )
    return f"{fact}After that the files are checked."


def _nothing_to_do(planned: Resumable) -> str:
    status, remark = planned.state.status, planned.state.remark
    if status is RunStatus.RUNNING:
        return "The run is still active; there is nothing to resume. See `status`."
    if status is not RunStatus.DONE:
        return "There is nothing to do."
    if remark:
        return f"There is nothing to do: {remark}."
    checked = "all its files have the right sizes (`resume --deep` checks all content too)"
    if planned.request.deep:
        checked = "all its content was checked"
    return f"The dataset is published, and {checked}; there is nothing to do."


def _stuck(state: RunState) -> list[str]:
    """What a run waits for that never ends by itself, such as a job that is held."""
    return [
        f"  {group.stage.value} waits: {pending_reasons.explain(group.reason, group.job_ids)}"
        for group in metrics.waiting(state, utc_now())
        if pending_reasons.will_never_start(group.reason)
    ]


def resume_json(planned: Resumable, problems: Sequence[str]) -> None:
    """Print what a resume will do for ``resume --dry-run --json``."""
    step = planned.step
    items = {stage: [i for t in step.tasks if t.stage is stage for i in t.items] for stage in Stage}
    print_json(
        {
            "schema": status_json.JSON_SCHEMA,
            "dry_run": True,
            "run_id": planned.folder.run_id,
            "run_dir": str(planned.folder.path),
            "state": planned.state.status.value,
            "nothing_to_do": not step.tasks and planned.damage is None,
            "shards": items[Stage.DOWNLOAD],
            "parts": items[Stage.EXTRACT],
            "array_size": sum(task.stage is Stage.EXTRACT for task in step.tasks),
            "refetch": step.refetch,
            "cancel": step.cancel,
            "left_alone": step.also_after,
            "resources": step.resources,
            "temp_limit": step.temp_limit,
            "damage": planned.damage,
            "notes": step.notes,
            "problems": problems,
        }
    )


def print_json(value: object) -> None:
    """Print a JSON object on standard output, in UTF-8 whatever the locale (RFC 8259)."""
    _print(atomic.dumps(value).removesuffix(b"\n"))
