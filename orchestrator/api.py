"""What the command line does, for programs: typed functions over one run folder.

>>> from orchestrator import api                                            # doctest: +SKIP
>>> planned = api.plan(api.LaunchRequest(source, dest=Path("/data/pages")))  # doctest: +SKIP
>>> folder = api.launch(planned)                                            # doctest: +SKIP
>>> api.status(folder).status                                               # doctest: +SKIP
<RunStatus.RUNNING: 'running'>
"""

from jobs.sources.base import SourceRequest
from orchestrator.inspection.evidence import state_of as status
from orchestrator.inspection.run import Run
from orchestrator.inspection.run_list import find_run
from orchestrator.inspection.state import RunStatus
from orchestrator.lifecycle.launching import Planned, launch, plan
from orchestrator.lifecycle.request import LaunchRequest
from orchestrator.lifecycle.resuming import Resumable, cancel, plan_resume, resume
from orchestrator.lifecycle.verifying import dataset_of, how_to_mend, verify, verify_on_slurm

__all__ = [
    "LaunchRequest",
    "Planned",
    "Resumable",
    "Run",
    "RunStatus",
    "SourceRequest",
    "cancel",
    "dataset_of",
    "find_run",
    "how_to_mend",
    "launch",
    "plan",
    "plan_resume",
    "resume",
    "status",
    "verify",
    "verify_on_slurm",
]
