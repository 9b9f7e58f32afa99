"""The engines there are, by name; each is loaded only when it is asked for."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.errors import EngineError, UsageError

if TYPE_CHECKING:
    from orchestrator.engines.base import Engine

AUTO = "auto"
SLURM, LOCAL = NAMES = ("slurm", "local")


def by_name(name: str) -> Engine:
    """A new engine of that name."""
    if name == SLURM:
        from orchestrator.engines.slurm import SlurmEngine

        return SlurmEngine()
    if name == LOCAL:
        from orchestrator.engines.local import LocalEngine

        return LocalEngine()
    raise UsageError(f"there is no engine {name!r}; there are {', '.join(NAMES)}")


@dataclass(frozen=True)
class Choice:
    """The name of an engine, and why it is this machine although nobody asked for that."""

    name: str
    why_local: str = ""


def choose(wanted: str) -> Choice:
    """The engine to use where ``wanted`` is asked for; ``auto``: Slurm where there is ``sbatch``.

    A Slurm that does not answer is there all the same: ``reach`` says so, and no work is done on a
    login node that was meant for a cluster. Raises ``EngineError`` where Slurm is asked for by name
    and there is none.
    """
    if wanted not in (AUTO, *NAMES):
        raise UsageError(f"there is no engine {wanted!r}; there are {AUTO}, {', '.join(NAMES)}")
    if wanted == LOCAL:
        return Choice(wanted)
    if shutil.which("sbatch") is not None:
        return Choice(SLURM)
    if wanted == AUTO:
        return Choice(LOCAL, "there is no sbatch on PATH, so this machine does the work")
    raise EngineError(
        "there is no sbatch on PATH; run this on a login node of the cluster, or use "
        "--engine local to work on this machine"
    )


def reach(name: str, otherwise: str = "") -> None:
    """Return once the engine of that name can be talked to; ``EngineError`` where it cannot be.

    ``otherwise`` is what else the user can do, as the end of a sentence.
    """
    if name == SLURM:
        from orchestrator.engines import slurmclient

        slurmclient.reach(otherwise)
