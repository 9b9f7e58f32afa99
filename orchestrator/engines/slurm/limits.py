"""What this Slurm allows: array sizes, time limits; and its refusals, with the next step."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jobs.errors import EngineError
from orchestrator import resources
from orchestrator.engines.base import JobSpec, TooManyJobs
from orchestrator.engines.slurm import client

DEFAULT_MAX_ARRAY = 1001  # Slurm's own: the highest index is one less

_MAX_ARRAY = re.compile(r"^MaxArraySize\s*=\s*(\d+)", re.MULTILINE)
_DEFAULT_MEM = re.compile(r"^DefMemPer(CPU|Node)\s*=\s*(\d+)", re.MULTILINE)


# ``at`` names the cluster to ask, as in ``slurmclient.ask``.


def array_size(at: str | None = None) -> int:
    """Most tasks in one array, whose indices begin at 0; Slurm's default where it does not tell."""
    found = _MAX_ARRAY.search(client.control_text("show", "config", at=at))
    return max(1, int(found[1]) if found else DEFAULT_MAX_ARRAY)


@dataclass(frozen=True)
class Array:
    """One of the arrays that a stage's tasks are split into."""

    start: int  # index of its first task
    count: int
    parallel: int  # most of its tasks at once
    behind: int | None = None  # the array, by its index, that must end before this one starts


def split(count: int, most: int, parallel: int) -> list[Array]:
    """Split ``count`` tasks into arrays of at most ``most``, ``parallel`` tasks at once in all.

    Slurm throttles each array by itself. So the arrays have about the same size and share
    ``parallel``, and where there are more arrays than that, some wait for another one to end.
    """
    arrays = max(1, -(-count // most))
    lanes = min(arrays, parallel)
    sizes, shares = _shares(count, arrays), _shares(parallel, lanes)
    return [
        Array(
            start=sum(sizes[:index]),
            count=sizes[index],
            parallel=shares[index % lanes],
            behind=index - lanes if index >= lanes else None,
        )
        for index in range(arrays)
    ]


def _shares(total: int, among: int) -> list[int]:
    """``total`` as so many numbers that differ by one at most, the larger ones first."""
    share, more = divmod(total, among)
    return [share + (index < more) for index in range(among)]


@dataclass(frozen=True)
class Partition:
    """A partition as ``scontrol show partition`` describes it."""

    name: str
    is_default: bool
    is_up: bool
    limit_min: int  # the longest time that it gives a job; ``resources.UNLIMITED``: any


def partitions(at: str | None = None) -> list[Partition]:
    """All partitions that this user sees; none where ``scontrol`` does not answer."""
    lines = client.control_text("-o", "show", "partition", at=at).splitlines()
    found = []
    for line in lines:
        said = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "PartitionName" in said:
            found.append(
                Partition(
                    said["PartitionName"],
                    said.get("Default") == "YES",
                    said.get("State", "UP") == "UP",
                    resources.parse_time(said.get("MaxTime", "UNLIMITED")),
                )
            )
    return found


def default_mem_mb(cpus: int, at: str | None = None) -> int | None:
    """Megabytes that a job with so many cores gets where it asks for none; None: not limited."""
    said = _DEFAULT_MEM.search(client.control_text("show", "config", at=at))
    if said is None:
        return None
    return int(said[2]) * (cpus if said[1] == "CPU" else 1)


def time_limit_min(partition: str | None, at: str | None = None) -> int | None:
    """The longest time in minutes that a partition gives a job; None: no limit, or unknown.

    Of several partitions (``a,b``) the longest counts; None is the default partition.
    """
    names = partition.split(",") if partition else []
    limits = [
        each.limit_min
        for each in partitions(at)
        if each.name in names or (not names and each.is_default)
    ]
    return max(limits) if limits and resources.UNLIMITED not in limits else None


def check_time(spec: JobSpec, at: str | None = None) -> None:
    """Refuse more time than the partition gives: sbatch would take the job, and never start it."""
    asked = spec.resources
    if asked.qos is not None:
        return  # a QOS may go beyond the partition's limit
    limit = time_limit_min(asked.partition, at)
    if limit is not None and (asked.time_min > limit or asked.time_min == resources.UNLIMITED):
        raise EngineError(
            f"--time {resources.format_time(asked.time_min)} is more than partition "
            f"{asked.partition or '(the default one)'} gives a job "
            f"({resources.format_time(limit)}); ask for less, or choose another --partition"
        )


# Words of sbatch (slurm_errno.c) and what to do about them.
_REMEDIES = (
    ("submitjob", "lower --tasks, or wait until some of your jobs have ended"),
    ("maxwall", "ask for less with --time"),
    ("job violates", "it is over a limit of your account or QOS: lower --tasks, --time or --mem"),
    ("invalid partition", "choose another --partition; `sinfo` lists them"),
    ("invalid account", "choose another --account; `sacctmgr show assoc user=$USER` lists yours"),
    ("invalid qos", "choose another --qos; `sacctmgr show assoc user=$USER` lists yours"),
    ("time limit", "ask for less with --time; `sinfo -o '%P %l'` shows the limits"),
    ("memory", "ask for less with --mem"),
    ("node configuration", "no node has so many CPUs or so much memory: lower -c or --mem"),
    ("cpu count", "ask for fewer CPUs with -c"),
    ("feature", "choose another --constraint; `sinfo -o '%f'` lists features"),
    ("reservation", "choose another --reservation; `scontrol show reservation` lists them"),
    ("invalid job array", "lower --tasks"),
)


# The limit that a job violates, such as QOSMaxSubmitJobPerUserLimit (slurmctld/acct_policy.c).
_VIOLATED = re.compile(r"\b(Assoc|QOS)[A-Z]\w+")


def refusal(said: str, words: str) -> EngineError:
    """The error for sbatch's ``words``, which follow ``said``.

    ``TooManyJobs`` also where an older Slurm does not tell which limit is violated: it may be one.
    """
    limit = _VIOLATED.search(words)
    too_many = "SubmitJob" in limit[0] if limit else "Job violates" in words
    return (TooManyJobs if too_many else EngineError)(f"{said}: {explained(words)}")


def explained(words: str) -> str:
    """sbatch's own words, with the next step where one is known."""
    lower = words.lower()
    for sign, remedy in _REMEDIES:
        if sign in lower:
            return f"{words}; {remedy}"
    return words
