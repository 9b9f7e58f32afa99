"""Run `websight-orchestrate` as a user does: in a process of its own, in a folder of its own.

That process may be a fork of one that has imported everything, which takes a tenth of the CPU time
of a new interpreter (`faults/forkshop.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.support.cluster.slurm import clean_environment

# Variables that an interpreter reads when it starts.
_READ_EARLY = ("PYTHON", "LD_", "LC_", "LANG", "TZ")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    rc: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Cli:
    """Somebody's shell: a working folder (its `logs/` gets the runs) and an environment."""

    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    """What is added to an environment without Slurm's and the Hub's variables."""
    under: tuple[str, ...] = ()
    """A command that the command line is run by, such as `salloc`."""
    entry: tuple[str, ...] = ("-m", "orchestrator")
    """What Python runs."""
    forked: Callable[[Cli, Sequence[str], float], Done | None] | None = None
    """Runs words in a fork within so many seconds; None if it is busy."""

    @property
    def code(self) -> str | None:
        """The text that Python runs; None if it is a module."""
        return self.entry[1] if self.entry[0] == "-c" else None

    def having(self, **env: str) -> Cli:
        """The same shell with more in its environment."""
        return replace(self, env={**self.env, **env})

    def program(self, *entry: str) -> Cli:
        """The same shell, but Python runs that."""
        return replace(self, entry=entry)

    def hasty(self) -> Cli:
        """The same shell, whose command line waits for nothing for long."""
        return self.program(
            "-c",
            "from orchestrator.engines.slurm import client\n"
            "from orchestrator.engines.slurm.engine import SlurmEngine\n"
            "from orchestrator.inspection import state\n"
            "client.REACH_S = (0.1, 0.2)\n"
            "SlurmEngine.__init__.__kwdefaults__['back_off_s'] = (0.1, 0.2)\n"
            "state.LATE_S = 2.0\n"
            "from orchestrator.cli import main\n"
            "raise SystemExit(main())\n",
        )

    def run(self, *words: str | Path, rc: int | None = 0, timeout: float = 90) -> Done:
        """Run to the end; `rc` is the exit code that it must have (None: any)."""
        done = self._in_a_fork(words, timeout) or self._in_an_interpreter(words, timeout)
        said = f"$ {' '.join(map(str, words))}\n{done.out}\n{done.err}"
        assert rc is None or done.rc == rc, f"exit code {done.rc}, not {rc}\n{said}"
        return done

    def _in_a_fork(self, words: Sequence[str | Path], timeout: float) -> Done | None:
        early = any(name.startswith(_READ_EARLY) for name in self.env)
        other = self.entry != Cli.entry and self.code is None
        if self.forked is None or self.under or other or early:
            return None
        return self.forked(self, [str(word) for word in words], timeout)

    def _in_an_interpreter(self, words: tuple[str | Path, ...], timeout: float) -> Done:
        done = subprocess.run(
            self._argv(words),
            cwd=self.cwd,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start it and go on; it leads a process group of its own."""
        return subprocess.Popen(
            self._argv(words),
            cwd=self.cwd,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def status(self, *words: str | Path) -> Any:
        """`status --json`, whatever the exit code."""
        return self.run("status", *words, "--json", rc=None).json()

    def runs(self) -> list[Path]:
        """The run folders below `logs/`, the oldest first."""
        logs = self.cwd / "logs"
        found = [path for path in logs.iterdir() if path.is_dir()] if logs.is_dir() else []
        return sorted(found, key=lambda path: path.stat().st_ctime_ns)

    def _argv(self, words: tuple[str | Path, ...]) -> list[str]:
        return [*self.under, sys.executable, *self.entry, *map(str, words)]

    def environment(self) -> dict[str, str]:
        """What its commands find in their environment."""
        own = {
            name: value
            for name, value in clean_environment().items()
            if not name.startswith(("HF_", "HUGGING", "COVERAGE", "PYTEST_"))
        }
        home = self.cwd / "home"
        home.mkdir(exist_ok=True)
        own |= {"HOME": str(home), "COLUMNS": "120", "NO_PROXY": "127.0.0.1", "PYTHONWARNINGS": ""}
        return own | dict(self.env)


def under_limit(cli: Cli, amount: str) -> Cli:
    """The same shell after `ulimit -S AMOUNT`."""
    shell = ("sh", "-c", f'ulimit -S {amount}; exec "$@"', "sh")
    # Python would keep what it wrote of its compiled modules, cut at the limit.
    return replace(cli.having(PYTHONDONTWRITEBYTECODE="1"), under=shell)
