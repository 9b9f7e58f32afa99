"""Probes the machine or the cluster before a long run: what holds, what does not, what to do."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import takewhile
from pathlib import Path

import msgspec
from msgspec import structs

from jobs import __version__
from jobs.errors import EngineError, OrchestrateError
from jobs.model import Resources, Stage, Task, utc_now
from jobs.runtime.process import cores
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from orchestrator import filesystems, resources, units
from orchestrator.display.terminal import TerminalStyle
from orchestrator.doctor import node_environment, node_probe, site_profile
from orchestrator.doctor.node_probe import (
    REPORT_FILE,
    REQUEST_FILE,
    CheckResult,
    ProbeReport,
    ProbeRequest,
)
from orchestrator.engines.base import Engine, EngineState, JobSpec
from orchestrator.engines.registry import choose_engine, engine_named
from orchestrator.engines.slurm import arguments, client
from orchestrator.inspection import pending_reasons, task_logs

HUB = "https://huggingface.co"
_LOOK_EVERY_S = 1.0
_SKEW_S = 5.0  # of two clocks; results are told apart from stale ones by less than a minute


@dataclass(frozen=True)
class DoctorRequest:
    """What a run would ask for."""

    dest: Path
    log_dir: Path
    engine: str = "auto"
    resources: Resources = field(default_factory=Resources)
    wait_s: float = 120.0  # for the canary to start and end

    @property
    def ask(self) -> ProbeRequest:
        endpoint = os.environ.get("HF_ENDPOINT") or HUB
        return ProbeRequest(secrets.token_hex(8), str(self.dest.absolute()), endpoint, __version__)


def examine(wish: DoctorRequest) -> Iterator[CheckResult]:
    """Every finding as it is made; the canary on a compute node, where there is Slurm, is last."""
    yield from _here(wish)
    try:
        choice = choose_engine(wish.engine)
    except OrchestrateError as error:
        yield CheckResult("slurm", False, error.message, "log in to a login node of the cluster")
        return
    if choice.name == "local":
        yield CheckResult("engine", None, choice.why_local or "runs use this machine, as requested")
        yield from node_probe.probe(wish.ask, wish.log_dir, on_node=False)
        return
    yield from _slurm(wish)


def with_what_slurm_wants(wish: DoctorRequest) -> DoctorRequest:
    """The wish with the partition, account, time and memory that jobs have to ask for here."""
    if choose_engine(wish.engine).name == "local" or client.silence() is not None:
        return wish
    spec = _spec(wish, RunFolder(wish.log_dir.absolute() / "profile"))
    return replace(wish, resources=site_profile.choose(spec))


def write_profile(wish: DoctorRequest, findings: Sequence[CheckResult], path: Path) -> CheckResult:
    """Keep what was found of a cluster as a settings file."""
    if not any(finding.name == "job" and finding.ok for finding in findings):
        fact = "not written, because Slurm does not accept jobs yet"
        return CheckResult("profile", False, fact, "fix what is marked ✗ above, then write it")
    return site_profile.write(path, site_profile.text(wish.resources, findings, wish.ask.endpoint))


def _here(wish: DoctorRequest) -> Iterator[CheckResult]:
    yield CheckResult(
        "this machine",
        True,
        f"Python {sys.version.split()[0]}, websight-orchestrate {__version__}, "
        f"{units.plural(cores(), 'core')}",
    )
    yield _log_dir(wish.log_dir.absolute())
    yield from _room(wish.dest.absolute())


def _log_dir(path: Path) -> CheckResult:
    there = filesystems.existing(path)
    if not os.access(there, os.W_OK | os.X_OK):
        return CheckResult(
            "run folder", False, f"{path} cannot be written", "choose another --log-dir"
        )
    return CheckResult("run folder", True, f"{path} can be written")


def _room(dest: Path) -> Iterator[CheckResult]:
    try:
        rooms = filesystems.rooms(filesystems.existing(dest))
    except OSError as error:
        yield CheckResult("room", False, f"{dest}: {error.strerror}", "choose another --dest")
        return
    for room in rooms:
        told = [units.size(room.bytes)] if room.bytes is not None else []
        told += [f"{units.count(room.inodes)} files"] if room.inodes is not None else []
        full = room.bytes == 0 or room.inodes == 0
        remedy = "free some space, or choose another --dest" if full else ""
        yield CheckResult("room", not full, f"{room.of} has {' and '.join(told)} left", remedy)


def _slurm(wish: DoctorRequest) -> Iterator[CheckResult]:
    """Whether Slurm answers and would take such a job, and what a job finds; else why not."""
    why = client.silence()
    if why is not None:
        yield CheckResult("slurm", False, why, "wait and try again, or ask the site's support")
        return
    cluster = engine_named("slurm").cluster
    which = f" for cluster {cluster}" if cluster else ""
    yield CheckResult("slurm", True, f"{_version()} answers{which}")
    yield _accounting()
    yield _shared(wish.log_dir.absolute(), "--log-dir")
    yield _shared(wish.dest.absolute(), "--dest")
    yield from _export(wish.resources.sbatch_args)
    folder = RunFolder(wish.log_dir.absolute() / f"doctor-{secrets.token_hex(4)}")
    spec = _spec(wish, folder)
    yield _trial(spec)
    # Its own short time limit lets it start where a long job would wait.
    asked = structs.replace(spec.resources, time_min=2, mail_type=None, mail_user=None)
    yield from _canary(wish, folder, replace(spec, resources=asked))


def _version() -> str:
    """What sbatch calls itself; a site's wrapper of it may not know the question."""
    try:
        return client.ask("sbatch", "--version").stdout.strip() or "Slurm"
    except EngineError:
        return "Slurm"


