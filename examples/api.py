"""A complete run from Python: plan, launch, wait, read the result.

    python examples/api.py SHARDS DEST

SHARDS is an archive or a folder of archives, DEST a folder that does not exist yet. The work is
done on this machine; without ``engine="local"`` the jobs go to Slurm if it is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator import api


def bring_in(shards: Path, dest: Path) -> api.RunStatus:
    """Publish the dataset of ``shards`` in ``dest``; returns the run's final state."""
    source = api.SourceRequest(api.SourceKind.LOCAL, (str(shards.absolute()),))
    planned = api.plan(api.LaunchRequest(source, dest=dest, engine="local"))
    for note in planned.notes:
        print(f"note: {note}")
    print(f"{len(planned.plan.shards)} shards to {planned.plan.dest}")
    run = api.launch(planned)  # on Slurm: returns when the jobs are accepted
    state = api.status(run)
    if state.status is not api.RunStatus.DONE:
        # resume does only what is missing, however the first attempt ended.
        api.resume(api.plan_resume(run))
        state = api.status(run)
    seconds = sum(future.result().cpu_s for future in run.futures() if not future.exception())
    print(f"{seconds:.0f} s of CPU time in {len(run.futures())} tasks")
    return state.status


def main() -> int:
    """Run the example; errors are printed as by the command line."""
    try:
        status = bring_in(Path(sys.argv[1]), Path(sys.argv[2]))
    except api.OrchestrateError as error:
        print(f"{error.cause.value}: {error}", file=sys.stderr)
        return 1
    print(status.value)
    return 0 if status is api.RunStatus.DONE else 1


if __name__ == "__main__":
    sys.exit(main())
