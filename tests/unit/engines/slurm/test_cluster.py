"""A Slurm is known by its name and its controllers, and asked by the way that leads to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from jobs.errors import EngineError
from jobs.model import Cluster, Resources, Stage, Task
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import EngineState, JobSpec, OtherClusterError
from orchestrator.engines.registry import cluster_after
from orchestrator.engines.slurm import cluster
from orchestrator.engines.slurm.cluster import Way, read_config
from orchestrator.engines.slurm.engine import SlurmEngine
from tests.support.cluster.slurm_tables import ACCOUNT_HEAD, EMPTY_QUEUE, QUEUE_HEAD

ALPHA = Cluster("alpha", ("head1:6817",))
BETA = Cluster("beta", ("head2:6817",))
TWIN = Cluster("alpha", ("head9:6817",))  # of another site

SHOWN = """\
Configuration data as of 2026-01-02T03:04:05
AccountingStorageHost   = db
ClusterName             = Alpha
SlurmctldHost[0]        = head1(10.0.0.1)
SlurmctldHost[1]        = head2
SlurmctldPort           = 6820-6823
SLURM_CONF              = /etc/slurm/slurm.conf
"""
WRITTEN = """\
# ClusterName=old
clustername=alpha   # where we are
SlurmctldHost=head1(10.0.0.1)
SlurmctldHost=head2
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (SHOWN, Cluster("alpha", ("head1(10.0.0.1):6820-6823", "head2:6820-6823"))),
        (WRITTEN, Cluster("alpha", ("head1(10.0.0.1):6817", "head2:6817"))),
        ("ClusterName=alpha\nControlMachine=head\n", Cluster("alpha")),
        ("slurm_load_ctl_conf error: Access denied\n", None),
        ("", None),
    ],
)
def test_name_and_controllers_are_read(text: str, found: Cluster | None) -> None:
    assert read_config(text) == found


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (ALPHA, ALPHA, True),
        (ALPHA, Cluster("alpha", ("backup:6817", "head1:6817")), True),
        (ALPHA, Cluster("alpha"), True),
        (ALPHA, TWIN, False),
        (ALPHA, Cluster("alpha", ("head1:7000",)), False),
        (ALPHA, BETA, False),
        (Cluster("alpha"), Cluster("beta"), False),
    ],
)
def test_clusters_are_distinguished_by_name_and_controllers(
    one: Cluster, other: Cluster, same: bool
) -> None:
    assert one.is_same(other) is other.is_same(one) is same


@pytest.mark.parametrize(
    ("reached", "env", "way"),
    [
        pytest.param({None: ALPHA}, "", Way(None), id="this shell's"),
        pytest.param({None: ALPHA}, "alpha", Way(None), id="the chosen one"),
        pytest.param({None: BETA, "": ALPHA}, "beta", Way(""), id="this machine's own"),
        pytest.param({None: BETA, "alpha": ALPHA}, "", Way("alpha"), id="by name"),
        pytest.param({"": BETA, "alpha": ALPHA}, "b,alpha", Way("alpha"), id="one of several"),
        pytest.param({"alpha": ALPHA}, "", Way("alpha"), id="by name, with none here"),
    ],
)
def test_the_way_to_a_cluster(
    monkeypatch: pytest.MonkeyPatch, reached: Mapping[str | None, Cluster], env: str, way: Way
) -> None:
    monkeypatch.setattr(cluster, "identify", reached.get)
    monkeypatch.setenv("SLURM_CLUSTERS", env)
    assert cluster.way_to(ALPHA) == way


@pytest.mark.parametrize(
    ("reached", "at", "words"),
    [
        pytest.param({None: BETA}, "alpha", "alpha (controller head1:6817).*beta", id="another"),
        pytest.param({None: BETA, "alpha": TWIN}, "alpha", "cluster beta", id="a namesake"),
        pytest.param({None: TWIN, "alpha": TWIN}, None, "head1:6817.*head9:6817", id="a twin"),
        pytest.param(
            {},
            None,
            "it is unknown which cluster this shell uses, because scontrol does not respond",
            id="unknown",
        ),
    ],
)
def test_a_way_that_may_lead_elsewhere_is_in_doubt_and_both_are_named(
    monkeypatch: pytest.MonkeyPatch, reached: Mapping[str | None, Cluster], at: str, words: str
) -> None:
    monkeypatch.setattr(cluster, "identify", reached.get)
    monkeypatch.delenv("SLURM_CLUSTERS", raising=False)
    way = cluster.way_to(ALPHA)
    assert way.at == at
    first, _, second = words.partition(".*")
    assert first in way.doubt and second in way.doubt.partition(first)[2]
    assert "login node of alpha" in way.doubt


