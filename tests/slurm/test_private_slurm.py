"""The private Slurm of the tests behaves as a Slurm, and is gone afterwards."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cluster.slurm import PrivateSlurm, available

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(available() is not None, reason=str(available())),
]


def test_an_array_runs_on_several_nodes(slurm: PrivateSlurm, tmp_path: Path) -> None:
    slurm.sbatch(f"echo $SLURMD_NODENAME > {tmp_path}/$SLURM_ARRAY_TASK_ID", "--array=0-7")
    slurm.wait_for(lambda: len(list(tmp_path.iterdir())) == 8)
    slurm.wait_for(lambda: all(path.read_text() for path in tmp_path.iterdir()))
    assert len({path.read_text() for path in tmp_path.iterdir()}) > 1


def test_accounting_knows_a_finished_job(slurm: PrivateSlurm) -> None:
    job_id = slurm.sbatch("exit 3")

    def row() -> str:
        return slurm.run("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "State,ExitCode").stdout

    slurm.wait_for(lambda: row().strip() == "FAILED|3:0")


def test_without_accounting_sacct_says_so(slurm_plain: PrivateSlurm) -> None:
    done = slurm_plain.run("sacct")
    assert done.returncode == 1
    assert "accounting storage is disabled" in done.stderr


def test_nothing_is_left_of_it_not_even_a_job_that_hides(tmp_path: Path) -> None:
    with PrivateSlurm.start(nodes=1, accounting=False) as slurm:
        slurm.sbatch(f"setsid sleep 300 & touch {tmp_path}/on; sleep 300")
        slurm.wait_for((tmp_path / "on").exists)
        pids = slurm.pids()
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
    assert any(b"sleep" in command for command in commands)
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert not slurm.layout.folder.exists()


def test_several_run_side_by_side(slurm: PrivateSlurm) -> None:
    with PrivateSlurm.start(nodes=1, accounting=False) as other:
        job_id = other.sbatch("sleep 300", "--job-name=mine-alone")
        assert other.job(job_id)["JobName"] == "mine-alone"
        assert "mine-alone" not in {row.name for row in slurm.squeue()}


@pytest.mark.faults
def test_a_power_cut_is_a_node_failure_and_the_job_runs_again(tmp_path: Path) -> None:
    with PrivateSlurm.start(nodes=2, accounting=False, slurmd_timeout=3) as slurm:
        starts = tmp_path / "starts"
        job_id = slurm.sbatch(f"echo $SLURMD_NODENAME >> {starts}; sleep 300")
        slurm.wait_for(lambda: starts.exists() and starts.read_text())
        node = starts.read_text().strip()
        slurm.power_cut(node)
        slurm.wait_for(lambda: slurm.job(job_id).get("Restarts") == "1", 60)
        slurm.restart_node(node)
        assert slurm.run("sinfo", "-h", "-n", node, "-o", "%T").stdout.split()[0] == "idle"


@pytest.mark.faults
@pytest.mark.parametrize("abruptly", [False, True])
def test_the_controller_comes_back_with_its_jobs(abruptly: bool) -> None:
    with PrivateSlurm.start(nodes=1, accounting=False) as slurm:
        job_id = slurm.sbatch("sleep 300")
        slurm.wait_for(lambda: slurm.job(job_id).get("JobState") == "RUNNING")
        # What slurmctld has not saved yet is lost with it: a change makes it save again.
        saved = slurm.layout.folder / "state/job_state"
        before = time.time()
        slurm.run("scontrol", "update", f"JobId={job_id}", "Comment=saved", check=True)
        slurm.wait_for(lambda: saved.exists() and saved.stat().st_mtime > before)
        slurm.stop_slurmctld(abruptly=abruptly)
        assert " is DOWN" in slurm.run("scontrol", "ping").stdout
        slurm.start_slurmctld()
        slurm.wait_for(lambda: slurm.job(job_id).get("JobState") == "RUNNING")


@pytest.mark.faults
def test_a_database_that_starts_leaves_the_temporary_tables_of_another_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "#sql-temptable-1-2-3.MAI"
    table.touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with PrivateSlurm.start(nodes=1):
        assert table.exists()


def test_accounting_can_go_and_come_back() -> None:
    with PrivateSlurm.start(nodes=1) as slurm:
        slurm.stop_slurmdbd()
        assert slurm.run("sacct").returncode == 1
        job_id = slurm.sbatch("true")
        slurm.start_slurmdbd()
        slurm.wait_for(lambda: job_id in slurm.run("sacct", "-X", "-n", "-o", "JobID").stdout, 60)


NO_CGROUP = available(cgroup=True)


@pytest.mark.skipif(NO_CGROUP is not None, reason=str(NO_CGROUP))
def test_with_control_groups_a_greedy_job_runs_out_of_memory() -> None:
    with PrivateSlurm.start(nodes=1, accounting=False, cgroup=True) as slurm:
        greedy = f"{sys.executable} -c 'bytearray(300 << 20)'; exit 0"
        job_id = slurm.sbatch(greedy, "--mem=50")
        slurm.wait_for(lambda: slurm.job(job_id).get("JobState") == "OUT_OF_MEMORY")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_can_start_it() -> None:
    program = (
        "from tests.support.cluster.slurm import PrivateSlurm\n"
        "with PrivateSlurm.start(nodes=1) as slurm:\n"
        "    job = slurm.sbatch('true')\n"
        "    slurm.wait_for(lambda: slurm.job(job).get('JobState') == 'COMPLETED')\n"
        "    print('completed')\n"
    )
    checkout = Path(__file__).parents[2]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(checkout), "HOME": "/nonexistent"}

    def as_nobody(*argv: str) -> subprocess.CompletedProcess[str]:
        nobody = pwd.getpwnam("nobody")
        return subprocess.run(
            argv,
            cwd="/",
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            env=environment,
            capture_output=True,
            text=True,
        )

    # The environment of the tests may lie where only root can read; the support code needs
    # nothing but a Python.
    python = next((p for p in (sys.executable, "/usr/bin/python3") if _others_may_run(p)), None)
    if python is None or as_nobody("ls", str(checkout)).returncode:
        pytest.skip("Python or the checkout lies where an ordinary user cannot read")
    done = as_nobody(python, "-B", "-c", program)
    assert done.stdout == "completed\n", done.stderr


def _others_may_run(program: str) -> bool:
    path = Path(program)
    if not path.exists():
        return False
    path = path.resolve()
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))
