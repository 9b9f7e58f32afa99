"""What sbatch may be told, in every spelling that it takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs.errors import UsageError
from orchestrator import sbatchargs
from orchestrator.sbatchargs import parse, parse_for_download


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-N2", "--nodes cannot be set here; each task is one process on one node"),
        ("-N 2", "--tasks and --parallel"),
        ("--nodes=2", "--nodes"),
        ("--nodes 2-4", "--nodes"),
        ("-n4", "--ntasks"),
        ("--ntasks-per-node=2", "--ntasks-per-node"),
        ("-HN2", "--nodes"),
        ("--ar=0-3", "--array"),
        ("-a0-3", "--array"),
        ("--nice=5 -d afterok:1", "--dependency"),
        ("-o x", "--log-dir"),
        ("--j=x", "--job-name"),
        ("-W", "our own --wait"),
        ("-Mother", "SLURM_CLUSTERS"),
        ("nodes=2", "no option"),
        ("--comment='x", "cannot be read"),
        ("--nice=1\n#SBATCH -N2", "control character"),
    ],
)
@pytest.mark.parametrize("parser", [parse, parse_for_download])
def test_what_is_ours_to_set_is_refused_with_what_to_use(
    parser: Callable[[str], str], text: str, words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        parser(text)
    assert words in refused.value.message


@pytest.mark.parametrize("text", ["-pgpu", "--mem=8G", "-t 60", "-x n1", "--acc=me"])
def test_what_has_an_option_here_is_said_by_it_but_for_the_download_alone(text: str) -> None:
    with pytest.raises(UsageError, match="use our own --"):
        parse(text)
    assert parse_for_download(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "--nice=7",
        "-w n1",
        "--nodelist=n1",
        "--no-requeue",
        "--hold",
        "--exclusive",
        "--mem-per-cpu=2G",
        "--time-min=5",
        "--wait-all-nodes=1",
        "--gres=gpu:1 --comment='a b'",
        "--open-mode=truncate",
    ],
)
def test_everything_else_goes_to_sbatch_as_it_is(text: str) -> None:
    assert sbatchargs.parse(text) == text
