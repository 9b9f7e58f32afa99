"""Futures of a run on a real Slurm: waited for in a later process, with and without accounting."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.cluster.slurm import PrivateSlurm

pytestmark = pytest.mark.slurm

COLLECT = """
from orchestrator import api
for future in api.find_run().futures():
    print(future.stage.value, future.result().outcome.value, future.exception())
"""


@pytest.fixture(params=["slurm", "slurm_plain"], ids=["with accounting", "without accounting"])
def shell(request: pytest.FixtureRequest, cli: Cli) -> Cli:
    slurm: PrivateSlurm = request.getfixturevalue(request.param)
    return cli.having(**slurm.env)


def test_a_later_process_waits_for_the_results(shell: Cli, shards: Path, tmp_path: Path) -> None:
    words = ("--engine", "slurm", "--yes", "--mem", "500M", "--time", "10", "--part-size", "1M")
    shell.run("launch", "--local-path", shards, "--dest", tmp_path / "data", *words)
    done = shell.program("-c", COLLECT).run()
    lines = [line.split() for line in done.out.splitlines()]
    assert [stage for stage, _, _ in lines][:1] == ["download"]
    assert [stage for stage, _, _ in lines][-1:] == ["finalize"]
    assert {tuple(rest) for _, *rest in lines} == {("ok", "None")}
    assert shell.status()["state"] == "done"
