"""One Slurm cluster: its identity, the way to it from this shell, and this user's jobs there."""

from __future__ import annotations

import logging
import os
import re
import shlex
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.errors import Cause, EngineError
from jobs.model import Cluster
from orchestrator.engines.base import EngineState, OtherClusterError, TaskState
from orchestrator.engines.slurm import client
from orchestrator.engines.slurm.client import Answer
from orchestrator.engines.slurm.parse import (
    ACCOUNT_FORMAT,
    QUEUE_FORMAT,
    REVOKED,
    JobRow,
    account_rows,
    base,
    queue_rows,
)

log = logging.getLogger(__name__)

# Paths of the configuration without SLURM_CONF (slurm.conf(5); Debian before Slurm 20; a node that
# gets it from the controller).
_FILES = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
_DEFAULT_PORT = "6817"

# The syntax of slurm.conf and of `scontrol show config`.
_SETTING = re.compile(
    r"^\s*(ClusterName|SlurmctldHost|SlurmctldPort)(?:\[\d+\])?\s*=\s*(\S+)", re.I
)

_AT_ONCE_S = 3.0
_ENDED = re.compile("invalid job id|already complet", re.IGNORECASE)
_IDS_AT_ONCE = 500  # ids on one command line


@dataclass(frozen=True)
class Way:
    """How to call commands for one cluster."""

    at: str | None  # see ``client.ask``
    doubt: str = ""  # why another cluster may respond; empty: it is the right one
    name: str = ""  # of the cluster, if there is doubt

    @property
    def accounts_at(self) -> str | None:
        """The same for accounting, which may know a cluster that does not respond."""
        return self.name or self.at


def read_config(text: str) -> Cluster | None:
    """The cluster in the text of a ``slurm.conf`` or ``scontrol show config``."""
    settings: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := _SETTING.match(line):
            settings.setdefault(found[1].lower(), []).append(found[2].lower())
    if "clustername" not in settings:
        return None
    port = settings.get("slurmctldport", [_DEFAULT_PORT])[0]
    hosts = settings.get("slurmctldhost", [])
    return Cluster(settings["clustername"][0], tuple(f"{host}:{port}" for host in hosts))


_known: dict[tuple[str | None, ...], Cluster] = {}


def identify(at: str | None) -> Cluster | None:
    """The cluster that commands reach with ``at`` (see ``client.ask``); None: unknown.

    From the controller; if scontrol does not respond, from this machine's configuration file, for
    its own cluster. Cached for the life of the process.
    """
    key = (at, *(os.environ.get(name) for name in ("PATH", "SLURM_CONF", "SLURM_CLUSTERS")))
    if key not in _known:
        found = read_config(client.control_text("show", "config", at=at))
        if found is None and (at == "" or (at is None and not chosen())):
            found = _of_this_machine()
        if found is None:
            return None
        _known[key] = found
    return _known[key]


def chosen() -> list[str]:
    """The clusters in the user's environment, which apply to all of Slurm's commands."""
    return [name for name in os.environ.get("SLURM_CLUSTERS", "").split(",") if name]


def several() -> bool:
    """Whether the environment names several clusters, from which sbatch chooses."""
    names = chosen()
    return len(names) > 1 or names == ["all"]


def _of_this_machine() -> Cluster | None:
    from_environment = os.environ.get("SLURM_CONF")
    for path in [from_environment] if from_environment else _FILES:
        with suppress(OSError):
            return read_config(Path(path).read_text(encoding="utf-8", errors="replace"))
    return None


def way_to(wanted: Cluster) -> Way:
    """How to reach ``wanted``: as this shell does, ignoring SLURM_CLUSTERS, or with ``-M``."""
    here = None
    for at in _ways(wanted):
        there = identify(at)
        if there is not None and there.is_same(wanted):
            return Way(at)
        if at != wanted.name:
            here = here or there
    # A cluster with that name is used nevertheless: a job of the run in its output proves it.
    own = here is None or here.name == wanted.name
    return Way(None if own else wanted.name, _doubt(wanted, here), wanted.name)


def _ways(wanted: Cluster) -> Iterator[str | None]:
    if not several():
        yield None
    if chosen():
        yield ""
    yield wanted.name


def _doubt(wanted: Cluster, here: Cluster | None) -> str:
    if here is None:
        other = "it is unknown which cluster this shell uses, because scontrol does not respond"
    else:
        other = f"this shell uses cluster {here}"
    return (
        f"the run's jobs are on cluster {wanted}, but {other}; run this on a login node of "
        f"{wanted.name}, or with the SLURM_CONF and SLURM_CLUSTERS of the launch"
    )


