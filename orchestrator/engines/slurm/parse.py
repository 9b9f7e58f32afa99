"""Parses Slurm's output: rows of squeue and sacct, ids of array tasks, states, times."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from jobs.errors import Cause, EngineError
from orchestrator.engines.base import COMPLETING, EngineState, TaskState
from orchestrator.engines.task_entry import BAD_END

SEPARATOR = "|"
_REST = "rest"  # columns that may contain the separator, as one text: see ``_places_and_name``
# Columns of ``squeue -O``: our name, the field, its name in the header.
_QUEUE = (
    ("job_id", "JobArrayID", "JOBID"),
    ("state", "State", "STATE"),
    ("reason", "Reason", "REASON"),
    ("node", "NodeList", "NODELIST"),
    ("restarts", "RestartCnt", "RESTART_COUNT"),
    ("code", "exit_code", "EXIT_CODE"),
    ("step_code", "DerivedEC", "DERIVED_EC"),
    ("submitted", "SubmitTime", "SUBMIT_TIME"),
    ("started", "StartTime", "START_TIME"),
    ("ended", "EndTime", "END_TIME"),
    (_REST, "Command", "COMMAND"),
    (_REST, "WorkDir", "WORK_DIR"),
    (_REST, "Name", "NAME"),
)
QUEUE_FORMAT = ",".join(f"{field}:0{SEPARATOR}" for _, field, _ in _QUEUE)
# Columns of ``sacct -P -o``: our name, the field, which is also its name in the header.
_ACCOUNTS = (
    ("job_id", "JobID"),
    ("state", "State"),
    ("reason", "Reason"),
    ("node", "NodeList"),
    ("code", "ExitCode"),
    ("step_code", "DerivedExitCode"),
    ("submitted", "Submit"),
    ("started", "Start"),
    ("ended", "End"),
    ("cpu", "TotalCPU"),
    ("peak", "MaxRSS"),
    (_REST, "WorkDir"),
    (_REST, "JobName"),
)
ACCOUNT_FORMAT = ",".join(field for _, field in _ACCOUNTS)

NEVER_SATISFIED = "DependencyNeverSatisfied"

# A job that another cluster of the federation has started; its own state is only known there.
REVOKED = "REVOKED"

# https://slurm.schedmd.com/job_state_codes.html (26.05). Any other state, such as that of a later
# Slurm, is shown, but has no effect.
_PENDING = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)
_RUNNING = frozenset(
    {
        "RUNNING",
        COMPLETING,
        "CONFIGURING",
        "SUSPENDED",
        "STOPPED",
        "RESIZING",
        "SIGNALING",
        "STAGE_OUT",
        "EXPEDITING",
        "POWER_UP_NODE",
        "UPDATE_DB",
    }
)
_ENDED = frozenset({"COMPLETED", "FAILED"})  # besides those with a cause
_CAUSES = {
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
    "TIMEOUT": Cause.TIME_LIMIT,
    "DEADLINE": Cause.TIME_LIMIT,
    "NODE_FAIL": Cause.NODE_FAILURE,
    "BOOT_FAIL": Cause.NODE_FAILURE,
    "PREEMPTED": Cause.PREEMPTED,
    "CANCELLED": Cause.CANCELLED,
    "LAUNCH_FAILED": Cause.LAUNCH_FAILED,
    "RECONFIG_FAIL": Cause.LAUNCH_FAILED,
}
# slurmd's ESLURM code, at least 4000, does not fit into an exit status: 53 is left of it (a missing
# log or working folder).
_LAUNCH_SIGNAL = 53
_LAUNCH_REASONS = ("JobLaunchFailure", "LaunchFailed", "launch failed", "BadConstraints")
_KILL = 9
_STEP_OUT_OF_MEMORY = 125  # what is left of SIG_OOM in slurm/slurm.h (253)
_NOT_FLUSHED = 120  # Python's exit code if it cannot write the last of its output
_LIMITS = (24, 25)  # SIGXCPU, SIGXFSZ (signal(7)), from limits of the process


@dataclass(frozen=True)
class JobRow:
    """One job or array task in Slurm's output."""

    job_id: str  # 12 or 12_3
    name: str  # as submitted, if Slurm shows it
    task: TaskState
    places: str = ""  # its batch script, if known, then SEPARATOR and its working folder

    def is_of(self, run_id: str, attempts: Collection[int] = ()) -> bool:
        """Whether it belongs to that run, and to one of ``attempts`` if its name shows that.

        Slurm reuses ids after a while. The name contains the run's id; a site's plugin may have
        changed it, but probably not the working folder, which is the run's.
        """
        _, named, rest = self.name.partition(f"-{run_id}-")
        attempt = rest.partition("-")[0]
        if attempts and attempt.isdigit() and int(attempt) not in attempts:
            return False
        return bool(named) or self.places.endswith(f"/{run_id}")


