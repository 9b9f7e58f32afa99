"""Writes a settings file for a cluster from the results of ``doctor``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

from msgspec import structs

from jobs.errors import EngineError
from jobs.model import Resources
from jobs.storage import atomic, presence
from orchestrator import filesystems, units
from orchestrator.doctor import node_probe
from orchestrator.doctor.node_probe import CheckResult
from orchestrator.engines.base import JobSpec
from orchestrator.engines.slurm import client
from orchestrator.engines.slurm import limits as slurm_limits
from orchestrator.engines.slurm.limits import Partition

_MOST_TRIALS = 20  # of sbatch --test-only; each makes slurmctld scan the queue
_LEAST_MEM_MB = 2048  # with less a task may be killed
_SETTABLE = (
    *("partition", "account", "qos", "constraint", "reservation", "mail_type", "mail_user"),
    *("container_image", "launcher", "python"),
)


def choose(spec: JobSpec) -> Resources:
    """The resources that jobs have to request here, in addition to the user's.

    The default partition, or the first one that accepts such a job; an account only if Slurm
    requires one; no more time than the partition allows; memory if the site's default is too small.
    Returns those of ``spec`` unchanged if Slurm accepts no combination.
    """
    wanted = spec.resources
    known = slurm_limits.partitions()
    usable = sorted((p for p in known if p.is_up), key=lambda p: not p.is_default)
    limits = {p.name: p.limit_min for p in known}
    names = [wanted.partition] if wanted.partition else [p.name for p in usable]
    owners = [wanted.account] if wanted.account else [None, *accounts()]
    for owner, name in islice(product(owners, names), _MOST_TRIALS):
        tried = structs.replace(
            _with_memory(wanted),
            partition=name,
            account=owner,
            time_min=units.within(wanted.time_min, limits.get(name or "", units.UNLIMITED)),
        )
        if _is_accepted(replace(spec, resources=tried)):
            return tried
    return wanted


def _is_accepted(spec: JobSpec) -> bool:
    from orchestrator.engines.slurm import script

    try:
        script.trial(spec)
    except EngineError:
        return False
    return True


def _with_memory(wanted: Resources) -> Resources:
    default_mb = slurm_limits.of_site(wanted).mem_mb if wanted.mem_mb is None else None
    if not default_mb or default_mb >= _LEAST_MEM_MB:
        return wanted
    return structs.replace(wanted, mem_mb=_LEAST_MEM_MB)


def accounts() -> list[str]:
    """The accounts of this user, the default one first; none without accounting."""
    words = ("-n", "-P", "show", "assoc", f"user={_user()}", "format=Account,DefaultQOS")
    try:
        answer = client.ask("sacctmgr", *words, timeout_s=20)
    except EngineError:
        return []
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    return list(dict.fromkeys(line.partition("|")[0] for line in lines if line.strip("|")))


def _user() -> str:
    """This user's name, or the uid if it has none."""
    return client.user_name(client.user())


def write(path: Path, text: str) -> CheckResult:
    """Write the profile, unless the file exists."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.create_bytes(path, text.encode(), mode=0o644)
    except FileExistsError:
        remedy = "choose another file (--write-profile FILE), or move that one away"
        return CheckResult("profile", False, f"{path} already exists", remedy)
    except OSError as error:
        remedy = "choose another file: --write-profile FILE"
        return CheckResult("profile", False, f"{path}: {error.strerror}", remedy)
    return CheckResult(
        "profile", True, f"written to {path}; `launch --show-config` shows the effective settings"
    )


def text(wanted: Resources, findings: Sequence[CheckResult], endpoint: str) -> str:
    """The settings file: options that runs need here, and other results as comments."""
    known = slurm_limits.partitions()
    lines = [
        "# Settings of websight-orchestrate, written by `doctor --write-profile`.",
        "# For all users: /etc/xdg/websight-orchestrate/config.toml; for you only:",
        "# ~/.config/websight-orchestrate/config.toml. Options on the command line override it.",
        "",
        'engine = "slurm"',
        *_jobs(wanted),
        *_internet(findings, endpoint),
        "",
        *_partitions(known),
        *_accounts(wanted),
        *_folders(os.environ),
        *(f"# found: {f.name}: {_one_line(f.fact)}" for f in findings if f.ok is False),
    ]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    """``text`` as TOML allows it in a comment."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _jobs(wanted: Resources) -> Iterator[str]:
    for name in _SETTABLE:
        value = getattr(wanted, name)
        if value is not None:
            yield f"{name.replace('_', '-')} = {_toml(value)}"
    yield f"time = {json.dumps(units.format_time(wanted.time_min))}"
    if wanted.cpus != Resources().cpus:
        yield f"cpus-per-task = {wanted.cpus}"
    if wanted.mem_mb is not None:
        yield f"mem = {json.dumps(f'{wanted.mem_mb}M')}"
    if wanted.exclude is not None:
        yield f"exclude-nodes = {_toml(wanted.exclude)}"
    for name, values in (
        ("sbatch-arg", wanted.sbatch_args),
        ("setup", wanted.setup),
        ("container-mounts", wanted.container_mounts),
    ):
        if values:
            yield f"{name} = {_toml(list(values))}"


def _toml(value: object) -> str:
    """A text or a list of texts, none of which has control characters."""
    return json.dumps(value, ensure_ascii=False)  # TOML has no surrogates


def _internet(findings: Iterable[CheckResult], endpoint: str) -> Iterator[str]:
    """Download on the login node if only it has internet access."""
    there = [finding for finding in findings if finding.name == "internet"]
    if not there:
        yield "# It is unknown whether compute nodes reach the internet: no job ran there."
    elif there[-1].ok:
        yield "# Compute nodes reach the internet."
    elif node_probe.internet(endpoint).ok:
        yield "# Compute nodes do not reach the internet; this machine does."
        yield 'download-on = "login"'
    else:
        yield "# Neither compute nodes nor this machine reach the internet: use --local-path."


def _partitions(known: Iterable[Partition]) -> Iterator[str]:
    for each in known:
        words = ["the default"] if each.is_default else []
        words += [] if each.is_up else ["not up"]
        has_limit = each.limit_min != units.UNLIMITED
        words.append(
            f"at most {units.format_time(each.limit_min)}" if has_limit else "no time limit"
        )
        yield f"# partition {each.name}: {', '.join(words)}"


def _accounts(wanted: Resources) -> Iterator[str]:
    if found := accounts():
        yours = ", ".join(found)
        yield f"# accounts of {_user()}: {yours}"
        if wanted.account is not None:
            yield "# (accounts belong to users: omit `account` in a file for all users)"


def _folders(env: Mapping[str, str]) -> Iterator[str]:
    """Scratch folders, from variables that sites set and common names."""
    user = _user()
    named = [env[name] for name in sorted(env) if name.endswith(("SCRATCH", "WORK"))]
    places = dict.fromkeys([*named, f"/scratch/{user}", f"/work/{user}", "/scratch"])
    for place in filter(None, places):
        path = Path(place)
        if not (path.is_absolute() and presence.is_folder(path) and os.access(path, os.W_OK)):
            continue
        rooms = [
            f"{room.of} has {units.size(room.bytes)} left"
            for room in filesystems.free_space(path)
            if room.bytes is not None
        ]
        kind = filesystems.mount_of(path)[1]
        yield f"# scratch {path} ({kind}): {'; '.join(rooms)}"
