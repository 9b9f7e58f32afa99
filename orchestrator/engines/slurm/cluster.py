"""Identifies the cluster that a shell uses, and finds a way to the cluster of a run's jobs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jobs.model import Cluster
from orchestrator.engines.slurm import client

# Paths of the configuration without SLURM_CONF (slurm.conf(5); Debian before Slurm 20; a node that
# gets it from the controller).
_FILES = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
_DEFAULT_PORT = "6817"

# The syntax of slurm.conf and of `scontrol show config`.
_SETTING = re.compile(
    r"^\s*(ClusterName|SlurmctldHost|SlurmctldPort)(?:\[\d+\])?\s*=\s*(\S+)", re.I
)


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
