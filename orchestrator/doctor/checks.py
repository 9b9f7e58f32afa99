"""Checks the machine or the cluster before a long run, with a remedy for each problem."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import takewhile
from pathlib import Path

from msgspec import structs

from jobs import __version__
from jobs.errors import Cause, EngineError, OrchestrateError, fact_of
from jobs.model import Resources, Stage, Task, utc_now
from jobs.runtime.process import cores
from jobs.sources import hub_client
from jobs.storage import atomic
from jobs.storage.run_folder import NOT_PRIVATE, OTHER_LOG_DIR, RunFolder, create_private
from orchestrator import filesystems, units
from orchestrator.display.terminal import TerminalStyle
from orchestrator.doctor import node_environment, node_probe, site_profile
from orchestrator.doctor.node_probe import (
    REPORT_FILE,
    REQUEST_FILE,
    CheckResult,
    ProbeReport,
    ProbeRequest,
)
from orchestrator.engines.base import Engine, EngineState, JobSpec, TaskState
from orchestrator.engines.registry import choose_engine, engine_named
from orchestrator.engines.slurm import arguments, client
from orchestrator.inspection import pending_reasons, task_logs

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_LATE_S = 3.0
_SKEW_S = 5.0  # allowed difference of two clocks
_TEST_JOB_MIN = 5  # a short job starts earlier than a long one
# How a job can end without an error of its own, and what to do then.
_ENDS = {
    Cause.TIME_LIMIT: (
        "reached its time limit",
        "its node may be overloaded: run `doctor` again, or leave it out (--exclude-nodes)",
    ),
    Cause.OUT_OF_MEMORY: ("ran out of memory", "give jobs more (--mem)"),
    Cause.NODE_FAILURE: (
        "was lost with its node",
        "run `doctor` again, or leave the node out (--exclude-nodes)",
    ),
    Cause.PREEMPTED: (
        "was preempted by other jobs",
        "run `doctor` again, or choose another --partition or --qos",
    ),
    Cause.CANCELLED: ("was cancelled", "run `doctor` again"),
}
_RESOURCE_OPTIONS = "see --partition, --account, --qos, --time, --mem and --cpus-per-task"
# Signals of a program that cannot run on its node.
_CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)


@dataclass(frozen=True)
class DoctorRequest:
    """The settings of a run to check."""

    dest: Path
    log_dir: Path
    engine: str = "auto"
    resources: Resources = field(default_factory=Resources)
    wait_s: float = 120.0  # for the test job to start and end

    @property
    def probe(self) -> ProbeRequest:
        word, endpoint = secrets.token_hex(8), hub_client.endpoint()
        return ProbeRequest(word, str(self.dest.absolute()), endpoint, __version__)


def examine(request: DoctorRequest) -> Iterator[CheckResult]:
    """Yield all results; with Slurm the last ones are from a test job on a compute node."""
    yield from _here(request)
    try:
        choice = choose_engine(request.engine)
    except OrchestrateError as error:
        yield CheckResult("slurm", False, error.message, "log in to a login node of the cluster")
        return
    if choice.is_local:
        yield CheckResult("engine", None, choice.why_local or "runs use this machine, as requested")
        yield from node_probe.probe(request.probe, on_node=False)
        return
    yield from _slurm(request)


def with_site_resources(request: DoctorRequest) -> DoctorRequest:
    """``request`` with the partition, account, time and memory that jobs need on this cluster."""
    if choose_engine(request.engine).is_local or client.silence() is not None:
        return request
    spec = _spec(request, RunFolder(request.log_dir.absolute() / "profile"))
    return replace(request, resources=site_profile.choose(spec))


def write_profile(
    request: DoctorRequest, findings: Sequence[CheckResult], path: Path
) -> CheckResult:
    """Write a settings file with what was found on a cluster."""
    if choose_engine(request.engine).is_local:
        fact = "not written, because a profile is for a cluster, and this is a check of one machine"
        step = "run it on a login node of the cluster, without --engine local"
        return CheckResult("profile", False, fact, step)
    if not any(finding.name == "job" and finding.ok for finding in findings):
        fact = "not written, because Slurm does not accept jobs"
        return CheckResult(
            "profile", False, fact, "fix the problems marked ✗ above, then try again"
        )
    return site_profile.write(
        path, site_profile.text(request.resources, findings, request.probe.endpoint)
    )


def _here(request: DoctorRequest) -> Iterator[CheckResult]:
    yield CheckResult(
        "this machine",
        True,
        f"Python {sys.version.split()[0]}, websight-orchestrate {__version__}, "
        f"{units.plural(cores(), 'core')}",
    )
    yield _log_dir(request.log_dir.absolute())
    yield from _space(request.dest.absolute())


def _log_dir(path: Path) -> CheckResult:
    probe = filesystems.existing(path) / f".websight-{secrets.token_hex(4)}"
    try:
        is_private = create_private(probe)
        probe.rmdir()
    except OSError as error:
        fact = f"{path} cannot be written: {fact_of(error)}"
        return CheckResult("run folder", False, fact, OTHER_LOG_DIR)
    if not is_private:
        return CheckResult("run folder", False, NOT_PRIVATE.format(path), OTHER_LOG_DIR)
    return CheckResult("run folder", True, f"{path} can be written")


def _space(dest: Path) -> Iterator[CheckResult]:
    try:
        rooms = filesystems.free_space(filesystems.existing(dest))
    except OSError as error:
        yield CheckResult("space", False, f"{dest}: {error.strerror}", "choose another --dest")
        return
    for room in rooms:
        left = [units.size(room.bytes)] if room.bytes is not None else []
        left += [f"{room.inodes:,} files"] if room.inodes is not None else []
        full = room.bytes == 0 or room.inodes == 0
        remedy = "free some space, or choose another --dest" if full else ""
        yield CheckResult("space", not full, f"{room.of} has {' and '.join(left)} left", remedy)


def _slurm(request: DoctorRequest) -> Iterator[CheckResult]:
    """Check that Slurm responds and accepts such a job, and run one."""
    why = client.silence()
    if why is not None:
        yield CheckResult("slurm", False, why, "wait and try again, or ask the site's support")
        return
    engine = engine_named("slurm")
    which = f" for cluster {engine.cluster}" if engine.cluster else ""
    yield CheckResult("slurm", True, f"{_version()} answers{which}")
    yield _accounting()
    yield _shared(request.log_dir.absolute(), "--log-dir")
    yield _shared(request.dest.absolute(), "--dest")
    yield from _export(request.resources.sbatch_args)
    folder = RunFolder(request.log_dir.absolute() / f"doctor-{secrets.token_hex(4)}")
    spec = _spec(request, folder)
    yield _trial(spec)
    limit_min = engine.site_limits(spec.resources).time_min
    spec = replace(spec, resources=_shortened(spec.resources, limit_min))
    yield from _TestJob(request, folder, spec, request.probe).run()


def _version() -> str:
    """The version of sbatch; a site's wrapper may not support the option."""
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
    kind = filesystems.local_type(path)
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
    """Variables of this shell that jobs do not get because of ``--export``."""
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
        fact = f"{export} withholds no variable that a download needs"
        yield CheckResult("export", True, fact)