def _accounting() -> CheckResult:
    try:
        answer = client.ask("sacct", "-n", "-X", "-o", "JobID", "-S", "now", timeout_s=20)
    except EngineError as error:
        return CheckResult("accounting", None, error.message)
    if answer.returncode:
        return CheckResult("accounting", None, "none; runs work without it")
    return CheckResult("accounting", True, "sacct answers")


def _shared(path: Path, option: str) -> CheckResult:
    kind = filesystems.own_to_a_machine(path)
    if kind is None:
        return CheckResult(
            "shared", True, f"{option} {path}: on {filesystems.mount_of(path)[1] or 'a disk'}"
        )
    return CheckResult(
        "shared",
        None,
        f"{option} {path} is on a {kind}",
        "compute nodes may not see it; choose a folder on a shared file system",
    )


def _export(sbatch_args: Sequence[str]) -> Iterator[CheckResult]:
    """What jobs do not get of this shell's environment, where ``--export`` restricts it."""
    export = arguments.export_of(sbatch_args)
    missing = export.missing(arguments.DOWNLOAD_VARIABLES, os.environ)
    if missing:
        yield CheckResult(
            "export",
            None,
            f"{export} withholds {', '.join(missing)} from jobs",
            f"if a download needs them: --sbatch-arg={export.with_names(missing)}",
        )
    elif export.restricts:
        fact = f"{export} withholds nothing that a download needs"
        yield CheckResult("export", True, fact)


_WILL_START = re.compile(r"to start at (\S+)(?: using .*? on nodes (\S+))?")


def _spec(wish: DoctorRequest, folder: RunFolder) -> JobSpec:
    """A job as a run would submit one; what it does there is to look around."""
    return JobSpec(
        name=f"websight-{folder.run_id}-0001-canary",
        stage=Stage.DOWNLOAD,
        attempt=1,
        run_dir=str(folder.path),
        tasks=(Task(Stage.DOWNLOAD, 0, ()),),
        resources=wish.resources,
        parallel=1,
        call="orchestrator.doctor.node_probe:run",
    )


def _trial(spec: JobSpec) -> CheckResult:
    """Partition, account, QOS and limits, as a launch and Slurm itself judge them."""
    from orchestrator.engines.slurm import script

    try:
        said = script.trial(spec)
    except EngineError as error:
        mend = "see --partition, --account, --qos, --time, --mem and --cpus-per-task"
        return CheckResult("job", False, error.message, mend)
    will = _WILL_START.search(said)
    when = f"; it would start at {will[1].replace('T', ' ')}" if will else ""
    limit = resources.format_time(spec.resources.time_min)
    return CheckResult("job", True, f"Slurm would accept it (--time={limit}){when}")


def _canary(wish: DoctorRequest, folder: RunFolder, spec: JobSpec) -> Iterator[CheckResult]:
    """A two-minute job on the partition; its folder goes, whatever comes of it."""
    ask = wish.ask
    try:
        folder.path.mkdir(mode=0o700, parents=True)
        atomic.write_json(folder.path / REQUEST_FILE, ask)
        yield from _send(wish, folder, ask, spec)
    except OSError as error:
        yield CheckResult(
            "run folder", False, f"{folder.path}: {error.strerror}", "choose another --log-dir"
        )
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)


def _send(
    wish: DoctorRequest, folder: RunFolder, ask: ProbeRequest, spec: JobSpec
) -> Iterator[CheckResult]:
    engine = engine_named("slurm")
    submitted = utc_now()
    try:
        handle = engine.submit(spec, None)
    except OrchestrateError as error:
        yield CheckResult("canary job", False, error.message, "fix this, then run `doctor` again")
        return
    try:
        yield from _await(wish, folder, ask, engine, handle.task_ids[0], submitted)
    finally:
        engine.cancel(folder, handle.job_ids)


