"""The screen that ``status`` prints, 80 to 120 columns wide."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from jobs.model import SourceKind, Stage
from orchestrator import units
from orchestrator.display.terminal import TerminalStyle
from orchestrator.inspection import metrics, pending_reasons
from orchestrator.inspection.metrics import StageCount, Waiting, bytes_fetched, count_stages
from orchestrator.inspection.problem_groups import NOT_FAILED, ProblemGroup, problem_groups
from orchestrator.inspection.state import CONSEQUENCES, RunState, RunStatus, TaskStatus

PROGRAM = "websight-orchestrate"

STATE_STYLE = {
    RunStatus.PLANNED: "yellow",
    RunStatus.RUNNING: "blue",
    RunStatus.DONE: "green",
    RunStatus.INCOMPLETE: "yellow",
    RunStatus.FAILED: "red",
    RunStatus.CANCELLED: "yellow",
}
_TASK_STYLE = {
    TaskStatus.PENDING: "dim",
    TaskStatus.RUNNING: "blue",
    TaskStatus.DONE: "green",
    TaskStatus.FAILED: "red",
    TaskStatus.MISSING: "red",
    TaskStatus.UNKNOWN: "yellow",
}
_MEANING = {
    RunStatus.PLANNED: "nothing has been submitted yet; `resume` does that",
    RunStatus.INCOMPLETE: "it ended early; `resume` does only the remaining work",
    RunStatus.FAILED: "it cannot succeed until something changes",
    RunStatus.CANCELLED: "you cancelled it; `resume` continues it",
}
_MOST_FAILURES = 4  # lines for one cause, at most
_MOST_NODES = 8
_BAR, _WIDEST_BAR = 6, 32
_NUMBERS = 48  # usual columns of a stage's numbers
_NO_BREAK = "\0"  # for a space at which no line ends


def render(
    state: RunState,
    now: datetime,
    look: TerminalStyle,
    *,
    failed_only: bool = False,
    run: str | None = None,
    hint: str | None = None,
) -> str:
    """The screen, with a final newline; ``failed_only``: only the failures.

    ``run``: the run's name in commands (``run_list.run_word``); None: its id. ``hint``: the last
    line for a running run; None: how to watch it.
    """
    run = run or state.plan.run_id
    blocks: list[list[str]] = [list(_header(state, now, look))]
    if not failed_only:
        blocks.append(list(_stages(state, now, look)))
        blocks.append(list(_tasks(state, look)))
        blocks.append(list(_waiting(state, now, look)))
        blocks.append(list(_nodes(state, now, look)))
    blocks.append(list(_failures(state, run, look)))
    if not failed_only:
        blocks.append(list(_ending(state, run, look, hint)))
    text = "\n\n".join("\n".join(block) for block in blocks if block)
    return look.encodable(text) + "\n"


def line(state: RunState, now: datetime) -> str:
    """The run in one plain line, for logs and other streams that are not a terminal."""
    counts = count_stages(state, now)
    texts = [f"run {state.plan.run_id} {state.status.value}"]
    for stage in (Stage.DOWNLOAD, Stage.EXTRACT):
        count = counts[stage]
        if count.tasks:
            rate = count.rate.bytes_s
            speed = f" {units.size(rate)}/s" if rate and count[TaskStatus.RUNNING] else ""
            texts.append(f"{stage.value} {count.rate.fraction:.0%}{speed}")
    if files := counts[Stage.EXTRACT].files:
        texts.append(units.plural(files, "file"))
    if problems := _count(problem_groups(state)):
        texts.append(units.plural(problems, "problem"))
    return " · ".join(texts)


def _header(state: RunState, now: datetime, look: TerminalStyle) -> Iterator[str]:
    plan = state.plan
    word = look.paint(state.status.value, "bold", STATE_STYLE[state.status])
    age = units.span((now - plan.created).total_seconds())
    name = look.paint(plan.run_id, "bold")
    yield _field("run", f"{name}  {word} · started {age} ago", look)
    yield from _broken_field("source", _source(state), look)
    yield _field("dest", plan.dest, look)
    if state.submissions:
        yield _field("engine", _engine(state), look)
    yield from _broken_field("changed", changed_text(state), look)
    if reused := reused_text(state):
        yield _field("reused", reused, look)
    if state.engine_silent:
        silent = f"{state.engine_silent}; the following comes from the run's own files"
        yield from _wrapped(look.paint("note   ", "yellow"), silent.splitlines(), look)
    if state.status in _MEANING:
        yield _field("", look.paint(_MEANING[state.status], "dim"), look)
    if state.remark:
        yield from _wrapped(look.paint("note   ", "yellow"), [state.remark], look)


def _engine(state: RunState) -> str:
    last = state.submissions[-1]
    texts = [f"{last.engine} ({last.cluster.name})" if last.cluster else last.engine]
    if last.number > 1:
        texts.append(f"attempt {last.number}")
    if last.job_ids() and not last.is_local:
        texts.append(_jobs(last.job_ids()))
    return " · ".join(texts)


def changed_text(state: RunState) -> str:
    """Memory and time that differ from the launch's, as after a task that lacked one; or empty."""
    if len(state.submissions) < 2 or state.submissions[-1].is_local:
        return ""
    stages: dict[str, list[str]] = {}
    for stage in state.stages:
        old, new = (state.submissions[n].resources_of(stage) for n in (0, -1))
        if old.mem_mb != new.mem_mb:
            before = f"--mem={old.mem_mb}M" if old.mem_mb is not None else "no --mem"
            stages.setdefault(f"--mem={new.mem_mb}M ({before} at launch)", []).append(stage.value)
        if old.time_min != new.time_min:
            limit, before = map(units.format_time, (new.time_min, old.time_min))
            stages.setdefault(f"--time={limit} ({before} at launch)", []).append(stage.value)
    return "; ".join(f"{', '.join(names)} {text}" for text, names in stages.items())


