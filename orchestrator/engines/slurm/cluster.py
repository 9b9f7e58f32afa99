"""Which Slurm a shell talks to, and how to ask the one that has a run's jobs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jobs.model import Cluster
from orchestrator.engines.slurm import client

# Where the configuration lies if SLURM_CONF does not say (slurm.conf(5); Debian before Slurm 20; a
# node that gets it from the controller).
_FILES = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
_DEFAULT_PORT = "6817"

# One syntax for slurm.conf and for what `scontrol show config` makes of it.
_SETTING = re.compile(
    r"^\s*(ClusterName|SlurmctldHost|SlurmctldPort)(?:\[\d+\])?\s*=\s*(\S+)", re.I
)


@dataclass(frozen=True)
class Way:
    """How the commands for one cluster are called."""

    at: str | None  # see ``slurmclient.ask``
    doubt: str = ""  # why what answers may be another cluster; empty: it is the right one
    name: str = ""  # of the cluster, where there is doubt

    @property
    def accounts_at(self) -> str | None:
        """The same for accounting, which may know a cluster that does not answer itself."""
        return self.name or self.at


def read_config(text: str) -> Cluster | None:
    """The cluster that a ``slurm.conf``, or ``scontrol show config``, describes."""
    said: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := _SETTING.match(line):
            said.setdefault(found[1].lower(), []).append(found[2].lower())
    if "clustername" not in said:
        return None
    port = said.get("slurmctldport", [_DEFAULT_PORT])[0]
    hosts = said.get("slurmctldhost", [])
    return Cluster(said["clustername"][0], tuple(f"{host}:{port}" for host in hosts))


_known: dict[tuple[str | None, ...], Cluster] = {}


def identify(at: str | None) -> Cluster | None:
    """The cluster that commands reach with ``at`` (see ``slurmclient.ask``); None: not known.

    The controller tells; where scontrol does not answer, the configuration file of this machine
    tells of its own cluster. What is found counts for the rest of the process.
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
    """The clusters that the user's environment names for all of Slurm's commands."""
    return [name for name in os.environ.get("SLURM_CLUSTERS", "").split(",") if name]


def several() -> bool:
    """Whether the environment leaves it to sbatch to choose among clusters."""
    names = chosen()
    return len(names) > 1 or names == ["all"]


def _of_this_machine() -> Cluster | None:
    given = os.environ.get("SLURM_CONF")
    for path in [given] if given else _FILES:
        with suppress(OSError):
            return read_config(Path(path).read_text(encoding="utf-8", errors="replace"))
    return None


def way_to(wanted: Cluster) -> Way:
    """How to ask ``wanted``: as this shell does, past its SLURM_CLUSTERS, or with ``-M``."""
    here = None
    for at in _ways(wanted):
        there = identify(at)
        if there is not None and there.is_same(wanted):
            return Way(at)
        if at != wanted.name:
            here = here or there
    # One of that name is asked all the same: a job of the run in its answer settles the doubt.
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
        other = "which cluster this shell talks to is not known, as scontrol does not answer"
    else:
        other = f"this shell talks to cluster {here}"
    return (
        f"the run's jobs are on cluster {wanted}, but {other}; type this on a login node of "
        f"{wanted.name}, or with SLURM_CONF and SLURM_CLUSTERS as they were at launch"
    )