_WILL_START = re.compile(r"to start at (\S+)(?: using .*? on nodes (\S+))?")


def _spec(request: DoctorRequest, folder: RunFolder) -> JobSpec:
    """A job like those of a run, which runs the probe."""
    return JobSpec(
        name=f"websight-{folder.run_id}-0001-test",
        stage=Stage.DOWNLOAD,
        attempt=1,
        run_dir=str(folder.path),
        tasks=(Task(Stage.DOWNLOAD, 0, ()),),
        resources=request.resources,
        parallel=1,
        call=node_probe.run,
    )


def _trial(spec: JobSpec) -> CheckResult:
    """Check partition, account, QOS and limits, like a launch and with Slurm."""
    from orchestrator.engines.slurm import script

    try:
        output = script.trial(spec)
    except EngineError as error:
        return CheckResult("job", False, error.message, _RESOURCE_OPTIONS)
    will = _WILL_START.search(output)
    when = f"; it would start at {will[1].replace('T', ' ')}" if will else ""
    limit = units.format_time(spec.resources.time_min)
    return CheckResult("job", True, f"Slurm would accept it (--time={limit}){when}")


def _shortened(requested: Resources, limit_min: int | None) -> Resources:
    """The resources of the job that checks a node; it sends no mail.

    ``limit_min``: the time limit of its partition; None: no limit, or unknown.
    """
    allowed = units.within(requested.time_min, limit_min or units.UNLIMITED)
    minutes = units.within(_TEST_JOB_MIN, allowed)
    return structs.replace(requested, time_min=minutes, mail_type=None, mail_user=None)


