"""The engines there are, by name; each is loaded only when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.errors import EngineError, UsageError

if TYPE_CHECKING:
    from orchestrator.engines.base import Engine

AUTO = "auto"
NAMES = ("slurm", "local")


def by_name(name: str) -> Engine:
    """A new engine of that name."""
    if name == "slurm":
        from orchestrator.engines.slurm import SlurmEngine

        return SlurmEngine()
    if name == "local":
        from orchestrator.engines.local import LocalEngine

        return LocalEngine()
    raise UsageError(f"there is no engine {name!r}; there are {', '.join(NAMES)}")


def choose(wanted: str) -> str:
    """The engine to use where ``wanted`` is asked for; ``auto``: Slurm where ``sbatch`` answers.

    Raises ``EngineError`` where Slurm is asked for by name and does not answer.
    """
    if wanted not in (AUTO, *NAMES):
        raise UsageError(f"there is no engine {wanted!r}; there are {AUTO}, {', '.join(NAMES)}")
    if wanted == "local":
        return wanted
    from orchestrator.engines import slurmclient

    silence = slurmclient.absent()
    if silence is None:
        return "slurm"
    if wanted == AUTO:
        return "local"
    raise EngineError(
        f"Slurm was asked for, but {silence}; run this on a login node of the cluster, "
        "or use --engine local to work on this machine"
    )


def reach(name: str) -> None:
    """Return once the engine of that name can be talked to; ``EngineError`` where it cannot be."""
    if name == "slurm":
        from orchestrator.engines import slurmclient

        slurmclient.reach()