# The batch script of our jobs: in RUN/submitit/ATTEMPT-STAGE, or ATTEMPT-STAGE-N.
_SCRIPT = re.compile(r"/([^/]+)/submitit/(\d+-[a-z]+)(?:-\d+)?/[^/|]+\|")


def _places_and_name(rest: str) -> tuple[str, str]:
    """A row's last fields: the paths, and the name under which the job was submitted.

    Our names contain no separator, but paths may. If a site's plugin has changed the name, it is
    inferred from the path of the batch script.
    """
    places, _, name = rest.removesuffix(SEPARATOR).rpartition(SEPARATOR)
    script = _SCRIPT.search(places)
    if script and f"-{script[1]}-" not in name:
        name = f"websight-{script[1]}-{script[2]}"
    return places, name


# sbatch(1): its default output, and that of --parsable.
_SENTENCE = re.compile(
    r"\bsubmitted batch job (\d+)(?: on cluster ([\w-]+(?:\.[\w-]+)*))?", re.IGNORECASE
)
_PARSABLE = re.compile(r"(\d+)(?:;([\w.-]*))?")
_COLOURS = re.compile(r"\x1b\[[\d;]*m")


@dataclass(frozen=True)
class Accepted:
    """A job that sbatch has submitted."""

    job_id: str
    cluster: str = ""  # set if sbatch chose one of several


def accepted(out: str, err: str = "") -> list[Accepted]:
    """Candidates for the new job in sbatch's output, the most likely first.

    A site's wrapper or plugin may print banners around the id, or drop --parsable. A sentence with
    the job precedes a line with only an id, and later lines precede earlier ones.
    """
    lines = [line.strip() for line in _COLOURS.sub("", out).splitlines()]
    sentences = [_SENTENCE.search(line) for line in (*lines, *_COLOURS.sub("", err).splitlines())]
    ids = [_PARSABLE.fullmatch(line) for line in reversed(lines)]
    found: dict[str, Accepted] = {}
    for match in filter(None, (*sentences, *ids)):
        known = found.get(match[1], Accepted(match[1]))
        found[match[1]] = replace(known, cluster=known.cluster or match[2] or "")
    return list(found.values())


def base(job_id: str) -> str:
    """The job or array of an id."""
    return job_id.partition("_")[0]


def expand(job_id: str) -> Iterator[str]:
    """All ids in ``12_[3-5,9-20:5%4]``; a plain id gives itself."""
    base, bracket, rest = job_id.partition("_[")
    if not bracket:
        yield job_id
        return
    for piece in rest.rstrip("]").partition("%")[0].split(","):
        span, _, step = piece.partition(":")
        first, _, last = span.partition("-")
        if not first.isdigit():
            continue  # a shortened list: "..."
        for index in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{base}_{index}"


