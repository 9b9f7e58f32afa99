"""The commands of the command line as typed functions for Python programs.

The names in ``__all__`` and the outputs of ``--json`` are stable; everything else may change in any
version. Errors are ``OrchestrateError``, with a ``cause`` and a message.

>>> from orchestrator import api                                            # doctest: +SKIP
>>> planned = api.plan(api.LaunchRequest(source, dest=Path("/data/pages")))  # doctest: +SKIP
>>> run = api.launch(planned)                                               # doctest: +SKIP
>>> api.status(run).status                                                  # doctest: +SKIP
<RunStatus.RUNNING: 'running'>
"""

from jobs.errors import OrchestrateError
from jobs.model import SourceKind
from jobs.sources.base import SourceRequest
from orchestrator.inspection.evidence import state_of as status
from orchestrator.inspection.run_list import Run, find_run
from orchestrator.inspection.state import RunStatus
from orchestrator.lifecycle.cancelling import cancel
from orchestrator.lifecycle.launching import Planned, launch, plan
from orchestrator.lifecycle.request import LaunchRequest
from orchestrator.lifecycle.resuming import Amendments, Resumable, plan_resume, resume
from orchestrator.lifecycle.updating import PlannedUpdate, plan_update
from orchestrator.lifecycle.verifying import dataset_of, how_to_repair, verify, verify_on_slurm

__all__ = [
    "Amendments",
    "LaunchRequest",
    "OrchestrateError",
    "Planned",
    "PlannedUpdate",
    "Resumable",
    "Run",
    "RunStatus",
    "SourceKind",
    "SourceRequest",
    "cancel",
    "dataset_of",
    "find_run",
    "how_to_repair",
    "launch",
    "plan",
    "plan_resume",
    "plan_update",
    "resume",
    "status",
    "verify",
    "verify_on_slurm",
]
