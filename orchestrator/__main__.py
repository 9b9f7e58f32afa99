"""The console script, and ``python -m orchestrator``: Ctrl-C is quiet from the first import on."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from orchestrator.engines.local import starter_process

_STARTS_NOTHING = {"-h", "--help", "--dry-run", "--show-config"}


def main() -> int:
    """Run the command line; returns the exit code (see ``orchestrator.cli.exit_codes``)."""
    try:
        with _task_starter(sys.argv[1:]):
            from orchestrator.cli import main as command_line

            return command_line()
    except KeyboardInterrupt:
        # While modules are imported, which takes seconds on a slow file system, or a second one
        # while the command line reports the first.
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to be interrupted


def _task_starter(words: Sequence[str]) -> AbstractContextManager[None]:
    """The process that starts tasks, for a `launch` that probably runs on this machine.

    Options are not parsed yet: if it runs elsewhere, the process is ended.
    """
    if "launch" not in words[:3] or not _STARTS_NOTHING.isdisjoint(words):
        return nullcontext()
    engine = _value_of("--engine", words)
    if engine != "local" and (engine is not None or shutil.which("sbatch") is not None):
        return nullcontext()
    is_local = _value_of("--local-path", words) is not None
    return starter_process.started_ahead(
        ["jobs.sources.local" if is_local else "jobs.transfer.scheduler"]
    )


def _value_of(option: str, words: Sequence[str]) -> str | None:
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else "".join(words[number + 1 : number + 2])
    return None


if __name__ == "__main__":
    sys.exit(main())