def reused_text(state: RunState) -> str:
    """The parts that were taken from the published dataset, and the others; empty if none were."""
    found = metrics.carried(state)
    if not found.parts:
        return ""
    total = sum(shard.parts for shard in state.plan.shards)
    amount = f"{units.plural(found.files, 'file')}, {units.size(found.bytes)}"
    others = total - len(state.parts_left) - found.parts
    return (
        f"{found.parts:,} of {units.plural(total, 'part')} from the published dataset ({amount}); "
        f"{others:,} extracted"
    )


def _jobs(ids: Sequence[str]) -> str:
    if len(ids) == 1:
        return f"job {ids[0]}"
    return f"jobs {','.join(ids)}" if len(ids) <= 4 else f"jobs {ids[0]} … {ids[-1]}"


def _source(state: RunState) -> str:
    source = state.plan.source
    known = [shard.size for shard in state.plan.shards if shard.size is not None]
    amount = f", {units.size(sum(known))}" if len(known) == len(state.plan.shards) else ""
    kind = {SourceKind.HUB: "Hub ", SourceKind.DOI: "DOI "}.get(source.kind, "")
    return f"{kind}{source.pinned_name} ({units.plural(len(state.plan.shards), 'shard')}{amount})"


def _field(name: str, text: str, look: TerminalStyle) -> str:
    return f"{look.paint(f'{name:<8}', 'dim')}{text}"


def _broken_field(name: str, text: str, look: TerminalStyle) -> Iterator[str]:
    """A field on as many lines as it needs; none for an empty text."""
    for number, piece in enumerate(_broken(text, look.width - 8)):
        yield _field("" if number else name, piece, look)


def _stages(state: RunState, now: datetime, look: TerminalStyle) -> Iterator[str]:
    counts = count_stages(state, now)
    texts = {
        stage: _fitting(list(_numbers(state, count)), look.width - 17 - _BAR)
        for stage, count in counts.items()
    }
    room = max(_NUMBERS, *map(len, texts.values()))  # a constant width of bars
    wide = max(_BAR, min(_WIDEST_BAR, look.width - 17 - room))
    for stage, count in counts.items():
        bar = _bar(count, wide, look)
        name = look.paint(f"{stage.value:<9}", "bold")
        yield f"{name} {bar} {units.percent(count.rate.fraction):>4}  {texts[stage]}".rstrip()


