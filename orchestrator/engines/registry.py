"""The engines there are, by name; each is loaded only when it is asked for."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.errors import EngineError, UsageError

if TYPE_CHECKING:
    from jobs.model import Cluster
    from orchestrator.engines.base import Engine

AUTO = "auto"
SLURM, LOCAL = NAMES = ("slurm", "local")


def engine_named(name: str, cluster: Cluster | None = None) -> Engine:
    """A new engine of that name, for that cluster; None: the one that the environment chooses."""
    if name == SLURM:
        from orchestrator.engines.slurm.engine import SlurmEngine

        return SlurmEngine(cluster)
    if name == LOCAL:
        from orchestrator.engines.local.engine import LocalEngine

        return LocalEngine()
    raise UsageError(f"there is no engine {name!r}; choose from {', '.join(NAMES)}")


@dataclass(frozen=True)
class EngineChoice:
    """The name of an engine, and why it is this machine although nobody asked for that."""

    name: str
    why_local: str = ""


def choose_engine(wanted: str) -> EngineChoice:
    """The engine to use where ``wanted`` is asked for; ``auto``: Slurm where there is ``sbatch``.

    A Slurm that does not answer is there all the same: ``reach_engine`` says so, and no work is
    done on a login node that was meant for a cluster. Raises ``EngineError`` where Slurm is asked
    for by name and there is none.
    """
    if wanted not in (AUTO, *NAMES):
        raise UsageError(f"there is no engine {wanted!r}; choose from {AUTO}, {', '.join(NAMES)}")
    if wanted == LOCAL:
        return EngineChoice(wanted)
    if shutil.which("sbatch") is not None:
        return EngineChoice(SLURM)
    if wanted == AUTO:
        return EngineChoice(
            LOCAL, "there is no sbatch on PATH, so the work is done on this machine"
        )
    raise EngineError(
        "there is no sbatch on PATH; run this on a login node of the cluster, or use "
        "--engine local to work on this machine"
    )


def reach_engine(name: str, cluster: Cluster | None = None, otherwise: str = "") -> None:
    """Return once such an engine (see ``engine_named``) answers; ``EngineError`` where it does not.

    ``otherwise`` is what else the user can do, as the end of a sentence.
    """
    if name == SLURM:
        from orchestrator.engines.slurm.engine import SlurmEngine

        SlurmEngine(cluster).reach(otherwise)


def cluster_after(last: Cluster | None) -> Cluster | None:
    """Where jobs go after jobs on ``last``, as in ``engine_named``.

    There, unless the environment chooses another cluster, or ``last`` is out of reach: then None.
    """
    from orchestrator.engines.slurm import cluster

    if last is None or cluster.chosen() not in ([], [last.name]):
        return None
    return None if cluster.way_to(last).doubt else last
