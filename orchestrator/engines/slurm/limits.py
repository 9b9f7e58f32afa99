"""Limits of this Slurm: array sizes, time limits; and its refusals, with a next step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.errors import EngineError
from jobs.model import Resources
from orchestrator import units
from orchestrator.engines.base import JobSpec, SiteLimits, TooManyJobs
from orchestrator.engines.slurm import client

DEFAULT_MAX_ARRAY = 1001  # Slurm's default: the highest index is one less

# A site may set a lower maximum of tasks than of indices (slurm.conf(5), SchedulerParameters).
_MAX_ARRAY = re.compile(
    r"^(?:MaxArraySize\s*=\s*|SchedulerParameters\s*=.*\bmax_array_tasks=)(\d+)", re.MULTILINE
)
# Of a partition, or of the cluster.
_DEFAULT_MEM = re.compile(r"\bDefMemPer(CPU|Node)\s*=\s*(\d+)")


# ``at`` is the cluster, as in ``client.ask``.


def array_size(at: str | None = None) -> int:
    """The maximum of tasks in an array, whose indices start at 0; Slurm's default if unknown."""
    found = _MAX_ARRAY.findall(client.control_text("show", "config", at=at))
    return max(1, min(map(int, found), default=DEFAULT_MAX_ARRAY))


@dataclass(frozen=True)
class Array:
    """One of the arrays into which a stage's tasks are split."""

    start: int  # index of its first task
    count: int
    parallel: int  # tasks at a time, at most
    after_array: int | None = None  # index of the array that must end before this one starts


def split(count: int, most: int, parallel: int) -> list[Array]:
    """Split ``count`` tasks into arrays of at most ``most``, with ``parallel`` tasks at a time.

    Slurm throttles each array separately. So the arrays have about the same size and share
    ``parallel``; if there are more arrays than that, some wait for the end of another one.
    """
    arrays = max(1, -(-count // most))
    lanes = min(arrays, parallel)
    sizes, shares = _shares(count, arrays), _shares(parallel, lanes)
    return [
        Array(
            start=sum(sizes[:index]),
            count=sizes[index],
            parallel=shares[index % lanes],
            after_array=index - lanes if index >= lanes else None,
        )
        for index in range(arrays)
    ]


def _shares(total: int, among: int) -> list[int]:
    """``total`` as ``among`` numbers that differ by at most one, in descending order."""
    share, more = divmod(total, among)
    return [share + (index < more) for index in range(among)]


@dataclass(frozen=True)
class Partition:
    """A partition as ``scontrol show partition`` describes it."""

    name: str
    is_default: bool
    is_up: bool
    limit_min: int  # its time limit; ``units.UNLIMITED``: none
    text: str = ""  # all that was printed of it


def partitions(at: str | None = None) -> list[Partition]:
    """All partitions that this user sees; none if ``scontrol`` does not respond."""
    lines = client.control_text("-o", "show", "partition", at=at).splitlines()
    rows = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
    return [
        Partition(
            fields["PartitionName"],
            fields.get("Default") == "YES",
            fields.get("State", "UP") == "UP",
            units.parse_time(fields.get("MaxTime", "UNLIMITED")),
            line,
        )
        for line, fields in zip(lines, rows, strict=True)
        if "PartitionName" in fields
    ]


def _possible(partition: str | None, at: str | None) -> list[Partition]:
    """The partitions of a job (``a,b``; None: the default one), as far as they are known."""
    names = partition.split(",") if partition else []
    return [p for p in partitions(at) if p.name in names or (not names and p.is_default)]


def _time_min(possible: Sequence[Partition]) -> int | None:
    """The longest time limit in minutes; None: no limit, or unknown."""
    limits = [each.limit_min for each in possible]
    return max(limits) if limits and units.UNLIMITED not in limits else None


def of_site(requested: Resources, at: str | None = None) -> SiteLimits:
    """What applies to a job with these resources; of several partitions the most."""
    possible = _possible(requested.partition, at)
    config = client.control_text("show", "config", at=at)
    texts = [each.text for each in possible] or [""]
    default_mb = max(_default_mem_mb(text, requested.cpus, config) for text in texts)
    return SiteLimits(_time_min(possible), default_mb if "DefMemPer" in config else None)


def _default_mem_mb(partition: str, cpus: int, config: str) -> int:
    """The memory in MiB of a job that requests none; 0: all of its node.

    ``partition`` and ``config``: scontrol's output; the partition's value overrides.
    """
    found = _DEFAULT_MEM.search(partition) or _DEFAULT_MEM.search(config)
    if found is None:
        return 0
    return int(found[2]) * (cpus if found[1] == "CPU" else 1)


def check_time(spec: JobSpec, at: str | None = None) -> None:
    """Refuse more time than the partition allows: the job would be accepted but never start."""
    requested = spec.resources
    if requested.qos is not None:
        return  # a QOS may override the partition's limit
    limit = _time_min(_possible(requested.partition, at))
    if limit is not None and (requested.time_min > limit or requested.time_min == units.UNLIMITED):
        raise EngineError(
            f"--time {units.format_time(requested.time_min)} is more than partition "
            f"{requested.partition or '(the default one)'} allows "
            f"({units.format_time(limit)}); request less, or choose another --partition"
        )


# Messages of sbatch (slurm_errno.c), with remedies.
_REMEDIES = (
    ("submitjob", "lower --tasks, or wait until some of your jobs have ended"),
    ("maxwall", "request less time with --time"),
    ("job violates", "it exceeds a limit of your account or QOS: lower --tasks, --time or --mem"),
    ("invalid partition", "choose another --partition; `sinfo` lists them"),
    ("invalid account", "choose another --account; `sacctmgr show assoc user=$USER` lists yours"),
    ("invalid qos", "choose another --qos; `sacctmgr show assoc user=$USER` lists yours"),
    ("time limit", "request less time with --time; `sinfo -o '%P %l'` shows the limits"),
    ("memory", "request less memory with --mem"),
    ("node configuration", "no node has so many CPUs or so much memory: lower -c or --mem"),
    ("cpu count", "request fewer CPUs with -c"),
    ("feature", "choose another --constraint; `sinfo -o '%f'` lists features"),
    ("reservation", "choose another --reservation; `scontrol show reservation` lists them"),
    ("invalid job array", "lower --tasks"),
    ("node name", "correct --exclude-nodes; `sinfo -N` lists the nodes"),
    ("unrecognized option", "correct --sbatch-arg; `sbatch --help` lists sbatch's options"),
)


# The violated limit, such as QOSMaxSubmitJobPerUserLimit (slurmctld/acct_policy.c).
_VIOLATED = re.compile(r"\b(Assoc|QOS)[A-Z]\w+")


def refusal(text: str, words: str) -> EngineError:
    """The error for sbatch's message ``words``, which starts with ``text``.

    ``TooManyJobs`` also if an older Slurm does not name the violated limit, because it may be that.
    """
    limit = _VIOLATED.search(words)
    too_many = "SubmitJob" in limit[0] if limit else "Job violates" in words
    return (TooManyJobs if too_many else EngineError)(f"{text}: {explained(words)}")


def explained(words: str) -> str:
    """sbatch's message, with the next step if one is known."""
    lower = words.lower()
    for sign, remedy in _REMEDIES:
        if sign in lower:
            return f"{words}; {remedy}"
    return words