def _fitting(numbers: list[str], room: int) -> str:
    """``numbers`` on one line, without some middle ones if it is too long."""
    while len(numbers) > 2 and len("  ".join(numbers)) > room:
        del numbers[1]
    return "  ".join(numbers)


def _bar(count: StageCount, wide: int, look: TerminalStyle) -> str:
    fraction = count.rate.fraction
    full = min(wide, int(fraction * wide + 1e-9))
    style = "red" if count.bad else "green" if fraction >= 1 else "blue"
    return look.paint("█" * full, style) + look.paint("░" * (wide - full), "dim")


def _numbers(state: RunState, count: StageCount) -> Iterator[str]:
    running, pace = count[TaskStatus.RUNNING], count.rate
    if count.stage is Stage.DOWNLOAD:
        done, total = bytes_fetched(state)
        yield f"{units.size(done)}/{units.size(total)}" if total else units.size(done)
    elif count.stage is Stage.EXTRACT and count.files:
        yield units.plural(count.files, "file")
    if running and pace.bytes_s:
        yield f"{units.size(pace.bytes_s)}/s"
    if running and pace.files_s and count.stage is Stage.EXTRACT:
        yield f"{units.rate(pace.files_s)} files/s"
    if running and pace.eta_s is not None:
        yield f"{units.clock(pace.eta_s)} left"
    elif count.ended is not None and count.elapsed_s is not None:
        yield f"in {units.clock(count.elapsed_s)}"
    elif running and count.elapsed_s is not None:
        yield f"for {units.clock(count.elapsed_s)}"
    if not running and (state_text := _state_text(state, count)):
        yield state_text


def _state_text(state: RunState, count: StageCount) -> str:
    """The state of a stage without running tasks."""
    if not count.tasks:
        return "nothing to do" if count.rate.fraction >= 1 else "not submitted yet"
    if count.bad:
        causes = {
            problem.cause for view in state.of_stage(count.stage) for problem in view.problems
        }
        word = NOT_FAILED.get(causes.pop(), "failed") if len(causes) == 1 else "failed"
        return f"{count.bad} of {units.plural(count.tasks, 'task')} {word}"
    if count[TaskStatus.PENDING]:
        extracts = count.stage is Stage.EXTRACT and metrics.extracts_while_downloading(state)
        return "during the download" if extracts else "waiting"
    return "unknown" if count[TaskStatus.UNKNOWN] else ""


def _tasks(state: RunState, look: TerminalStyle) -> Iterator[str]:
    """A summary of the array: states, counts, indices."""
    numbers: dict[TaskStatus, list[int]] = {}
    for view in state.of_stage(Stage.EXTRACT):
        numbers.setdefault(view.status, []).append(view.task.number)
    if sum(map(len, numbers.values())) < 2:
        return
    yield look.paint("extract tasks", "bold")
    for status in TaskStatus:
        if found := numbers.get(status):
            name = look.paint(f"{status.value:<8}", _TASK_STYLE[status])
            yield f"  {name} {len(found):>6,}  {_short(units.indices(found), look.width - 20)}"


def _short(text: str, most: int) -> str:
    """``text``, cut at a comma if it is too long."""
    if len(text) <= most:
        return text
    return text[: most - 2].rpartition(",")[0] + ",…"


def _waiting(state: RunState, now: datetime, look: TerminalStyle) -> Iterator[str]:
    groups = metrics.waiting(state, now)
    if not groups:
        return
    yield look.paint("waiting", "bold")
    for group in groups:
        which = group.stage.value
        if group.stage is Stage.EXTRACT:
            which += f" {_short(units.indices(group.numbers), 24)}"
        words = pending_reasons.explain(group.reason, group.job_ids, requeued=group.requeued)
        if group.stage is Stage.FINALIZE and not group.reason:  # of an engine without reasons
            words = "for the tasks before it"
        yield from _wrapped(f"  {which}:", [words + _expected(group, now)], look)


def _expected(group: Waiting, now: datetime) -> str:
    """When waiting tasks will start, if Slurm estimates it."""
    start = group.estimated_start
    if start is None or start <= now or pending_reasons.will_never_start(group.reason):
        return ""
    # For a job with a start time Slurm reports that time, whatever the queue will be.
    what = "not before" if group.reason == "BeginTime" else "Slurm expects a start at"
    ahead = units.span((start - now).total_seconds())
    return f"; {what} {units.moment(start, now)}, in {ahead}"