@dataclass(frozen=True)
class _TestJob:
    """A short job on the partition, which checks its node."""

    request: DoctorRequest
    folder: RunFolder
    spec: JobSpec
    probe: ProbeRequest

    def run(self) -> Iterator[CheckResult]:
        """Submit it and yield its results; always removes its folder."""
        try:
            self.folder.path.mkdir(mode=0o700, parents=True)
            atomic.write_json(self.folder.path / REQUEST_FILE, self.probe)
            yield from self._submit()
        except OSError as error:
            fact = f"{self.folder.path}: {error.strerror}"
            yield CheckResult("run folder", False, fact, OTHER_LOG_DIR)
        finally:
            shutil.rmtree(self.folder.path, ignore_errors=True)

    def _submit(self) -> Iterator[CheckResult]:
        engine = engine_named("slurm")
        submitted = utc_now()
        try:
            handle = engine.submit(self.spec, None)
        except OrchestrateError as error:
            step = "fix this, then run `doctor` again"
            yield CheckResult("test job", False, error.message, step)
            return
        job_id = handle.task_ids[0]
        try:
            yield from self._wait(engine, job_id, submitted)
        except EngineError as error:
            step = "wait and try again, or ask the site's support"
            yield CheckResult("test job", False, f"job {job_id}: {error.message}", step)
        finally:
            try:
                engine.cancel(self.folder, handle.job_ids)
            except EngineError as error:
                log.warning("job %s was not cancelled: %s", job_id, error.message)

    def _wait(self, engine: Engine, job_id: str, submitted: datetime) -> Iterator[CheckResult]:
        while True:
            state = engine.poll(self.folder, [job_id])[job_id]
            report = self._report()
            if report is None and state.state is EngineState.ENDED:
                time.sleep(_LATE_S)  # a node's files may become visible late
                report = self._report()
            if report is not None:
                yield CheckResult("test job", True, f"job {job_id} ran on {report.host}")
                yield _clock(report, submitted, utc_now())
                yield from self._setup(job_id)
                yield from report.findings
                return
            if state.state is EngineState.ENDED:
                yield self._without_report(job_id, state)
                return
            waited = (utc_now() - submitted).total_seconds()
            if waited > self.request.wait_s:
                yield _unended(f"job {job_id} did not end within {units.span(waited)}", state)
                return
            time.sleep(_LOOK_EVERY_S)

    def _report(self) -> ProbeReport | None:
        report = atomic.json_or_none(self.folder.path / REPORT_FILE, ProbeReport)
        return report if report is not None and report.word == self.probe.word else None

    def _without_report(self, job_id: str, state: TaskState) -> CheckResult:
        """The result for a job without a report: what ended it, and the end of its log."""
        log, requested = self._log(job_id), self.request.resources
        lines = task_logs.tail(log, 3) if log else []
        output = " | ".join(lines) or "without printing anything"
        if (ended := _ended_by(state)) is not None:
            how, remedy = ended
            where = f" on {state.node}" if state.node else ""
            return CheckResult("test job", False, f"job {job_id} {how}{where}: {output}", remedy)
        raw = state.raw or "ended"
        if log is None:
            return CheckResult(
                "test job",
                False,
                f"job {job_id} {raw} and wrote nothing to {self.folder.path}",
                "compute nodes do not see this folder; choose a --log-dir on a shared file system",
            )
        if (python := node_environment.not_found(lines)) is not None:
            return node_environment.missing_python(python, requested, self.request.dest)
        remedy = "install the tool where compute nodes see it, or add --setup 'module load …'"
        if requested.setup:
            remedy = (
                "fix --setup, whose lines run before the tool, or install what is missing on the "
                "nodes"
            )
        return CheckResult("test job", False, f"job {job_id} {raw}: {output}", remedy)

    def _setup(self, job_id: str) -> Iterator[CheckResult]:
        """The output of the lines of --setup; the shell continues after a line that fails."""
        log = self._log(job_id)
        lines = task_logs.tail(log, 99) if log and self.request.resources.setup else []
        output = list(takewhile(lambda line: " submitit: " not in line, lines))
        if output:
            fact = f"its lines printed: {' | '.join(output[-3:])}"
            yield CheckResult("setup", None, fact, "fix --setup if this is an error")

    def _log(self, job_id: str) -> Path | None:
        """The standard error of the job and its shell."""
        found = task_logs.find(self.folder).get((1, Stage.DOWNLOAD, job_id))
        return found.err if found else None


def _unended(fact: str, state: TaskState) -> CheckResult:
    """The result for a job that has not ended, so that its node was not checked."""
    why = pending_reasons.explain(state.reason) if state.reason else state.raw or "unknown"
    remedy = "the queue may be long; wait longer (--wait-s), or try another --partition"
    if pending_reasons.will_never_start(state.reason):
        remedy = _RESOURCE_OPTIONS
    return CheckResult("test job", False, f"{fact}: {why}", remedy)


def _ended_by(state: TaskState) -> tuple[str, str] | None:
    """What ended a job from outside, and what to do; None if it ended by itself."""
    if state.cause in _ENDS:
        return _ENDS[state.cause]
    status, _, number = state.exit_code.partition(":")
    # A shell, and srun for the task that it started, exit with 128 more than the signal.
    for code in (int(number or 0), int(status or 0) - 128):
        if code in set(signal.Signals) - set(_CRASHES):
            step = "run `doctor` again; if it happens again, ask the site's support what sends it"
            return f"was ended by {signal.Signals(code).name}", step
    return None


def _clock(report: ProbeReport, submitted: datetime, seen: datetime) -> CheckResult:
    """Check that the node's clock is between our times before and after."""
    early = (submitted - report.started).total_seconds()
    late = (report.ended - seen).total_seconds()
    if max(early, late) > _SKEW_S:
        fact = (
            f"{report.host} is {'behind' if early > late else 'ahead'} by {max(early, late):.0f} s"
        )
        return CheckResult(
            "clock", False, fact, "tell the site's support; times in reports will be wrong"
        )
    return CheckResult("clock", True, f"{report.host} agrees with this machine")


def line(finding: CheckResult, look: TerminalStyle) -> str:
    """``✓ slurm: …``, and the remedy on a separate line."""
    mark, style = {True: ("✓", "green"), False: ("✗", "red"), None: ("–", "yellow")}[finding.ok]
    text = f"{look.paint(look.encodable(mark), style)} {finding.name}: {finding.fact}"
    if finding.remedy:
        text += f"\n    → {finding.remedy}"
    return look.encodable(text)
