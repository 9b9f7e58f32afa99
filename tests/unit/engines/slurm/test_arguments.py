"""The options that sbatch may get, in every accepted spelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec import structs

from jobs.errors import UsageError
from jobs.model import Resources
from orchestrator.engines.slurm import arguments
from orchestrator.engines.slurm.arguments import parse, parse_for_download


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
        ("-W", "--wait of this tool"),
        ("-Mother", "SLURM_CLUSTERS"),
        ("--mem-per-cpu=2G", "--mem is the memory of each task"),
        ("--mem-per-g 2G", "--mem-per-gpu"),
        ("nodes=2", "not an sbatch option"),
        ("--comment='x", "cannot be read"),
        ("--nice=1\n#SBATCH -N2", "control character"),
        (
            "--export=A,HF_TOKEN=hf_abc",
            "export HF_TOKEN in this shell and use --export=HF_TOKEN without the value",
        ),
        ("--export AWS_SECRET_KEY=abc", "would be stored in the batch script"),
    ],
)
@pytest.mark.parametrize("parser", [parse, parse_for_download])
def test_what_is_ours_to_set_is_refused_with_what_to_use(
    parser: Callable[[str], str], text: str, words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        parser(text)
    assert words in refused.value.message
    assert "abc" not in refused.value.message


@pytest.mark.parametrize("text", ["-pgpu", "--mem=8G", "-t 60", "-x n1", "--acc=me"])
def test_what_has_an_option_here_is_said_by_it_but_for_the_download_alone(text: str) -> None:
    with pytest.raises(UsageError, match="use this tool's own --"):
        parse(text)
    assert parse_for_download(text) == text


@pytest.mark.parametrize(
    ("args", "fields", "others"),
    [
        (("--nice=7", "--gres=net"), {}, ("--nice=7", "--gres=net")),
        (("--time=1-0", "--mem 8G"), {"time_min": 1440, "mem_mb": 8192}, ()),
        (("-t90 -c 4 --gres='a b'",), {"time_min": 90, "cpus": 4}, ("'--gres=a b'",)),
        (("--time-min=5", "-pio", "--partition=net"), {"partition": "net"}, ("--time-min=5",)),
    ],
)
def test_resources_of_the_download_job_are_read_from_its_arguments(
    args: tuple[str, ...], fields: dict[str, object], others: tuple[str, ...]
) -> None:
    assert arguments.resources_in(args) == (fields, others)
    own = structs.replace(Resources(), **fields)
    again, _ = arguments.resources_in(arguments.arguments_for(own, Resources()))
    assert structs.replace(Resources(), **again) == own


@pytest.mark.parametrize("text", ["--time=soon", "-c0", "--cpus-per-task", "--mem=x"])
def test_a_bad_value_for_the_download_job_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_for_download(text)


@pytest.mark.parametrize(
    "text",
    [
        "--nice=7",
        "-w n1",
        "--nodelist=n1",
        "--no-requeue",
        "--hold",
        "--exclusive",
        "--time-min=5",
        "--wait-all-nodes=1",
        "--gres=gpu:1 --comment='a b'",
        "--open-mode=truncate",
        "--export=NONE",
        "--export=HF_TOKEN,SEED=1,TOKENIZERS_PARALLELISM=false,HF_TOKEN_PATH=/a/b",
    ],
)
def test_everything_else_goes_to_sbatch_as_it_is(text: str) -> None:
    assert arguments.parse(text) == text


@pytest.mark.parametrize(
    ("args", "missing"),
    [
        pytest.param((), (), id="no word of it"),
        pytest.param(("--export=ALL",), (), id="all"),
        pytest.param(("--export=all,SEED=1",), (), id="all and more"),
        pytest.param(("--export=NONE",), ("HF_TOKEN", "https_proxy"), id="none"),
        pytest.param(("--nice=1", "--export nil"), ("HF_TOKEN", "https_proxy"), id="two words"),
        pytest.param(("--export=HF_TOKEN,SEED",), ("https_proxy",), id="a list"),
        pytest.param(("--export=https_proxy=x",), ("HF_TOKEN",), id="a list with a value"),
        pytest.param(("--export=NONE", "--export=ALL"), (), id="the last one counts"),
        pytest.param(("--export-file=env",), (), id="another option"),
    ],
)
def test_what_export_withholds_is_known(args: tuple[str, ...], missing: tuple[str, ...]) -> None:
    environ = {"HF_TOKEN": "hf_abc", "https_proxy": "http://proxy", "NETRC": ""}
    found = arguments.export_of(args).missing(arguments.DOWNLOAD_VARIABLES, environ)
    assert found == missing


def test_the_option_to_use_keeps_what_was_listed() -> None:
    export = arguments.export_of(["--export=NONE,SEED=1,A"])
    assert export.with_names(["HF_TOKEN"]) == "--export=SEED=…,A,HF_TOKEN"
    assert str(export) == "--export=NONE,SEED=…,A"  # a value may hold a password