def parse_time(text: str) -> datetime | None:
    """A time in Slurm's output (the clients print UTC); None for N/A and similar."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)
    except ValueError:
        return None


def _records(
    text: str, command: str, columns: Sequence[tuple[str, ...]]
) -> Iterator[dict[str, str]]:
    """The rows of a table, as values by our names of its ``columns``.

    Lines before the header (banners of a site's wrapper, ``CLUSTER: NAME``) are skipped.
    ``EngineError`` if there is no header: then not even an empty queue is certain.
    """
    header = [column[-1] for column in columns]
    names = [column[0] for column in columns if column[0] != _REST]
    headed = False
    for line in text.splitlines():
        fields = line.split(SEPARATOR)
        if fields[: len(header)] == header:
            headed = True
        elif headed and len(fields) >= len(header):
            rest = SEPARATOR.join(fields[len(names) :])
            yield dict(zip(names, fields, strict=False)) | {_REST: rest}
    if not headed:
        first_line = (text.strip().splitlines() or ["nothing"])[0]
        raise EngineError(f"{command} printed no table header: {first_line[:80]}")


def queue_rows(text: str) -> Iterator[JobRow]:
    """The rows of ``squeue -O QUEUE_FORMAT``, array tasks one by one."""
    for row in _records(text, "squeue", _QUEUE):
        job = _job(row)
        task = replace(job.task, restarts=_int(row["restarts"]))
        if task.raw == COMPLETING and task.restarts:
            # A requeued job has this state until its nodes are free, with the start of its last
            # run.
            task = replace(task, started=None)
        for each in expand(job.job_id):
            yield replace(job, job_id=each, task=task)


def account_rows(text: str) -> Iterator[JobRow]:
    """The rows of ``sacct -P -o ACCOUNT_FORMAT``, array tasks one by one.

    A job's peak memory is from its steps. A pending array's row may be stale: later rows, and those
    of squeue, replace it.
    """
    rows: dict[str, JobRow] = {}
    for row in _records(text, "sacct", _ACCOUNTS):
        owner, dot, _ = row["job_id"].partition(".")
        if dot:
            if owner in rows:
                rows[owner] = _with_peak(rows[owner], parse_bytes(row["peak"]))
            continue
        if row["state"] == "CANCELLED" and row["node"] == "None assigned":
            row["reason"] = NEVER_SATISFIED  # it would be "CANCELLED by UID" if somebody had
        job = _job(row)
        task = replace(job.task, cpu_s=parse_cpu(row["cpu"]))
        for each in expand(job.job_id):
            if each == job.job_id or each not in rows:
                rows[each] = replace(job, job_id=each, task=task)
    yield from rows.values()


def _job(row: Mapping[str, str]) -> JobRow:
    """What both commands know of a job."""
    places, name = _places_and_name(row[_REST])
    return JobRow(row["job_id"], name, _task(row, name), places)


def _exit_code(text: str) -> tuple[int, int]:
    """Exit status and signal of ``STATUS:SIGNAL``, or of a wait status (squeue up to 22.05)."""
    status, colon, number = text.partition(":")
    if colon:
        return _int(status), _int(number)
    return _int(status) >> 8 & 0xFF, _int(status) & 0x7F


def _with_peak(row: JobRow, peak: int | None) -> JobRow:
    known = row.task.peak_rss_bytes or 0
    return replace(row, task=replace(row.task, peak_rss_bytes=max(known, peak or 0) or None))


def _int(text: str) -> int:
    return int(text) if text.isdigit() else 0


def parse_cpu(text: str) -> float | None:
    """Seconds of sacct's ``[D-][H:]M:S[.mmm]``; None if there is none."""
    days, _, clock = text.rpartition("-")
    seconds = 0.0
    try:
        for piece in clock.split(":"):
            seconds = seconds * 60 + float(piece)
        return seconds + 86400 * int(days or 0)
    except ValueError:
        return None


def parse_bytes(text: str) -> int | None:
    """Bytes of sacct's ``1234K``; None if there is none."""
    unit = "KMGTP".find(text[-1:]) + 1 if text else 0
    try:
        return int(float(text[:-1] if unit else text) * 1024**unit)
    except ValueError:
        return None


def _task(row: Mapping[str, str], name: str) -> TaskState:
    """The engine's state of a row; ``name``: of its job."""
    word = row["state"].split(" ")[0].rstrip("+")
    reason = "" if row["reason"] in ("None", "(null)") else row["reason"]
    code = _exit_code(row["code"])
    started, ended = parse_time(row["started"]), parse_time(row["ended"])
    base = TaskState(
        state=EngineState.ENDED,
        raw=row["state"],
        reason=reason,
        node=row["node"] if row["node"] not in ("", "None assigned", "(null)") else None,
        submitted=parse_time(row["submitted"]),
        exit_code=f"{code[0]}:{code[1]}",
    )
    if word in _PENDING:
        return replace(
            base,
            state=EngineState.PENDING,
            node=None,
            estimated_start=started,
            cause=Cause.DEPENDENCY if reason == NEVER_SATISFIED else None,
            exit_code="",
        )
    if word in _RUNNING:
        return replace(base, state=EngineState.RUNNING, started=started, reason="", exit_code="")
    if word not in _ENDED and word not in _CAUSES:
        return replace(base, state=EngineState.UNKNOWN, exit_code="")
    # A job cancelled while waiting has its end as its start, and no node.
    ran = base.node is not None or started != ended
    started = started if ran else None
    cause = _cause(word, reason, code, _exit_code(row["step_code"]), name)
    return replace(base, started=started, ended=ended, cause=cause)


def _cause(
    word: str, reason: str, code: tuple[int, int], step_code: tuple[int, int], name: str
) -> Cause | None:
    """Why a job ended; None if it succeeded, or only its result has the reason.

    ``step_code``: the highest exit code of its steps. A step that ran out of memory makes the job
    FAILED with the exit code of srun, 1, if the batch script had enough.
    """
    if reason == NEVER_SATISFIED:
        return Cause.DEPENDENCY
    if word in _CAUSES:
        return _CAUSES[word]
    if word == "COMPLETED":
        return None
    if step_code[1] == _STEP_OUT_OF_MEMORY:
        return Cause.OUT_OF_MEMORY
    status, number = code
    # A killed batch shell is reported as JobLaunchFailure too (22.05), with the signal.
    refused = number != _KILL and any(words in reason for words in _LAUNCH_REASONS)
    if number == _LAUNCH_SIGNAL or refused:
        return Cause.LAUNCH_FAILED
    if number in _LIMITS or status - 128 in _LIMITS:
        return Cause.LIMIT
    if number or status in (_KILL, 128 + _KILL, 128 + 15):
        return Cause.KILLED
    # Only these leave a result, which may become visible later; an extract task exits with 0.
    ours = status in (0, BAD_END, _NOT_FLUSHED) or status >= 128
    return None if ours and not name.endswith("-extract") else Cause.LAUNCH_FAILED
