"""``report``: write a run's report as an HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.storage import presence
from orchestrator.cli import options


@click.command()
@options.run
@options.log_dir
@options.typed_only(
    click.option(
        "-o",
        "--output",
        help="File to write.  [default: report.html of the run]",
        type=options.FOLDER,
    )
)
def command(run: str | None, log_dir: Path, output: Path | None) -> int:
    """Write RUN's report: summary, tasks by node, throughput, problems, efficiency, receipt.

    It is one file that any browser opens, without network access and scripts.
    """
    from jobs.errors import UsageError
    from jobs.model import utc_now
    from jobs.storage import atomic
    from orchestrator import api
    from orchestrator.cli import messages
    from orchestrator.display import report

    folder = api.find_run(run, log_dir)
    state = api.status(folder)
    page = report.page(state, folder, utc_now())
    path = (output or folder.report).resolve()  # replace a link's target, not the link
    if presence.exists(path) and not presence.is_file(path):
        raise UsageError(f"{path} is not a file; give a file name with -o")
    if not presence.is_folder(path.parent):
        raise UsageError(f"{path.parent} is not a folder; create it, or give another path with -o")
    atomic.write_bytes(path, page.encode())
    messages.show([str(path)])
    return 0