class Queue:
    """The queue of the cluster that ``way`` reaches."""

    def __init__(self, way: Way) -> None:
        self._way = way

    def rows(self) -> list[JobRow]:
        """All jobs of this user that slurmctld knows, including ended ones.

        ``EngineError`` if Slurm does not respond; empty if it may be a different cluster anyway.
        """
        # -r: otherwise the pending tasks of an array share a row, which has all their reasons.
        words = ("squeue", "-r", "-u", client.user(), "-t", "all", "-O", QUEUE_FORMAT)
        try:
            found = list(queue_rows(_query(words, self._way.at).stdout))
            if moved := [row.job_id for row in found if row.task.raw == REVOKED]:
                there = {row.job_id: row for row in self.accounts(moved, everywhere=True) or ()}
                found = [there.get(row.job_id, row) for row in found]
            return found
        except EngineError as error:
            if not self._way.doubt:
                raise
            log.info("%s", error.message)
            return []

    def named(self, name: str) -> set[str]:
        """Ids of the jobs that were submitted with ``name``."""
        return {base(row.job_id) for row in self.rows() if row.name == name}

    def states(
        self, run_id: str, ids: Collection[str], attempts: Collection[int]
    ) -> dict[str, TaskState]:
        """See ``base.Engine.poll``."""
        wanted = set(ids)

        def ours(rows: Iterable[JobRow]) -> dict[str, TaskState]:
            known = (row for row in rows if row.job_id in wanted)
            return {row.job_id: row.task for row in known if row.is_of(run_id, attempts)}

        found = ours(self.rows())
        # A job of the run in the output proves that this is its cluster.
        certain = bool(found) or not self._way.doubt
        left = wanted - found.keys()
        if left and (rows := self.accounts(left)) is not None:
            accounted = ours(rows)
            if certain:
                accounted = {each: _unknown_to_slurmctld(task) for each, task in accounted.items()}
            found = accounted | found
            if certain:
                found |= _cancelled_alone(left - found.keys(), found)
        left -= found.keys()
        if left and not certain:
            raise OtherClusterError(self._way.doubt)
        # slurmctld responded and does not know them, so they are not running.
        return found | dict.fromkeys(left, TaskState(EngineState.ENDED))

    def accounts(self, ids: Iterable[str], *, everywhere: bool = False) -> list[JobRow] | None:
        """The accounting's rows of ids; None if there is no accounting, or it does not respond.

        ``everywhere``: on all clusters of the accounting.
        """
        bases = ",".join(sorted({base(each) for each in ids}))
        words = ["sacct", "-P", "-j", bases, "-o", ACCOUNT_FORMAT, *["-L"] * everywhere]
        try:
            answer = client.ask(*words, at="" if everywhere else self._way.accounts_at)
            if answer.returncode:
                raise EngineError(answer.words)
            return [_with_user_name(row) for row in account_rows(answer.stdout)]
        except EngineError as error:
            log.info("no accounting: %s", error.message)
            return None

    def end_command(self, ids: Sequence[str], names: Sequence[str]) -> str:
        """The command line that cancels jobs."""
        at = ["-M", self._way.at] if self._way.at else []
        by_name = [["scancel", *at, f"--name={name}"] for name in names]
        by_id = [["scancel", *at, *ids]] if ids else []
        return "; ".join(shlex.join(words) for words in (*by_id, *by_name))

    def end(self, ids: Sequence[str]) -> None:
        """Cancel jobs; ``EngineError`` if Slurm refuses."""
        for start in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[start : start + _IDS_AT_ONCE]
            answer = client.ask("scancel", *some, at=self._way.at)
            # A job may have ended since the query: then there is nothing to cancel.
            if answer.returncode and not _ENDED.search(answer.words):
                raise EngineError(f"scancel failed: {answer.words}")


def _query(words: Sequence[str], at: str | None) -> Answer:
    """Run a query; ``EngineError`` if Slurm does not respond.

    A query that fails at once is repeated. If the controller is down, clients wait for 10 to 20 s,
    and a second attempt would not help.
    """
    started = time.monotonic()
    answer = client.ask(*words, at=at)
    if answer.silent and time.monotonic() - started < _AT_ONCE_S:
        answer = client.ask(*words, at=at)
    if answer.returncode:
        raise EngineError(f"{words[0]} does not respond: {answer.words}")
    return answer


def _unknown_to_slurmctld(task: TaskState) -> TaskState:
    """A task that only accounting knows: it has ended, whatever its row says.

    After a crash of slurmctld, the rows of jobs that it has lost stay pending or running for ever
    (`sacctmgr show runawayjobs`).
    """
    if task.state is EngineState.ENDED:
        return task
    raw = f"{task.raw} in accounting, unknown to slurmctld"
    return replace(task, state=EngineState.ENDED, raw=raw, reason="", exit_code="")


def _cancelled_alone(ids: Iterable[str], known: Mapping[str, TaskState]) -> dict[str, TaskState]:
    """Array tasks that were cancelled while pending: accounting only knows the others."""
    bases = {base(each) for each in known}
    cancelled = TaskState(EngineState.ENDED, raw="CANCELLED", cause=Cause.CANCELLED)
    return {each: cancelled for each in ids if base(each) in bases and "_" in each}


def _with_user_name(row: JobRow) -> JobRow:
    """``CANCELLED by 1000`` with the user's name instead of the number."""
    word, by, uid = row.task.raw.partition(" by ")
    if not by:
        return row
    return replace(row, task=replace(row.task, raw=f"{word} by {client.user_name(uid)}"))
