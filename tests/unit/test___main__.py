"""The console script starts the process of local tasks before it imports the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator import __main__, cli
from orchestrator.engines.local import starter_process

FILES, LINKS = "jobs.sources.local", "jobs.transfer.scheduler"


@pytest.mark.parametrize(
    ("words", "has_slurm", "started"),
    [
        ("launch --local-path a.tar", False, [FILES]),
        ("launch --local-path=a.tar --engine=local", True, [FILES]),
        ("launch --url http://a/b.tar --engine local", True, [LINKS]),
        ("--profile big launch --hf-repo a/b", False, [LINKS]),
        ("launch --hf-repo a/b", True, None),
        ("launch --hf-repo a/b --engine slurm", False, None),
        ("launch --hf-repo a/b --dry-run", False, None),
        ("launch --help", False, None),
        ("status", False, None),
    ],
)
def test_it_is_started_for_a_launch_that_probably_runs_on_this_machine(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: str,
    has_slurm: bool,
    started: list[str] | None,
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path if has_slurm else tmp_path / "none"))
    running: list[Sequence[str]] = []

    @contextmanager
    def ahead(modules: Sequence[str]) -> Iterator[None]:
        running.append(modules)
        yield
        running.clear()

    seen: list[Sequence[str]] = []

    def command_line() -> int:
        seen.extend(running)
        return 7

    monkeypatch.setattr(starter_process, "started_ahead", ahead)
    monkeypatch.setattr(cli, "main", command_line)
    monkeypatch.setattr("sys.argv", ["websight-orchestrate", *words.split()])
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    assert __main__.main() == 7
    assert seen == ([] if started is None else [started]) and not running
