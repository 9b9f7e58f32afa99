"""The command line: imports commands when they are called, and handles all errors.

Each command has a module of its name: ``launch``, ``status``, ``resume``, ``update``, ``cancel``,
``logs``, ``runs``, ``report``, ``verify``, ``doctor``, ``completion``. ``options`` are those that
several share, ``settings`` are defaults from files and the environment, and
``request_from_options`` makes the request of a launch. ``messages`` is the output of launch, update
and resume, ``progress`` shows a run while it is running, ``exit_codes`` maps causes to exit codes.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import click

from jobs import __version__

if TYPE_CHECKING:
    from jobs.errors import OrchestrateError

# Short help by name, so that the help page imports no command.
COMMANDS = {
    "launch": "Download, extract, verify and publish a dataset.",
    "status": "Show the state of a run.",
    "resume": "Do the remaining work of a run.",
    "update": "Update a published dataset to the latest state of its source.",
    "cancel": "Cancel all jobs of a run; `resume` can continue it.",
    "logs": "Show the log of a task, of a shard, or of failed tasks.",
    "runs": "List the runs in the log folder.",
    "report": "Write a run's report as one HTML page.",
    "verify": "Check a published dataset against its receipt.",
    "doctor": "Check this machine or cluster before a long run.",
    "completion": "Print the completion script for a shell.",
}
_ONLY_SHOW = ("status", "logs", "runs", "doctor", "completion")

EXAMPLES = """\b
Examples:
  websight-orchestrate launch --hf-repo org/WebSight-v2 --dest /scratch/websight
  websight-orchestrate status --watch
  websight-orchestrate resume"""


_FREE_SPACE = (
    "free some space on its file system, then run `websight-orchestrate resume` (or launch "
    "again if `runs` lists no run)"
)


@dataclass
class ErrorOutput:
    """How a command reports errors; Click passes it as ``ctx.obj``."""

    as_json: bool

    def report(self, kind: str, message: str, code: int) -> int:
        """Return the exit ``code``, after printing the error as a JSON object if requested."""
        if self.as_json:
            error = {"kind": kind, "message": message, "exit_code": code}
            try:
                click.echo(json.dumps({"schema": 1, "error": error}))
            except OSError:  # standard output is closed or full: the exit code is enough
                sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return code


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"orchestrator.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        command.short_help = COMMANDS[cmd_name]  # for shell completion
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.command(
    cls=LazyGroup,
    name="websight-orchestrate",
    epilog=EXAMPLES,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
)
@click.version_option(__version__, prog_name="websight-orchestrate")
@click.option("--profile", help="Use [profiles.NAME] of the settings.", metavar="NAME")
@click.pass_context
def cli(ctx: click.Context, profile: str | None) -> None:
    """Bring a dataset published as archives to this cluster: download it, extract it in parallel,
    verify it, and publish it completely or not at all."""
    from orchestrator.cli import settings

    ctx.default_map = settings.default_map(profile)
    ctx.color = True  # we decide about colours, because Click ignores FORCE_COLOR


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see ``orchestrator.cli.exit_codes``).

    Errors are printed to standard error, with ``--json`` to standard output as well.
    """
    from jobs.errors import OrchestrateError

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell (`>&-`)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        # As standard error: a locale such as ISO-8859-1 lacks some of our characters.
        sys.stdout.reconfigure(errors="backslashreplace")
    words, stdout = sys.argv[1:] if argv is None else list(argv), sys.stdout
    # Usage errors are reported as the command line requests; settings can also request JSON.
    errors = ErrorOutput(as_json="--json" in words)
    try:
        result: Any = cli.main(
            args=words, prog_name="websight-orchestrate", standalone_mode=False, obj=errors
        )
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        if isinstance(error, click.BadParameter):
            from orchestrator.cli import settings

            error = settings.with_origin(error)
        error.show()
        return errors.report("usage", error.format_message(), error.exit_code)
    except SystemExit:
        # Click replaces a stream whose reader has ended, as in `| head`, which is no error of what
        # only shows something.
        command = next((word for word in words if word in COMMANDS), None)
        shows = command in _ONLY_SHOW or not {"-h", "--help", "--show-config"}.isdisjoint(words)
        if shows and sys.stdout is not stdout:
            return 0
        raise
    except (click.Abort, KeyboardInterrupt):
        from orchestrator.cli import exit_codes

        click.echo("interrupted", err=True)
        return errors.report("interrupted", "interrupted", exit_codes.INTERRUPTED)
    except (OrchestrateError, OSError, MemoryError, RuntimeError, UnicodeEncodeError) as error:
        from orchestrator.cli import exit_codes  # imports modules that a help page does not need

        ours = _as_ours(error)
        if ours is None:
            raise
        click.echo(f"error: {ours.message}", err=True)
        return errors.report(ours.cause.value, ours.message, exit_codes.of_cause(ours.cause))
    return result if isinstance(result, int) else 0


def _as_ours(error: Exception) -> OrchestrateError | None:
    """An error of ours, of the system, or from a limit of this process; None for any other."""
    from jobs import rlimits
    from jobs.errors import (
        Cause,
        OrchestrateError,
        from_os_error,
        path_of,
        with_message,
        with_step,
    )

    if isinstance(error, OrchestrateError):
        return with_step(error, "try again")
    if isinstance(error, OSError):
        path = path_of(error)
        failure = from_os_error(error, doing=path or _nameless(error))
        if path and failure.cause in (Cause.DISK_FULL, Cause.QUOTA):
            return with_message(failure, f"writing {failure.message}; {_FREE_SPACE}")
        return with_step(failure, "try again") if path else failure
    if str(error).startswith("Symlink loop from "):  # by ``Path.resolve`` before Python 3.13
        where = str(error).removeprefix("Symlink loop from ")
        fact = "its symbolic links form a loop; correct the path, or remove a link"
        return OrchestrateError(f"{where}: {fact}", cause=Cause.USAGE)
    if isinstance(error, UnicodeEncodeError) and error.encoding.startswith("utf"):
        # Of a path that is written as JSON, such as the current folder's.
        fact = f"{error.object!r} is not UTF-8; rename it, or give a link to it"
        return OrchestrateError(fact, cause=Cause.USAGE)
    limit = rlimits.reached(error)
    return None if limit is None else OrchestrateError(limit, cause=Cause.LIMIT)


def _nameless(error: OSError) -> str:
    """The probable operation of an error without a file name: all our files have names."""
    if isinstance(error, FileNotFoundError):
        return "the current folder"  # which was removed
    return "writing to standard output" if error.errno == errno.ENOSPC else "reading or writing"
