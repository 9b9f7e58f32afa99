"""The console script, and ``python -m orchestrator``: Ctrl-C is quiet from the first import on."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line; returns the exit code (see ``orchestrator.cli.exit_codes``)."""
    try:
        from orchestrator.cli import main as command_line

        return command_line()
    except KeyboardInterrupt:
        # While modules are imported, which takes seconds on a slow file system, or a second one
        # while the command line reports the first.
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to be interrupted


if __name__ == "__main__":
    sys.exit(main())