# A shell's commands, by what they do      -------------------------------------------------------

Shell = Callable[..., None]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Makes a PATH of commands that run a line of shell each; ``{log}`` is their log of calls."""

    def make(**commands: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, line in commands.items():
            path = folder / name
            path.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{line}\n')
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
        monkeypatch.delenv("SLURM_CLUSTERS", raising=False)

    return make


def calls(tmp_path: Path, name: str) -> list[str]:
    lines = (tmp_path / "calls").read_text().splitlines()
    return [line for line in lines if line.startswith(f"{name} ")]


def controller(cluster: Cluster) -> str:
    host, _, port = cluster.controllers[0].partition(":")
    config = f"ClusterName={cluster.name}\\nSlurmctldHost[0]={host}\\nSlurmctldPort={port}\\n"
    return f"""\
case "$*" in
  *-M*) echo "error: no such cluster" >&2; exit 1;;
  *ping*) echo "Slurmctld(primary) at {host} is UP";;
  *config*) printf '{config}';;
esac"""


def row(run_id: str, job_id: str = "7", state: str = "RUNNING", name: str = "lab") -> str:
    fields = (job_id, state, "None", "n1", "0", "0", "0", "N/A", "N/A", "N/A", "(null)")
    return f"{QUEUE_HEAD}\n" + "|".join([*fields, f"/logs/{run_id}", name, ""])


def account(run_id: str, job_id: str = "7", state: str = "COMPLETED") -> str:
    fields = (
        job_id,
        state,
        "None",
        "n1",
        "0:0",
        "0:0",
        *["N/A"] * 3,
        "",
        "",
        f"/logs/{run_id}",
        "lab",
    )
    return f"{ACCOUNT_HEAD}\n" + "|".join(fields)


RUN = RunFolder(Path("/logs/20260102-030405-abcdef"))


def test_the_answer_of_another_cluster_is_neither_an_end_nor_a_success(shell: Shell) -> None:
    shell(scontrol=controller(BETA), squeue=EMPTY_QUEUE, sacct="exit 1", scancel="true")
    engine = SlurmEngine(ALPHA)
    with pytest.raises(OtherClusterError, match=r"alpha .*beta"):
        engine.poll(RUN, ["7"])
    with pytest.raises(OtherClusterError):
        engine.cancel(RUN, ["7"])
    with pytest.raises(OtherClusterError):
        engine.check(RUN)
    with pytest.raises(OtherClusterError):
        engine.reach()


def test_a_job_of_the_run_in_the_answer_settles_the_doubt(shell: Shell) -> None:
    # As where a cluster got another controller.
    shell(scontrol=controller(TWIN), squeue=f"echo '{row(RUN.run_id)}'", sacct="exit 1")
    states = SlurmEngine(ALPHA).poll(RUN, ["7", "8"])
    assert [states[each].state for each in ("7", "8")] == [EngineState.RUNNING, EngineState.ENDED]
    SlurmEngine(ALPHA).check(RUN)


@pytest.mark.parametrize("squeue", [EMPTY_QUEUE, "exit 1"])
def test_accounting_that_knows_all_jobs_settles_the_doubt_too(
    shell: Shell, tmp_path: Path, squeue: str
) -> None:
    shell(scontrol=controller(BETA), squeue=squeue, sacct=f"echo '{account(RUN.run_id)}'")
    assert SlurmEngine(ALPHA).poll(RUN, ["7"])["7"].state is EngineState.ENDED
    assert calls(tmp_path, "sacct")[-1].startswith("sacct -M alpha ")
    with pytest.raises(OtherClusterError):
        SlurmEngine(ALPHA).poll(RUN, ["7", "8"])


@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
def test_a_job_that_slurmctld_has_lost_has_ended_whatever_accounting_says(
    shell: Shell, state: str
) -> None:
    sacct = f"echo '{account(RUN.run_id, state=state)}'"
    shell(scontrol=controller(ALPHA), squeue=EMPTY_QUEUE, sacct=sacct)
    found = SlurmEngine(ALPHA).poll(RUN, ["7"])["7"]
    assert found.state is EngineState.ENDED
    assert found.raw == f"{state} in accounting, unknown to slurmctld"


def test_without_a_known_cluster_what_is_not_in_the_answer_has_ended(shell: Shell) -> None:
    shell(squeue=EMPTY_QUEUE, sacct="exit 1", scontrol="exit 1")
    assert SlurmEngine().poll(RUN, ["7"])["7"].state is EngineState.ENDED
    assert SlurmEngine().cluster is None


def test_one_look_is_one_squeue_and_the_cluster_is_asked_for_its_name_once(
    shell: Shell, tmp_path: Path
) -> None:
    shell(scontrol=controller(ALPHA), squeue=EMPTY_QUEUE, sacct="exit 1")
    for _ in range(3):
        SlurmEngine(ALPHA).poll(RUN, ["7", "8_1", "8_2"])
    assert len(calls(tmp_path, "squeue")) == 3
    assert len(calls(tmp_path, "scontrol")) == 2  # ping, show config


def test_a_cancel_that_ends_nothing_is_no_success(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.engines.slurm.engine.END_S", (0.01, 0.01))
    shell(scontrol=controller(ALPHA), squeue=f"echo '{row(RUN.run_id)}'", scancel="true")
    with pytest.raises(EngineError, match="asked to cancel 7, but they are still in its queue"):
        SlurmEngine(ALPHA).cancel(RUN, ["7"])


def test_what_is_completing_after_a_cancel_has_ended(shell: Shell, tmp_path: Path) -> None:
    running, completing = row(RUN.run_id), row(RUN.run_id, state="COMPLETING")
    shell(
        scontrol=controller(ALPHA),
        scancel=f"touch {tmp_path}/cancelled",
        squeue=f"[ -e {tmp_path}/cancelled ] && echo '{completing}' || echo '{running}'",
    )
    SlurmEngine(ALPHA).cancel(RUN, ["7"])
    assert calls(tmp_path, "scancel") == ["scancel 7"]


@pytest.mark.parametrize(
    ("env", "reachable", "next_"),
    [
        pytest.param("", True, ALPHA, id="where the last went"),
        pytest.param("alpha", True, ALPHA, id="chosen again"),
        pytest.param("beta", True, None, id="another is chosen"),
        pytest.param("", False, None, id="out of reach"),
    ],
)
def test_the_next_jobs_go_where_the_last_went_unless_the_user_chooses(
    monkeypatch: pytest.MonkeyPatch, env: str, reachable: bool, next_: Cluster | None
) -> None:
    reached = {None: BETA, "alpha": ALPHA} if reachable else {None: BETA}
    monkeypatch.setattr(cluster, "identify", reached.get)
    monkeypatch.setenv("SLURM_CLUSTERS", env)
    assert cluster_after(ALPHA) == next_
    assert cluster_after(None) is None


@pytest.mark.usefixtures("default_sigint")
def test_an_interrupt_while_jobs_are_cancelled_names_them_and_the_command(
    shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    rows = f"echo '{row(RUN.run_id)}'"
    shell(scontrol=controller(ALPHA), squeue=rows, scancel="kill -INT $PPID; sleep 0.1")
    with pytest.raises(KeyboardInterrupt):
        SlurmEngine(ALPHA).cancel(RUN, ["7"], ["lab a"])
    assert "7, lab a may still be in Slurm's queue" in caplog.text
    assert "run: scancel 7; scancel '--name=lab a'" in caplog.text


def test_the_room_for_jobs_is_that_of_the_runs_own_cluster(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "identify", {None: BETA, "alpha": ALPHA}.get)
    refused = "echo QOSMaxSubmitJobPerUserLimit >&2; exit 1"
    shell(scontrol="true", sbatch=f'[ "$1 $2" = "-M alpha" ] || {{ {refused}; }}')
    tasks = [Task(Stage.EXTRACT, number, ()) for number in range(3)]
    spec = JobSpec("lab", Stage.EXTRACT, 1, str(RUN.path), tasks, Resources(), 3, print)
    assert SlurmEngine(ALPHA).room(spec, 3) == 3