def _await(
    wish: DoctorRequest,
    folder: RunFolder,
    ask: ProbeRequest,
    engine: Engine,
    job_id: str,
    submitted: datetime,
) -> Iterator[CheckResult]:
    pause = threading.Event()  # never set: waiting on it can be interrupted
    while True:
        state = engine.poll(folder, [job_id])[job_id]
        told = _told(folder, ask)
        if told is not None:
            yield CheckResult("canary job", True, f"job {job_id} ran on {told.host}")
            yield _clock(told, submitted, utc_now())
            yield from _setup(wish, folder, job_id)
            yield from told.findings
            return
        waited = (utc_now() - submitted).total_seconds()
        if state.state is EngineState.ENDED:
            # What a node wrote may be seen here late; a few looks more cost little.
            if pause.wait(3 * _LOOK_EVERY_S) or (told := _told(folder, ask)) is None:
                yield _dead(wish, folder, job_id, state.raw)
                return
        elif waited > wish.wait_s:
            why = pending_reasons.explain(state.reason) if state.reason else state.raw or "unknown"
            yield CheckResult(
                "canary job",
                None,
                f"job {job_id} did not end within {units.span(waited)}: {why}",
                "the queue may be long; wait longer (--wait-s), or try another --partition",
            )
            return
        pause.wait(_LOOK_EVERY_S)


def _told(folder: RunFolder, ask: ProbeRequest) -> ProbeReport | None:
    try:
        told = atomic.read_json(folder.path / REPORT_FILE, ProbeReport)
    except (OSError, msgspec.DecodeError):
        return None
    return told if told.word == ask.word else None


def _dead(wish: DoctorRequest, folder: RunFolder, job_id: str, raw: str) -> CheckResult:
    """The probe ended without a report: the last lines of its log, or that it has none."""
    log = _log(folder, job_id)
    if log is None:
        return CheckResult(
            "canary job",
            False,
            f"job {job_id} {raw or 'ended'} and wrote nothing to {folder.path}",
            "compute nodes do not see this folder; choose a --log-dir on a shared file system",
        )
    lines = task_logs.tail(log, 3)
    said = " | ".join(lines) or "without printing anything"
    if (python := node_environment.not_found(lines)) is not None:
        return node_environment.unseen(python, wish.resources, wish.dest)
    mend = "install the tool where compute nodes see it, or add --setup 'module load …'"
    if wish.resources.setup:
        mend = (
            "fix --setup, whose lines run before the tool, or install what is missing on the nodes"
        )
    return CheckResult("canary job", False, f"job {job_id} {raw or 'ended'}: {said}", mend)


def _setup(wish: DoctorRequest, folder: RunFolder, job_id: str) -> Iterator[CheckResult]:
    """What the lines of --setup printed: the shell goes on where one of them fails."""
    log = _log(folder, job_id)
    lines = task_logs.tail(log, 99) if log and wish.resources.setup else []
    said = list(takewhile(lambda line: " submitit: " not in line, lines))
    if said:
        fact = f"its lines printed: {' | '.join(said[-3:])}"
        yield CheckResult("setup", None, fact, "fix --setup if this is an error")


def _log(folder: RunFolder, job_id: str) -> Path | None:
    """What the canary and the shell before it wrote to standard error."""
    found = task_logs.find(folder).get((1, Stage.DOWNLOAD, job_id))
    return found.err if found else None


def _clock(told: ProbeReport, submitted: datetime, seen: datetime) -> CheckResult:
    """Whether the node's clock lies between what was seen here before and after."""
    early = (submitted - told.started).total_seconds()
    late = (told.ended - seen).total_seconds()
    if max(early, late) > _SKEW_S:
        fact = f"{told.host} is {'behind' if early > late else 'ahead'} by {max(early, late):.0f} s"
        return CheckResult("clock", False, fact, "tell your site; times in reports will be wrong")
    return CheckResult("clock", True, f"{told.host} agrees with this machine")


def line(finding: CheckResult, look: TerminalStyle) -> str:
    """``✓ slurm: …``, and what to do about it on a line of its own."""
    mark, style = {True: ("✓", "green"), False: ("✗", "red"), None: ("–", "yellow")}[finding.ok]
    text = f"{look.paint(look.spell(mark), style)} {finding.name}: {finding.fact}"
    if finding.remedy:
        text += f"\n    → {finding.remedy}"
    return look.spell(text)
