"""The Slurm engine when Slurm is slow, refuses, forgets or is wrong, on real Slurms."""

from __future__ import annotations

import getpass
import os
import pickle
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec import structs

from examples import samples
from jobs.errors import Cause, EngineError
from jobs.model import Resources, Stage, Task
from jobs.storage.run_folder import RunFolder
from orchestrator.engines.base import Dependency, EngineState, JobSpec, SiteLimits, TaskState
from orchestrator.engines.registry import EngineChoice, choose_engine, engine_named
from orchestrator.engines.slurm import client
from orchestrator.engines.slurm.engine import SlurmEngine
from tests.support.cli import Cli
from tests.support.cluster import payload
from tests.support.cluster.slurm import PrivateSlurm, available, skip_unless_available
from tests.support.cluster.slurm_tables import EMPTY_QUEUE

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
SECRET = "hf_never_on_disk"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    # A job is found again by its name: no two runs have one id.
    path = tmp_path / f"20260102-030405-{secrets.token_hex(3)}"
    path.mkdir(mode=0o700)
    return RunFolder(path)


def client_of(slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> SlurmEngine:
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    return SlurmEngine(back_off_s=(0.1, 0.2, 0.4))


@pytest.fixture
def engine(slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> SlurmEngine:
    return client_of(slurm, monkeypatch)


@pytest.fixture
def plain(slurm_plain: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> SlurmEngine:
    return client_of(slurm_plain, monkeypatch)


@pytest.fixture
def wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a shell script ahead of a Slurm command; ``$REAL`` is that command in it.

    Gives the log that holds a line for each call.
    """

    def put(name: str, body: str) -> Path:
        real = next(
            str(Path(part) / name)
            for part in os.environ["PATH"].split(":")
            if (Path(part) / name).exists()
        )
        log = tmp_path / f"{name}.log"
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/bash\nREAL={real}\nLOG={log}\necho "$*" >> $LOG\n{body}\n')
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        return log

    return put


def spec(
    folder: RunFolder,
    count: int = 1,
    *,
    stage: Stage = Stage.EXTRACT,
    resources: Resources | None = None,
    parallel: int = 8,
    then: Callable[[str, int], None] | None = None,
) -> JobSpec:
    return JobSpec(
        name=f"websight-{folder.run_id}-0001-{stage.value}",
        stage=stage,
        attempt=1,
        run_dir=str(folder.path),
        tasks=[Task(stage, number, (f"item{number}",)) for number in range(count)],
        resources=resources or Resources(time_min=5, cpus=1, mem_mb=100),
        parallel=parallel,
        then=then,
        call=payload.run,
    )


def one(engine: SlurmEngine, folder: RunFolder, job_id: str) -> TaskState:
    return engine.poll(folder, [job_id])[job_id]


def names(slurm: PrivateSlurm) -> list[str]:
    return [row.name for row in slurm.squeue()]


# What is asked for ------------------------------------------------------------------------------

EVERYTHING = Resources(
    time_min=90,
    cpus=3,
    mem_mb=500,
    partition="main,high",
    account="it's",
    qos="normal",
    constraint="a&b",
    exclude="n3",
    reservation="night",
    mail_type="END",
    mail_user="me@example.org",
    sbatch_args=("--nice=7", "-w n1"),
    setup=("module load python", "echo 'ready'"),
)


def test_the_script_asks_for_all_that_was_asked_for(engine: SlurmEngine, folder: RunFolder) -> None:
    job = spec(folder, 3, resources=EVERYTHING, parallel=2)
    lines = engine.script(job, Dependency("afterok", ("4242", "4243"))).split("\n")
    for line in (
        "#SBATCH --array=0-2%2",
        "#SBATCH --time=90",
        "#SBATCH --cpus-per-task=3",
        "#SBATCH --mem=500M",
        "#SBATCH --partition=main,high",
        "#SBATCH --account='it'\"'\"'s'",
        "#SBATCH --qos=normal",
        "#SBATCH --constraint='a&b'",
        "#SBATCH --exclude=n3",
        "#SBATCH --reservation=night",
        "#SBATCH --mail-type=END",
        "#SBATCH --mail-user=me@example.org",
        "#SBATCH --nice=7",
        "#SBATCH -w n1",
        "#SBATCH --dependency=afterok:4242:4243",
        "#SBATCH --kill-on-invalid-dep=yes",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@90",
        f"#SBATCH --chdir={folder.path}",
        f"#SBATCH --job-name=websight-{folder.run_id}-0001-extract",
        "module load python",
        "echo 'ready'",
    ):
        assert line in lines, line
    assert not any("wckey" in line for line in lines)


@pytest.mark.parametrize(
    ("time_min", "signal"), [(1, "CONT"), (3, "CONT"), (4, "USR2"), (0, "USR2")]
)
def test_no_signal_ends_the_interpreter_of_a_short_job_while_it_starts(
    engine: SlurmEngine, folder: RunFolder, time_min: int, signal: str
) -> None:
    job = spec(folder, 1, resources=structs.replace(EVERYTHING, time_min=time_min))
    assert f"#SBATCH --signal={signal}@90" in engine.script(job, None).split("\n")


def test_the_script_shown_is_the_script_submitted(
    engine: SlurmEngine, folder: RunFolder, slurm: PrivateSlurm
) -> None:
    job = spec(folder, 2)
    shown = engine.script(job, None)
    handle = engine.submit(job, None)
    engine.wait(folder, None, 0.1)
    (script,) = folder.submitit(1, Stage.EXTRACT).glob("*.sh")
    assert script.name == f"{handle.job_ids[0]}_submission.sh"
    assert script.read_text() == shown


def test_cores_reach_the_task_and_the_profile_does_not(
    engine: SlurmEngine, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SBATCH_PARTITION": "no-such-partition",
        "SBATCH_TIMELIMIT": "1-0",
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "7",
        "SLURM_ARRAY_TASK_ID": "5",
        "SUBMITIT_EXECUTOR": "local",
    }.items():
        monkeypatch.setenv(name, value)
    handle = engine.submit(spec(folder, resources=Resources(time_min=5, cpus=2, mem_mb=100)), None)
    engine.wait(folder, None, 0.1)
    result = folder.submitit(1, Stage.EXTRACT) / f"{handle.task_ids[0]}_0_result.pkl"
    status, value = pickle.loads(result.read_bytes())
    assert (status, value.cpus, value.cwd) == ("success", 2, str(folder.path))


def test_code_in_the_users_folder_is_not_run(
    engine: SlurmEngine, folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jobs", "submitit", "numpy"):
        (tmp_path / "cwd" / name).mkdir(parents=True)
        (tmp_path / "cwd" / name / "__init__.py").write_text("raise SystemExit('a trap')")
    monkeypatch.chdir(tmp_path / "cwd")
    handle = engine.submit(spec(folder), None)
    engine.wait(folder, None, 0.1)
    assert one(engine, folder, handle.task_ids[0]).cause is None


def test_no_secret_is_written_anywhere(engine: SlurmEngine, folder: RunFolder) -> None:
    engine.submit(spec(folder, 2), None)
    engine.wait(folder, None, 0.1)
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (Resources(setup=("a\nb",)), "--setup"),
        (Resources(partition="a\n#SBATCH --uid=0"), "--partition"),
        (Resources(sbatch_args=("--comment=a\nb",)), "--sbatch-arg '"),
        (Resources(sbatch_args=("--array=0-9",)), "--array"),
        (Resources(sbatch_args=("--outp=x",)), "--output"),
        (Resources(sbatch_args=("-J x",)), "--job-name"),
        (Resources(sbatch_args=("--nice=1 -d afterok:1",)), "--dependency"),
        (Resources(sbatch_args=("nice",)), "is not an sbatch option"),
        (Resources(sbatch_args=("--comment='x",)), "cannot be read"),
    ],
)
def test_what_would_break_the_script_is_refused(
    engine: SlurmEngine, folder: RunFolder, resources: Resources, words: str
) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        engine.submit(spec(folder, resources=resources), None)
    assert caught.value.cause is Cause.USAGE
    assert list(folder.path.iterdir()) == []


def test_a_percent_sign_in_the_run_folders_path_is_refused(
    engine: SlurmEngine, tmp_path: Path
) -> None:
    odd = tmp_path / "100%done" / "run"
    odd.mkdir(parents=True)
    with pytest.raises(EngineError, match="--log-dir"):
        engine.submit(spec(RunFolder(odd)), None)


def test_what_follows_finalize_is_called_on_its_node(
    engine: SlurmEngine, folder: RunFolder
) -> None:
    engine.submit(spec(folder, 2, then=payload.then), None)
    engine.wait(folder, None, 0.1)
    assert not (folder.path / "then").exists()
    engine.submit(spec(folder, stage=Stage.FINALIZE, then=payload.then), None)
    engine.wait(folder, None, 0.1)
    assert (folder.path / "then").read_text() == "1"


# Limits -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> Iterator[PrivateSlurm]:
    """A Slurm whose arrays have four tasks at most, and with a partition of ten minutes."""
    skip_unless_available(accounting=False)
    extra = (
        "MaxArraySize=4\nPartitionName=short Nodes=ALL MaxTime=10 PriorityTier=1 DefMemPerCPU=70"
    )
    with PrivateSlurm.start(accounting=False, nodes=2, extra_conf=extra, slurmd_timeout=5) as made:
        yield made


def test_an_array_beyond_the_limit_becomes_several_that_share_the_throttle(
    narrow: PrivateSlurm, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = client_of(narrow, monkeypatch)
    job = spec(folder, 9, parallel=5)
    scripts = engine.script(job, None)
    assert [line for line in scripts.split("\n") if "--array" in line] == [
        "#SBATCH --array=0-2%2",
        "#SBATCH --array=0-2%2",
        "#SBATCH --array=0-2%1",
    ]
    handle = engine.submit(job, None)
    assert (len(handle.job_ids), len(handle.task_ids)) == (3, 9)
    last = engine.submit(spec(folder, stage=Stage.FINALIZE), Dependency("afterany", handle.job_ids))
    engine.wait(folder, None, 0.1)
    done = [task for kind, task, _ in payload.events(folder.path) if kind == "end"]
    assert sorted(done[:-1]) == [f"extract.{number}" for number in range(9)]
    assert done[-1] == "finalize.0"
    assert one(engine, folder, last.task_ids[0]).state is EngineState.ENDED


def most_at_once(events: list[tuple[str, str, int]]) -> int:
    """The most tasks that were between their start and their end at one time."""
    running = most = 0
    for kind, _, _ in events:
        running += 1 if kind == "start" else -1
        most = max(most, running)
    return most


@pytest.mark.parametrize("parallel", [1, 2])
def test_arrays_that_outnumber_the_throttle_wait_for_each_other_and_all_tasks_run(
    narrow: PrivateSlurm, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, parallel: int
) -> None:
    engine = client_of(narrow, monkeypatch)
    parts = {f"extract.{number}": "brief" for number in range(9)} | {"extract.4": "fail"}
    payload.write_script(folder.path, parts | {"download.0": "hold"})
    first = engine.submit(spec(folder, stage=Stage.DOWNLOAD), None)
    job = spec(folder, 9, parallel=parallel)
    handle = engine.submit(job, Dependency("afterok", first.job_ids))
    assert narrow.job(handle.job_ids[-1])["JobState"] == "PENDING"
    (folder.path / "go").touch()
    engine.wait(folder, None, 0.1)
    events = payload.events(folder.path)
    assert sorted(task for kind, task, _ in events if kind == "start")[1:] == sorted(parts)
    # The one that fails records no end.
    assert most_at_once([event for event in events if event[1] != "extract.4"]) <= parallel


def test_arrays_that_wait_for_each_other_end_with_the_job_they_depend_on(
    narrow: PrivateSlurm, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = client_of(narrow, monkeypatch)
    payload.write_script(folder.path, {"download.0": "fail"})
    first = engine.submit(spec(folder, stage=Stage.DOWNLOAD), None)
    handle = engine.submit(spec(folder, 9, parallel=1), Dependency("afterok", first.job_ids))
    engine.wait(folder, None, 0.1)
    states = engine.poll(folder, list(handle.task_ids.values())).values()
    assert {state.cause for state in states} == {Cause.DEPENDENCY}
    assert {task for _, task, _ in payload.events(folder.path)} == {"download.0"}


@pytest.mark.parametrize(
    ("partition", "limits"),
    [
        ("short", SiteLimits(time_min=10, mem_mb=3 * 70)),  # its own default for each core
        ("main", SiteLimits(mem_mb=3 * 100)),
        ("short,main", SiteLimits(mem_mb=3 * 100)),
        (None, SiteLimits(mem_mb=3 * 100)),
        ("nope", SiteLimits(mem_mb=3 * 100)),
    ],
)
def test_a_partitions_limit_and_its_default_of_memory_are_known(
    narrow: PrivateSlurm, monkeypatch: pytest.MonkeyPatch, partition: str, limits: SiteLimits
) -> None:
    engine = client_of(narrow, monkeypatch)
    assert engine.site_limits(Resources(partition=partition, cpus=3)) == limits


@pytest.mark.parametrize("minutes", [11, 0])
def test_more_time_than_the_partition_gives_is_refused_as_it_would_never_start(
    narrow: PrivateSlurm, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    engine = client_of(narrow, monkeypatch)
    asked = Resources(time_min=minutes, partition="short")
    with pytest.raises(EngineError, match=r"partition short allows \(0:10:00\)"):
        engine.submit(spec(folder, resources=asked), None)
    with pytest.raises(EngineError, match="allows "):  # a dry run reports it too
        engine.script(spec(folder, resources=asked), None)
    assert names(narrow) == []


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (Resources(partition="nope"), "invalid partition.*--partition"),
        (Resources(constraint="gold"), "feature"),
        (Resources(reservation="nope"), "reservation"),
    ],
)
def test_a_refusal_is_reported_in_sbatchs_own_words_with_a_remedy(
    engine: SlurmEngine, folder: RunFolder, resources: Resources, words: str, slurm: PrivateSlurm
) -> None:
    with pytest.raises(EngineError, match=f"(?i){words}") as caught:
        engine.submit(spec(folder, resources=resources), None)
    assert "\n" not in caught.value.message
    assert names(slurm) == []


def test_an_array_whose_second_half_is_refused_is_taken_back(
    narrow: PrivateSlurm,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    wrap: Callable[[str, str], Path],
) -> None:
    engine = client_of(narrow, monkeypatch)
    payload.write_script(folder.path, {f"extract.{n}": "hold" for n in range(9)})
    wrap(
        "sbatch",
        '[ $(wc -l < $LOG) -ge 2 ] && { echo "sbatch: error: no" >&2; exit 1; }\n$REAL "$@"',
    )
    with pytest.raises(EngineError, match="refused the job: no"):
        engine.submit(spec(folder, 9), None)
    (folder.path / "go").touch()
    narrow.wait_until_idle()


@pytest.fixture(scope="module")
def strict() -> Iterator[PrivateSlurm]:
    """A Slurm that enforces accounts and limits: account lab, whose QOS tiny takes two jobs."""
    skip_unless_available(accounting=True)
    extra = "AccountingStorageEnforce=associations,limits,qos"
    with PrivateSlurm.start(accounting=True, nodes=1, extra_conf=extra) as made:
        me = getpass.getuser()
        for words in (
            "qos tiny MaxSubmitJobsPerUser=2 MaxWall=00:10:00 Flags=DenyOnLimit",
            "qos few GrpSubmitJobs=6",
            "account lab",
            "account hall",
            f"user {me} account=lab qos=normal,tiny,few defaultqos=normal",
            f"user {me} account=hall MaxSubmitJobs=6",
        ):
            made.run("sacctmgr", "-i", "add", *words.split(), check=True)
        yield made


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (Resources(account="nope"), "invalid account.*--account"),
        (Resources(account="lab", qos="nope"), "invalid qos.*--qos"),
        (Resources(account="lab", qos="tiny", time_min=11), "QOSMaxWall.*--time"),
        (Resources(account="lab", qos="tiny", time_min=9), "MaxSubmit.*--tasks"),
    ],
)
def test_limits_of_accounts_are_reported_and_nothing_is_left(
    strict: PrivateSlurm,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    resources: Resources,
    words: str,
) -> None:
    engine = client_of(strict, monkeypatch)
    with pytest.raises(EngineError, match=f"(?i){words}"):
        engine.submit(spec(folder, 3, resources=resources), None)
    assert names(strict) == []


@pytest.mark.parametrize("who", [("-A", "hall"), ("-A", "lab", "-q", "few")])
def test_a_limit_of_submitted_jobs_is_reported_with_the_launch_that_fits(
    strict: PrivateSlurm, cli: Cli, tmp_path: Path, who: tuple[str, ...]
) -> None:
    shell = cli.having(**strict.env)
    (tmp_path / "in").mkdir()
    for number in range(8):
        samples.write_archive(tmp_path / "in" / f"{number}.tar", [(f"{number}.txt", b"x")], "tar")
    source = ("--local-path", tmp_path / "in", "--layout", "files", "--dest", tmp_path / "data")
    done = shell.run("launch", *source, *who, "-y", "--time", "5", "--mem", "100", rc=4)
    assert "needs 10 jobs at a time (download 1, extract 8, finalize 1)" in done.err
    offer = re.search(r"resume \S+ --tasks (\d)$", done.err.strip())
    # The download job that is taken back may count until its node is free.
    assert offer is not None and offer[1] in ("3", "4")
    strict.wait_until_idle()
    shell.run("resume", "--tasks", "4", "--wait")
    assert len(list((tmp_path / "data").glob("*.txt"))) == 8


# Slurm in trouble -------------------------------------------------------------------------------

FAILS_ONCE = (
    '[ $(wc -l < $LOG) -eq 1 ] && { echo "Unable to contact slurm controller" >&2; exit 1; }'
)


def test_a_momentary_failure_is_tried_again(
    engine: SlurmEngine, folder: RunFolder, wrap: Callable[[str, str], Path]
) -> None:
    log = wrap("sbatch", f'{FAILS_ONCE}\n$REAL "$@"')
    handle = engine.submit(spec(folder), None)
    engine.wait(folder, None, 0.1)
    assert len(log.read_text().splitlines()) == 2
    assert one(engine, folder, handle.task_ids[0]).cause is None


@pytest.mark.parametrize("count", [1, 3])
def test_a_job_is_found_and_not_submitted_again_when_the_reply_of_sbatch_was_lost(
    engine: SlurmEngine, folder: RunFolder, wrap: Callable[[str, str], Path], count: int
) -> None:
    log = wrap(
        "sbatch",
        '$REAL "$@" > /dev/null\n'
        'echo "Batch job submission failed: Socket timed out on send/recv operation" >&2\nexit 1',
    )
    handle = engine.submit(spec(folder, count), None)
    engine.wait(folder, None, 0.1)
    assert len(log.read_text().splitlines()) == 1
    started = [task for kind, task, _ in payload.events(folder.path) if kind == "start"]
    assert sorted(started) == [f"extract.{number}" for number in range(count)]
    assert len(handle.task_ids) == count


def test_a_slurm_that_stays_silent_is_given_up_with_nothing_submitted(
    engine: SlurmEngine, folder: RunFolder, wrap: Callable[[str, str], Path], slurm: PrivateSlurm
) -> None:
    log = wrap("sbatch", 'echo "Unable to contact slurm controller" >&2; exit 1')
    with pytest.raises(EngineError, match="does not respond"):
        engine.submit(spec(folder), None)
    assert len(log.read_text().splitlines()) == 4
    assert names(slurm) == []


def test_a_stopped_controller_is_silent_and_not_the_end_of_the_tasks(
    narrow: PrivateSlurm, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = client_of(narrow, monkeypatch)
    payload.write_script(folder.path, {"extract.0": "hold"})
    handle = engine.submit(spec(folder), None)
    narrow.wait_for(lambda: payload.events(folder.path))
    narrow.stop_slurmctld()
    try:
        with pytest.raises(EngineError, match="squeue"):
            engine.poll(folder, list(handle.task_ids.values()))
        assert choose_engine("auto").name == "slurm"
    finally:
        narrow.start_slurmctld()
    assert one(engine, folder, handle.task_ids[0]).state is EngineState.RUNNING
    (folder.path / "go").touch()
    engine.wait(folder, None, 0.1)


# What scontrol, or sinfo, does where users are not to use it.
CLOSED = {
    "missing": None,
    "not executable": "",
    "forbidden": 'echo "slurm_load_ctl_conf error: Access/permission denied" >&2; exit 1',
    "slow": "sleep 60",
    "odd": "echo This command is not for users.",
}


@pytest.mark.parametrize("how", CLOSED)
def test_without_scontrol_and_sinfo_jobs_are_submitted_and_followed(
    engine: SlurmEngine,
    folder: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    monkeypatch.setattr(client, "CONTROL_TIMEOUT_S", 0.5)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sbatch", "squeue", "scancel", "sacct", "srun", "sleep", "bash"):
        real = shutil.which(name)
        assert real is not None
        (tools / name).symlink_to(real)
    for name in ("scontrol", "sinfo"):
        if CLOSED[how] is not None:
            (tools / name).write_text(f"#!{tools}/bash\n{CLOSED[how]}\n")
            (tools / name).chmod(0o644 if how == "not executable" else 0o755)
    monkeypatch.setenv("PATH", str(tools))
    assert choose_engine("auto") == EngineChoice("slurm")
    engine_named("slurm").reach()
    assert engine.site_limits(Resources()) == SiteLimits()
    handle = engine.submit(spec(folder), None)
    engine.wait(folder, None, 0.1)
    states = engine.poll(folder, list(handle.task_ids.values()))
    assert {(state.state, state.cause) for state in states.values()} == {(EngineState.ENDED, None)}


BANNER = (
    "echo '*** Welcome. Your project has hours left:'; echo 123456; echo '  Jobs:   2 of 500'\n"
)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(f'{BANNER}$REAL "$@"', id="banner above"),
        pytest.param(f'$REAL "$@"; {BANNER}', id="banner below"),
        pytest.param('$REAL "${@:2}"', id="without --parsable"),
        pytest.param(f'{BANNER}$REAL "${{@:2}}" >&2', id="a sentence on standard error"),
        pytest.param('echo; id=$($REAL "$@"); echo "  $id;here  "; echo', id="with a cluster"),
        pytest.param('$REAL "$@" > /dev/null', id="no answer at all"),
        pytest.param('$REAL "$@" > /dev/null; echo "Job submitted. Good luck!"', id="no id"),
        pytest.param('$REAL "$@"; exit 1', id="an id and a failure"),
    ],
)
def test_the_id_is_found_whatever_a_wrapper_of_sbatch_makes_of_the_answer(
    engine: SlurmEngine, folder: RunFolder, wrap: Callable[[str, str], Path], body: str
) -> None:
    log = wrap("sbatch", body)
    handle = engine.submit(spec(folder, 2), None)
    engine.wait(folder, None, 0.1)
    assert len(log.read_text().splitlines()) == 1
    ended = [task for kind, task, _ in payload.events(folder.path) if kind == "end"]
    assert sorted(ended) == ["extract.0", "extract.1"]
    states = engine.poll(folder, list(handle.task_ids.values()))
    assert {(state.state, state.raw) for state in states.values()} == {
        (EngineState.ENDED, "COMPLETED")
    }


def test_a_success_of_sbatch_that_submits_nothing_is_reported(
    engine: SlurmEngine, folder: RunFolder, wrap: Callable[[str, str], Path], slurm: PrivateSlurm
) -> None:
    log = wrap("sbatch", "echo Maintenance today, come back tomorrow.")
    with pytest.raises(EngineError, match=r"no job websight-.*Maintenance today"):
        engine.submit(spec(folder), None)
    assert len(log.read_text().splitlines()) == 1
    assert names(slurm) == []


def test_one_query_is_enough_for_all_tasks(
    engine: SlurmEngine, folder: RunFolder, wrap: Callable[[str, str], Path]
) -> None:
    first = engine.submit(spec(folder, 5), None)
    engine.wait(folder, None, 0.1)
    squeue, sacct = wrap("squeue", '$REAL "$@"'), wrap("sacct", '$REAL "$@"')
    states = engine.poll(folder, [*first.task_ids.values(), "777777", "777778_1"])
    assert len(squeue.read_text().splitlines()) == 1
    assert len(sacct.read_text().splitlines()) == 1
    assert {state.state for state in states.values()} == {EngineState.ENDED}


# What becomes of tasks --------------------------------------------------------------------------


def test_an_id_of_another_run_is_not_this_runs(
    engine: SlurmEngine, folder: RunFolder, tmp_path: Path, slurm: PrivateSlurm
) -> None:
    payload.write_script(folder.path, {"extract.0": "hold"})
    handle = engine.submit(spec(folder), None)
    slurm.wait_for(lambda: payload.events(folder.path))
    other = RunFolder(tmp_path / "20250101-000000-000000")
    job_id = handle.task_ids[0]
    assert not one(engine, other, job_id).state.live
    engine.cancel(other, [job_id])
    assert one(engine, folder, job_id).state is EngineState.RUNNING
    (folder.path / "go").touch()
    engine.wait(folder, None, 0.1)


@pytest.mark.parametrize("accounting", [True, False])
def test_a_pending_task_cancelled_alone_is_cancelled(
    request: pytest.FixtureRequest, folder: RunFolder, accounting: bool
) -> None:
    slurm: PrivateSlurm = request.getfixturevalue("slurm" if accounting else "slurm_plain")
    engine: SlurmEngine = request.getfixturevalue("engine" if accounting else "plain")
    payload.write_script(folder.path, {f"extract.{n}": "hold" for n in range(3)})
    handle = engine.submit(spec(folder, 3, parallel=1), None)
    slurm.wait_for(lambda: payload.events(folder.path))
    slurm.run("scancel", handle.task_ids[2], check=True)
    slurm.wait_for(lambda: not one(engine, folder, handle.task_ids[2]).state.live)
    assert one(engine, folder, handle.task_ids[2]).cause in (Cause.CANCELLED, None)
    assert one(engine, folder, handle.task_ids[1]).state is EngineState.PENDING
    (folder.path / "go").touch()
    engine.wait(folder, None, 0.1)
    assert one(engine, folder, handle.task_ids[1]).cause is None


def test_pending_tasks_of_an_array_have_their_own_reasons(
    plain: SlurmEngine, folder: RunFolder, slurm_plain: PrivateSlurm
) -> None:
    payload.write_script(folder.path, {"extract.0": "hold"})
    handle = plain.submit(spec(folder, 4, parallel=1), None)
    ids = [handle.task_ids[number] for number in (1, 2, 3)]
    slurm_plain.wait_for(lambda: "Limit" in one(plain, folder, ids[0]).reason)
    slurm_plain.run("scontrol", "hold", ids[1], check=True)
    states = plain.poll(folder, ids)
    is_held = [states[job_id].reason.startswith("JobHeld") for job_id in ids]
    assert is_held == [False, True, False]
    plain.cancel(folder, handle.job_ids)


def test_a_requeued_task_continues_under_its_id_whatever_it_left(
    engine: SlurmEngine, folder: RunFolder, slurm: PrivateSlurm
) -> None:
    payload.write_script(folder.path, {"extract.0": "hold"})
    handle = engine.submit(spec(folder), None)
    job_id = handle.task_ids[0]
    slurm.wait_for(lambda: payload.events(folder.path))
    left = folder.submitit(1, Stage.EXTRACT) / f"{job_id}_0_result.pkl.save_tmp"
    left.write_bytes(b"cut short")
    slurm.run("scontrol", "requeue", job_id, check=True)
    slurm.wait_for(lambda: one(engine, folder, job_id).state is EngineState.PENDING)
    slurm.wait_for(lambda: len(payload.events(folder.path)) == 2)
    again = one(engine, folder, job_id)
    assert (again.state, again.restarts) == (EngineState.RUNNING, 1)
    (folder.path / "go").touch()
    engine.wait(folder, None, 0.1)
    assert one(engine, folder, job_id).cause is None
    assert left.with_name(f"{job_id}_0_result.pkl").exists()


def test_a_task_that_finds_no_log_folder_could_not_be_started(
    plain: SlurmEngine, folder: RunFolder, slurm_plain: PrivateSlurm
) -> None:
    payload.write_script(folder.path, {"download.0": "hold"})
    first = plain.submit(spec(folder, stage=Stage.DOWNLOAD), None)
    second = plain.submit(spec(folder, 1), Dependency("afterany", first.job_ids))
    folder.submitit(1, Stage.EXTRACT).rename(folder.path / "away")
    (folder.path / "go").touch()
    plain.wait(folder, None, 0.1)
    assert one(plain, folder, second.task_ids[0]).cause is Cause.LAUNCH_FAILED


def test_a_lost_node_is_named(
    narrow: PrivateSlurm, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = client_of(narrow, monkeypatch)
    payload.write_script(folder.path, {"extract.0": "hold"})
    asked = Resources(time_min=5, cpus=1, mem_mb=100, sbatch_args=("--no-requeue",))
    handle = engine.submit(spec(folder, resources=asked), None)
    narrow.wait_for(lambda: payload.events(folder.path))
    node = one(engine, folder, handle.task_ids[0]).node
    assert node is not None
    narrow.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test", check=True)
    try:
        engine.wait(folder, None, 0.1)
        state = one(engine, folder, handle.task_ids[0])
        assert (state.cause, state.node) == (Cause.NODE_FAILURE, node)
    finally:
        (folder.path / "go").touch()
        narrow.run("scontrol", "update", f"nodename={node}", "state=resume")


def test_who_cancelled_is_reported_where_there_is_accounting(
    engine: SlurmEngine, folder: RunFolder, slurm: PrivateSlurm, wrap: Callable[[str, str], Path]
) -> None:
    payload.write_script(folder.path, {"extract.0": "hold"})
    handle = engine.submit(spec(folder), None)
    slurm.wait_for(lambda: payload.events(folder.path))
    slurm.run("scancel", handle.job_ids[0], check=True)
    engine.wait(folder, None, 0.1)
    wrap("squeue", EMPTY_QUEUE)  # as after MinJobAge
    slurm.wait_for(lambda: " by " in one(engine, folder, handle.task_ids[0]).raw)
    state = one(engine, folder, handle.task_ids[0])
    assert state.cause is Cause.CANCELLED
    assert not state.raw.endswith(str(os.geteuid()))


def test_a_task_whose_dependency_failed_is_not_cancelled_by_anybody(
    engine: SlurmEngine, folder: RunFolder, slurm: PrivateSlurm, wrap: Callable[[str, str], Path]
) -> None:
    payload.write_script(folder.path, {"download.0": "fail"})
    first = engine.submit(spec(folder, stage=Stage.DOWNLOAD), None)
    array = engine.submit(spec(folder, 2), Dependency("afterok", first.job_ids))
    engine.wait(folder, None, 0.1)
    assert one(engine, folder, array.task_ids[1]).cause is Cause.DEPENDENCY
    wrap("squeue", EMPTY_QUEUE)  # as after MinJobAge
    slurm.wait_for(lambda: one(engine, folder, array.task_ids[1]).raw == "CANCELLED")
    assert one(engine, folder, array.task_ids[1]).cause is Cause.DEPENDENCY


NO_CGROUP = available(cgroup=True)


@pytest.mark.skipif(NO_CGROUP is not None, reason=str(NO_CGROUP))
def test_a_task_that_is_killed_for_its_memory_ran_out_of_memory(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, wrap: Callable[[str, str], Path]
) -> None:
    # The batch script has enough: Slurm calls only the step of srun out of memory.
    with PrivateSlurm.start(nodes=1, cgroup=True) as slurm:
        engine = client_of(slurm, monkeypatch)
        payload.write_script(folder.path, {"extract.0": "greedy"})
        handle = engine.submit(spec(folder), None)
        engine.wait(folder, None, 0.1)
        [job_id] = handle.task_ids.values()
        assert one(engine, folder, job_id).cause is Cause.OUT_OF_MEMORY
        wrap("squeue", EMPTY_QUEUE)  # as after MinJobAge
        slurm.wait_for(lambda: one(engine, folder, job_id).cause is Cause.OUT_OF_MEMORY)


@pytest.mark.exhaustive  # slurmctld enforces limits every 30 s, and another test waits for that too
def test_a_time_limit_is_reported(
    engine: SlurmEngine, folder: RunFolder, slurm: PrivateSlurm
) -> None:
    payload.write_script(folder.path, {"extract.0": "hold"})
    handle = engine.submit(spec(folder), None)
    slurm.wait_for(lambda: payload.events(folder.path))
    slurm.run("scontrol", "update", f"JobId={handle.job_ids[0]}", "EndTime=now+1", check=True)
    engine.wait(folder, None, 0.2)
    assert one(engine, folder, handle.task_ids[0]).cause is Cause.TIME_LIMIT
