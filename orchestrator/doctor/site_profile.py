"""A settings file for a cluster, made from what ``doctor`` found there."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

from msgspec import structs

from jobs.errors import EngineError
from jobs.model import Resources
from jobs.storage import atomic
from orchestrator import filesystems, resources, units
from orchestrator.doctor import node_probe
from orchestrator.doctor.node_probe import CheckResult
from orchestrator.engines.base import JobSpec
from orchestrator.engines.slurm import client
from orchestrator.engines.slurm import limits as slurm_limits
from orchestrator.engines.slurm.limits import Partition

_MOST_TRIALS = 20  # of sbatch --test-only; each costs slurmctld a look at the whole queue
_LEAST_MEM_MB = 2048  # what a task needs in any case; less may end it
_SETTABLE = (
    *("partition", "account", "qos", "constraint", "reservation"),
    *("container_image", "launcher", "python"),
)


def choose(spec: JobSpec) -> Resources:
    """What jobs have to ask for here, as far as the user has not said it.

    The default partition, or the first one that takes such a job; an account only where Slurm
    wants one; no more time than the partition gives; memory where the site gives too little.
    What ``spec`` asks for comes back unchanged where Slurm takes no combination.
    """
    asked = spec.resources
    known = slurm_limits.partitions()
    usable = sorted((p for p in known if p.is_up), key=lambda p: not p.is_default)
    limits = {p.name: p.limit_min for p in known}
    names = [asked.partition] if asked.partition else [p.name for p in usable]
    owners = [asked.account] if asked.account else [None, *accounts()]
    for owner, name in islice(product(owners, names), _MOST_TRIALS):
        tried = structs.replace(
            _with_memory(asked),
            partition=name,
            account=owner,
            time_min=_within(asked.time_min, limits.get(name or "", resources.UNLIMITED)),
        )
        if _taken(replace(spec, resources=tried)):
            return tried
    return asked


def _taken(spec: JobSpec) -> bool:
    from orchestrator.engines.slurm import script

    try:
        script.trial(spec)
    except EngineError:
        return False
    return True


def _with_memory(asked: Resources) -> Resources:
    given = slurm_limits.default_mem_mb(asked.cpus) if asked.mem_mb is None else None
    if given is None or given >= _LEAST_MEM_MB:
        return asked
    return structs.replace(asked, mem_mb=_LEAST_MEM_MB)


def _within(time_min: int, limit_min: int) -> int:
    if limit_min == resources.UNLIMITED:
        return time_min
    return limit_min if time_min == resources.UNLIMITED else min(time_min, limit_min)


def accounts() -> list[str]:
    """The accounts that this user may charge, the default one first; none without accounting."""
    words = ("-n", "-P", "show", "assoc", f"user={getpass.getuser()}", "format=Account,DefaultQOS")
    try:
        answer = client.ask("sacctmgr", *words, timeout_s=20)
    except EngineError:
        return []
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    return list(dict.fromkeys(line.partition("|")[0] for line in lines if line.strip("|")))


def write(path: Path, text: str) -> CheckResult:
    """Write the profile, unless something is there already."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.create_bytes(path, text.encode(), mode=0o644)
    except FileExistsError:
        remedy = "name another file (--write-profile FILE), or move that one away"
        return CheckResult("profile", False, f"{path} already exists", remedy)
    except OSError as error:
        remedy = "name another file: --write-profile FILE"
        return CheckResult("profile", False, f"{path}: {error.strerror}", remedy)
    return CheckResult(
        "profile", True, f"written to {path}; `launch --show-config` shows what counts"
    )


def text(asked: Resources, findings: Sequence[CheckResult], endpoint: str) -> str:
    """The settings file: options that runs need here, and what else was found, as comments."""
    known = slurm_limits.partitions()
    lines = [
        "# Settings of websight-orchestrate, written by `doctor --write-profile`.",
        "# For everybody: /etc/xdg/websight-orchestrate/config.toml; for you alone:",
        "# ~/.config/websight-orchestrate/config.toml. What a user gives later counts more.",
        "",
        f"engine = {json.dumps('slurm')}",
        *_jobs(asked, known),
        *_internet(findings, endpoint),
        "",
        *_partitions(known),
        *_accounts(asked),
        *_folders(os.environ),
        *(f"# found: {f.name}: {f.fact}" for f in findings if f.ok is False),
    ]
    return "\n".join(lines) + "\n"


def _jobs(asked: Resources, known: Iterable[Partition]) -> Iterator[str]:
    for name in _SETTABLE:
        value = getattr(asked, name)
        if value is not None:
            yield f"{name.replace('_', '-')} = {json.dumps(value)}"
    yield f"time = {json.dumps(resources.format_time(asked.time_min))}"
    if asked.cpus != Resources().cpus:
        yield f"cpus-per-task = {asked.cpus}"
    if asked.mem_mb is not None:
        yield f"mem = {json.dumps(f'{asked.mem_mb}M')}"
    if asked.exclude is not None:
        yield f"exclude-nodes = {json.dumps(asked.exclude)}"
    for name, values in (("sbatch-arg", asked.sbatch_args), ("setup", asked.setup)):
        if values:
            yield f"{name} = {json.dumps(list(values))}"


def _internet(findings: Iterable[CheckResult], endpoint: str) -> Iterator[str]:
    """Downloads go through the login node where that alone has internet."""
    there = [finding for finding in findings if finding.name == "internet"]
    if not there:
        yield "# Whether compute nodes reach the internet is not known: no job ran there."
    elif there[-1].ok:
        yield "# Compute nodes reach the internet."
    elif node_probe.internet(endpoint, os.environ).ok:
        yield "# Compute nodes do not reach the internet; this machine does."
        yield f"download-on = {json.dumps('login')}"
    else:
        yield "# Neither compute nodes nor this machine reach the internet: use --local-path."


def _partitions(known: Iterable[Partition]) -> Iterator[str]:
    for each in known:
        words = ["the default"] if each.is_default else []
        words += [] if each.is_up else ["not up"]
        words.append(f"jobs of {resources.format_time(each.limit_min)}")
        yield f"# partition {each.name}: {', '.join(words)}"


def _accounts(asked: Resources) -> Iterator[str]:
    if found := accounts():
        yours = ", ".join(found)
        yield f"# accounts of {getpass.getuser()}: {yours}"
        if asked.account is not None:
            yield "# (an account is a user's own: leave `account` out of a file for everybody)"


def _folders(env: Mapping[str, str]) -> Iterator[str]:
    """Scratch folders, by the variables that sites set and the names that they commonly have."""
    user = getpass.getuser()
    named = [env[name] for name in sorted(env) if name.endswith(("SCRATCH", "WORK"))]
    places = dict.fromkeys([*named, f"/scratch/{user}", f"/work/{user}", "/scratch"])
    for place in filter(None, places):
        path = Path(place)
        if not (path.is_absolute() and path.is_dir() and os.access(path, os.W_OK)):
            continue
        rooms = [
            f"{room.of} has {units.size(room.bytes)} left"
            for room in filesystems.rooms(path)
            if room.bytes is not None
        ]
        kind = filesystems.mount_of(path)[1]
        yield f"# scratch {path} ({kind}): {'; '.join(rooms)}"