def _nodes(state: RunState, now: datetime, look: TerminalStyle) -> Iterator[str]:
    remarkable = [node for node in metrics.nodes(state, now) if node.remark]
    if not remarkable:
        return
    yield look.paint("nodes to check", "bold")
    for node in remarkable[:_MOST_NODES]:
        yield f"  {look.paint(node.name, 'yellow')}  {node.remark}"
    if len(remarkable) > _MOST_NODES:
        yield f"  and {len(remarkable) - _MOST_NODES} more"


def _failures(state: RunState, run: str, look: TerminalStyle) -> Iterator[str]:
    groups = problem_groups(state)
    if not groups:
        return
    yield look.paint(units.plural(_count(groups), "problem"), "bold", "red")
    causes = [group for group in groups if group.cause not in CONSEQUENCES] or groups
    for group in causes:
        yield from _failure(group, run, look)
    follow = _count(groups) - _count(causes)
    if follow:
        yield f"    {follow} more {'follows' if follow == 1 else 'follow'} from that"


def _count(groups: Iterable[ProblemGroup]) -> int:
    """The number of problems."""
    return sum(len(group.problems) for group in groups)


def _failure(group: ProblemGroup, run: str, look: TerminalStyle) -> Iterator[str]:
    times = f" × {len(group.problems)}" if len(group.problems) > 1 else ""
    noun = "task" if len(group.tasks) == 1 else "tasks"
    which = f" ({noun} {_short(units.indices(group.tasks), 40)})"
    head = f"{group.title}{times}{which if group.stage is Stage.EXTRACT else ''}"
    yield f"  {look.paint('✗', 'red')} {look.paint(head, 'bold')}"
    for message in group.messages[:_MOST_FAILURES]:
        yield from _wrapped("     ", message.splitlines(), look)
    if (more := len(group.messages) - _MOST_FAILURES) > 0:
        yield f"      and {more} more (status --json has all of them)"
    for step in group.next_steps:
        yield f"    → {look.paint(f'{PROGRAM} {step.format(run=run)}', 'cyan')}"


def _wrapped(prefix: str, texts: list[str], look: TerminalStyle) -> Iterator[str]:
    """Texts after ``prefix``, wrapped to the width; longer words (paths) are not broken."""
    blank = " " * 6
    lead = f"{prefix} "
    for text in texts:
        yield from _broken(text, look.width, lead, blank)
        lead = blank


_CODE = re.compile("`[^`]+`")


def _broken(text: str, width: int, lead: str = "", blank: str = "") -> list[str]:
    """``text`` in lines of ``width``; a command in it is not broken, for copying, if it fits."""

    def joined(code: re.Match[str]) -> str:
        fits = len(code[0]) <= width - max(len(lead), len(blank))
        return code[0].replace(" ", _NO_BREAK) if fits else code[0]

    lines = textwrap.wrap(
        _CODE.sub(joined, text),
        width,
        initial_indent=lead,
        subsequent_indent=blank,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _ending(state: RunState, run: str, look: TerminalStyle, hint: str | None) -> Iterator[str]:
    """The findings of finalize, and the next command if it was not shown above."""
    for found in state.summary.lines if state.summary else ():
        if found.startswith("→ "):  # code to copy, so on one line
            yield f"→ {look.paint(found[2:], 'cyan')}"
            continue
        style = "green" if found.startswith("✓") else "red" if found.startswith("✗") else ""
        for piece in _broken(found, look.width, "", "  "):
            yield look.paint(piece, style) if style else piece
    if state.status is RunStatus.RUNNING:
        again = f"{PROGRAM} status {run} --watch"  # on one line, for copying
        gap = " " if len(again) + 12 <= look.width else "\n  "
        yield look.paint(hint or f"status:{gap}{again}", "dim")
    elif state.status not in (RunStatus.DONE, RunStatus.FAILED) and not problem_groups(state):
        yield f"→ {look.paint(f'{PROGRAM} resume {run}', 'cyan')}"
