"""Engines by name; each is imported when it is needed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.errors import EngineError, UsageError
from jobs.model import LOCAL_ENGINE

if TYPE_CHECKING:
    from jobs.model import Cluster
    from orchestrator.engines.base import Engine

AUTO = "auto"
SLURM, LOCAL = NAMES = ("slurm", LOCAL_ENGINE)


def engine_named(name: str, cluster: Cluster | None = None) -> Engine:
    """A new engine with that name, for that cluster; None: the environment's cluster."""
    if name == SLURM:
        from orchestrator.engines.slurm.engine import SlurmEngine

        return SlurmEngine(cluster)
    if name == LOCAL:
        from orchestrator.engines.local.engine import LocalEngine

        return LocalEngine()
    raise UsageError(f"there is no engine {name!r}; choose from {', '.join(NAMES)}")


@dataclass(frozen=True)
class EngineChoice:
    """The name of an engine, and why it is this machine if that was not requested."""

    name: str
    why_local: str = ""

    @property
    def is_local(self) -> bool:
        return self.name == LOCAL


def choose_engine(wanted: str) -> EngineChoice:
    """The engine for ``wanted``; ``auto``: Slurm if there is ``sbatch``.

    A Slurm that does not respond is used nevertheless (``Engine.reach`` reports it), so that no
    work for a cluster is done on a login node. Raises ``EngineError`` if Slurm is requested by name
    but there is none.
    """
    if wanted not in (AUTO, *NAMES):
        raise UsageError(f"there is no engine {wanted!r}; choose from {AUTO}, {', '.join(NAMES)}")
    if wanted == LOCAL:
        return EngineChoice(wanted)
    if shutil.which("sbatch") is not None:
        return EngineChoice(SLURM)
    if wanted == AUTO:
        return EngineChoice(LOCAL, "sbatch is not on PATH, so this machine does the work")
    raise EngineError(
        "sbatch is not on PATH; run this on a login node of the cluster, or use "
        "--engine local to work on this machine"
    )


def cluster_after(last: Cluster | None) -> Cluster | None:
    """The cluster for jobs after jobs on ``last``, as in ``engine_named``.

    ``last``, unless the environment chooses another cluster or ``last`` is out of reach: then None.
    """
    from orchestrator.engines.slurm import cluster

    if last is None or cluster.chosen() not in ([], [last.name]):
        return None
    return None if cluster.way_to(last).doubt else last
