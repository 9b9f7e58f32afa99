"""``doctor``: check this machine or cluster."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from orchestrator.cli import options
from orchestrator.lifecycle.request import DEFAULT_DEST, override


@click.command(cls=options.Titled)
@click.option("--dest", help="Destination.", type=options.FOLDER, default=DEFAULT_DEST)
@options.log_dir
@options.engine
@click.option(
    "--wait-s",
    metavar="SECONDS",
    help="How long to wait for the test job.",
    type=options.Number(min=1, max=86400),
    default=120.0,
)
@click.option(
    "--write-profile",
    metavar="[FILE]",
    help="Write a settings file from the results.  [FILE: your own, in ~/.config]",
    is_flag=False,
    flag_value="",
)
@click.option(
    "--install-env",
    metavar="PATH",
    help="First create an environment with this tool in PATH, which all nodes see, and use it.",
    type=options.FOLDER,
)
@options.slurm
@options.as_json
def command(
    dest: Path,
    log_dir: Path,
    engine: str,
    wait_s: float,
    write_profile: str | None,
    install_env: Path | None,
    as_json: bool,
    **values: Any,
) -> int:
    """Check everything that a run needs: Slurm and its limits, folders, internet, token, clocks.

    With Slurm, a small job on the target partition checks the nodes too. Test files are removed;
    only --write-profile and --install-env create files. Exit code: 0 if nothing is wrong, else 3.
    """
    from msgspec import structs

    from jobs.model import Resources
    from orchestrator.cli import exit_codes, messages, settings
    from orchestrator.display import terminal
    from orchestrator.doctor import checks, node_environment
    from orchestrator.doctor.node_probe import CheckResult

    changes = options.slurm_changes(values)
    requested = override(Resources(), options.with_mounts(changes, dest, log_dir))
    request = checks.DoctorRequest(dest, log_dir, engine, requested, wait_s)
    look, found = terminal.stdout_style(), []

    def show(finding: CheckResult) -> None:
        found.append(finding)
        if not as_json:
            click.echo(checks.line(finding, look))

    if install_env is not None:
        made = node_environment.install(install_env.absolute())
        show(made)
        python = str(node_environment.python_of(install_env))
        if made.ok:
            request = replace(request, resources=structs.replace(request.resources, python=python))
    if write_profile is not None:
        request = checks.with_site_resources(request)
    for finding in checks.examine(request):
        show(finding)
    if write_profile is not None:
        file = os.path.expanduser(write_profile)  # noqa: PTH111  # no error without a home
        path = Path(file) if file else settings.user_file(os.environ)
        # A launch mounts the folders of its own run.
        own = structs.replace(
            request.resources, container_mounts=changes.get("container_mounts", ())
        )
        show(checks.write_profile(replace(request, resources=own), found, path))
    bad = any(finding.ok is False for finding in found)
    if as_json:
        messages.print_json({"schema": 1, "ok": not bad, "findings": found})
    return exit_codes.PREFLIGHT if bad else exit_codes.DONE
