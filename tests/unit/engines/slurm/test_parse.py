"""Slurm's answers, as it really gives them, read into values."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from jobs.errors import Cause, EngineError
from orchestrator.engines.base import EngineState
from orchestrator.engines.slurm.client import Answer, environment
from orchestrator.engines.slurm.parse import (
    Accepted,
    JobRow,
    accepted,
    account_rows,
    expand,
    parse_bytes,
    parse_cpu,
    parse_time,
    queue_rows,
)
from orchestrator.engines.task_entry import BAD_END
from tests.support.cluster.slurm_tables import ACCOUNT_HEAD, QUEUE_HEAD

RUN = "20260102-030405-abcdef"
NAME = f"websight-{RUN}-0001-extract"
DOWNLOAD = f"websight-{RUN}-0001-download"
FOLDER = f"/scratch/a|b/logs/{RUN}"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        pytest.param("12", ["12"], id="job"),
        pytest.param("12_3", ["12_3"], id="array task"),
        pytest.param("12_[3]", ["12_3"], id="the last pending one"),
        pytest.param("12_[3-5]", ["12_3", "12_4", "12_5"], id="range"),
        pytest.param("12_[3-4,7%4]", ["12_3", "12_4", "12_7"], id="throttle"),
        pytest.param("16_[1-9:4]", ["16_1", "16_5", "16_9"], id="step"),
        pytest.param("16_[0-6:3,9%2]", ["16_0", "16_3", "16_6", "16_9"], id="step and throttle"),
        pytest.param("12_[1,3,...]", ["12_1", "12_3"], id="cut short"),
    ],
)
def test_a_compact_row_covers_its_tasks(text: str, ids: list[str]) -> None:
    assert list(expand(text)) == ids


def in_queue(lines: str) -> list[JobRow]:
    return list(queue_rows(f"{QUEUE_HEAD}\n{lines}"))


def in_accounts(lines: str) -> list[JobRow]:
    return list(account_rows(f"{ACCOUNT_HEAD}\n{lines}"))


def queue_line(
    job_id: str = "7",
    state: str = "RUNNING",
    reason: str = "None",
    node: str = "n1",
    restarts: str = "0",
    status: str = "0",
    step: str = "0",
    start: str = "2026-01-02T03:04:06",
    end: str = "2027-01-02T03:04:06",
    command: str = f"{FOLDER}/submitit/0001-extract/.submission_file_1f.sh",
    folder: str = FOLDER,
    name: str = NAME,
) -> str:
    fields = (job_id, state, reason, node, restarts, status, step, "2026-01-02T03:04:05")
    return "".join(f"{field}|" for field in (*fields, start, end, command, folder, name)) + "\n"


def seen(id: str, expected: EngineState, **fields: str) -> object:
    """A row of a task that has not ended."""
    return pytest.param(queue_line(**fields), expected, None, id=id)


def ended(id: str, cause: Cause | None, state: str, status: str = "0", **more: str) -> object:
    """A row of a task that has."""
    line = queue_line(state=state, status=status, **more)
    return pytest.param(line, EngineState.ENDED, cause, id=id)


@pytest.mark.parametrize(
    ("line", "state", "cause"),
    [
        seen("running", EngineState.RUNNING),
        seen("completing", EngineState.RUNNING, state="COMPLETING"),
        seen("suspended", EngineState.RUNNING, state="SUSPENDED"),
        seen("pending", EngineState.PENDING, state="PENDING", reason="Priority"),
        seen("requeued and held", EngineState.PENDING, state="REQUEUE_HOLD"),
        seen("a state of later Slurms", EngineState.UNKNOWN, state="HIBERNATING"),
        pytest.param(
            queue_line(state="PENDING", reason="DependencyNeverSatisfied"),
            EngineState.PENDING,
            Cause.DEPENDENCY,
            id="never satisfied",
        ),
        ended(
            "cancelled as never satisfied",
            Cause.DEPENDENCY,
            "CANCELLED",
            reason="DependencyNeverSatisfied",
        ),
        ended("completed", None, "COMPLETED"),
        ended("killed", Cause.KILLED, "FAILED", "9"),
        ended("killed under srun", Cause.KILLED, "FAILED", str(137 << 8)),
        ended(
            "killed under srun (24.11)", Cause.KILLED, "FAILED", "137:0", reason="NonZeroExitCode"
        ),
        ended(
            "batch shell killed (24.11)",
            Cause.KILLED,
            "FAILED",
            "0:9",
            reason="RaisedSignal:9(Killed)",
        ),
        ended("SIGXCPU", Cause.LIMIT, "FAILED", "24"),
        ended("SIGXFSZ under srun", Cause.LIMIT, "FAILED", str(153 << 8)),
        ended(
            "log folder missing", Cause.LAUNCH_FAILED, "FAILED", "4021", reason="JobLaunchFailure"
        ),
        ended(
            "log folder missing (24.11)",
            Cause.LAUNCH_FAILED,
            "FAILED",
            "0:53",
            reason="JobLaunchFailure",
        ),
        ended(
            "our code was not reached",
            Cause.LAUNCH_FAILED,
            "FAILED",
            "256",
            reason="NonZeroExitCode",
        ),
        ended(
            "a download without a usable shard, whose result has the reason",
            None,
            "FAILED",
            str(BAD_END << 8),
            name=DOWNLOAD,
        ),
        ended(
            "a line of --setup that ends the script of a download",
            Cause.LAUNCH_FAILED,
            "FAILED",
            "256",
            name=DOWNLOAD,
        ),
        ended("time limit", Cause.TIME_LIMIT, "TIMEOUT", "15"),
        ended("memory", Cause.OUT_OF_MEMORY, "OUT_OF_MEMORY", "125"),
        ended("memory of its step", Cause.OUT_OF_MEMORY, "FAILED", "256", step="253"),
        ended("memory of its step (24.11)", Cause.OUT_OF_MEMORY, "FAILED", "1:0", step="0:125"),
        ended("node", Cause.NODE_FAILURE, "NODE_FAIL"),
        ended("preempted", Cause.PREEMPTED, "PREEMPTED"),
    ],
)
def test_a_row_of_squeue_gives_a_tasks_state_and_why_it_ended(
    line: str, state: EngineState, cause: Cause | None
) -> None:
    (row,) = in_queue(line)
    assert (row.name.startswith("websight-"), row.task.state, row.task.cause) == (
        True,
        state,
        cause,
    )


def test_times_of_a_row_belong_to_its_state() -> None:
    start = datetime(2026, 1, 2, 3, 4, 6, tzinfo=timezone.utc)
    (running,) = in_queue(queue_line())
    assert (running.task.started, running.task.ended) == (start, None)  # its end is a guess
    (waiting,) = in_queue(queue_line(state="PENDING", node=""))
    assert (waiting.task.started, waiting.task.estimated_start) == (None, start)
    assert waiting.task.node is None
    (over,) = in_queue(queue_line(state="COMPLETED", end="2026-01-02T03:05:06"))
    assert over.task.ended == start.replace(minute=5)


@pytest.mark.parametrize("text", ["", "maintenance tonight\n", queue_line()])
def test_an_answer_without_a_header_is_no_empty_queue(text: str) -> None:
    with pytest.raises(EngineError, match="squeue printed no table header"):
        list(queue_rows(text))


def test_lines_before_the_header_are_ignored() -> None:
    (row,) = queue_rows(f"Welcome | to | us\nCLUSTER: alpha\n{QUEUE_HEAD}\n{queue_line()}")
    assert row.job_id == "7"


def test_a_pending_array_becomes_a_row_a_task_and_restarts_are_counted() -> None:
    text = queue_line("12_[3-5%2]", "PENDING", "JobArrayTaskLimit", "") + queue_line(
        "12_1", restarts="2"
    )
    rows = {row.job_id: row.task for row in in_queue(text)}
    assert sorted(rows) == ["12_1", "12_3", "12_4", "12_5"]
    assert rows["12_1"].restarts == 2
    assert rows["12_4"].reason == "JobArrayTaskLimit"


def test_a_requeued_job_has_not_started_while_its_last_run_closes() -> None:
    (closing,) = in_queue(queue_line(state="COMPLETING"))
    assert closing.task.started is not None
    (requeued,) = in_queue(queue_line(state="COMPLETING", restarts="1"))
    assert requeued.task.started is None


@pytest.mark.parametrize(
    ("more", "name", "ours"),
    [
        pytest.param({}, NAME, True, id="as it was submitted"),
        pytest.param({"name": "lab_job"}, NAME, True, id="renamed by the site"),
        pytest.param({"name": "a|b"}, NAME, True, id="renamed, with the separator"),
        pytest.param(
            {"command": f"{FOLDER}/submitit/0002-finalize/.s.sh", "name": "x"},
            f"websight-{RUN}-0002-finalize",
            True,
            id="renamed, of another attempt",
        ),
        pytest.param(
            {"command": f"{FOLDER}/submitit/0001-extract-12/.s.sh", "name": "x"},
            NAME,
            True,
            id="renamed, one of several arrays",
        ),
        pytest.param({"command": "(null)", "name": "x"}, "x", True, id="its script was piped"),
        pytest.param({"command": "", "folder": "/"}, NAME, True, id="known by its name alone"),
        pytest.param(
            {"command": "/home/me/train.sh", "folder": "/home/me", "name": "a | b|c"},
            "c",
            False,
            id="somebody else's",
        ),
        pytest.param(
            {"command": f"{FOLDER}0/submitit/0001-extract/.s.sh", "folder": f"{FOLDER}0"},
            f"websight-{RUN}0-0001-extract",
            False,
            id="another run's",
        ),
    ],
)
def test_a_runs_jobs_are_known_by_name_script_or_folder(
    more: dict[str, str], name: str, ours: bool
) -> None:
    (row,) = in_queue(queue_line(**more))
    assert (row.name, row.is_of(RUN)) == (name, ours)


def test_a_job_of_another_attempt_is_distinguished_from_one_that_has_its_id() -> None:
    (row,) = in_queue(queue_line())
    assert row.is_of(RUN, {1, 3}) and not row.is_of(RUN, {2})
    (piped,) = in_queue(queue_line(command="(null)", name="lab_job"))
    assert piped.is_of(RUN, {2})  # no information


def test_accounting_knows_a_renamed_job_by_its_folder() -> None:
    (row,) = in_accounts(account_line("9", "COMPLETED", name="lab_job"))
    assert row.is_of(RUN) and not row.is_of("20260102-030405-000000")


def test_what_was_cancelled_while_it_waited_never_started() -> None:
    at = "2026-01-02T03:05:06"
    (row,) = in_queue(queue_line(state="CANCELLED", node="", start=at, end=at))
    assert row.task.started is None and row.task.ended == parse_time(at)


def account_line(job_id: str, state: str, code: str = "0:0", **more: str) -> str:
    fields = {
        "reason": "None",
        "node": "n1",
        "submit": "2026-01-02T03:04:05",
        "start": "2026-01-02T03:04:06",
        "end": "2026-01-02T03:05:06",
        "cpu": "",
        "rss": "",
        "step": "0:0",
        "folder": FOLDER,
        "name": NAME,
    } | more
    order = ("reason", "node", "code", "step", "submit", "start", "end", "cpu", "rss", "folder")
    fields["code"] = code
    return "|".join([job_id, state, *(fields[key] for key in order), fields["name"]]) + "\n"


def test_accounting_says_who_cancelled_what_ended_and_what_it_used() -> None:
    text = (
        account_line("9", "CANCELLED by 1000", node="None assigned", start="None")
        + account_line("10_3", "OUT_OF_MEMORY", "0:125", cpu="01:02.500")
        + account_line("10_3.batch", "OUT_OF_MEMORY", rss="1000K", name="batch")
        + account_line("10_3.0", "OUT_OF_MEMORY", rss="2M", name="python")
        + account_line("11", "TIMEOUT", "0:0")
        + account_line("12", "FAILED", "0:53")
        + account_line("13", "FAILED", "1:0", step="0:125")
        + account_line("14_[0-1%8]", "CANCELLED by 0", reason="Dependency", node="None assigned")
        + account_line("15_[0-1%8]", "CANCELLED", node="None assigned")
    )
    rows = {row.job_id: row.task for row in in_accounts(text)}
    arrays = ["14_0", "14_1", "15_0", "15_1"]
    assert sorted(rows) == ["10_3", "11", "12", "13", *arrays, "9"]
    assert (rows["9"].raw, rows["9"].cause, rows["9"].node) == (
        "CANCELLED by 1000",
        Cause.CANCELLED,
        None,
    )
    assert rows["9"].started is None
    assert (rows["10_3"].cpu_s, rows["10_3"].peak_rss_bytes) == (62.5, 2 << 20)
    assert rows["10_3"].cause is Cause.OUT_OF_MEMORY
    assert rows["11"].cause is Cause.TIME_LIMIT
    assert rows["12"].cause is Cause.LAUNCH_FAILED
    assert rows["13"].cause is Cause.OUT_OF_MEMORY
    causes = [rows[each].cause for each in arrays]
    assert causes == [Cause.CANCELLED, Cause.CANCELLED, Cause.DEPENDENCY, Cause.DEPENDENCY]


def test_a_stale_row_of_a_pending_array_does_not_hide_what_its_tasks_do() -> None:
    text = account_line("3_[2,5%2]", "PENDING") + account_line("3_2", "RUNNING")
    assert {r.job_id: r.task.raw for r in in_accounts(text)} == {
        "3_2": "RUNNING",
        "3_5": "PENDING",
    }
    swapped = account_line("3_2", "RUNNING") + account_line("3_[2,5%2]", "PENDING")
    assert {r.job_id: r.task.raw for r in in_accounts(swapped)}["3_2"] == "RUNNING"


@pytest.mark.parametrize("text", ["N/A", "Unknown", "None", "", "NONE"])
def test_a_time_that_is_not_known_is_none(text: str) -> None:
    assert parse_time(text) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:01.500", 1.5), ("1-00:00:01", 86401.0), ("02:03:04", 7384.0), ("", None)],
)
def test_cpu_time_is_read(text: str, seconds: float | None) -> None:
    assert parse_cpu(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("12K", 12288), ("1.5M", 1572864), ("0", 0), ("", None), ("x", None)]
)
def test_peak_memory_is_read(text: str, size: int | None) -> None:
    assert parse_bytes(text) == size


def test_slurms_messages_are_quoted_without_their_prefixes() -> None:
    said = (
        "sbatch: error: invalid partition specified: nope\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    words = Answer(1, "", said).words
    assert words == (
        "invalid partition specified: nope; "
        "Batch job submission failed: Invalid partition name specified"
    )


@pytest.mark.parametrize(
    ("stderr", "silent"),
    [
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", True),
        (
            "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
            True,
        ),
        ("sbatch: error: Batch job submission failed: Invalid account", False),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", False),
    ],
)
def test_a_slurm_that_does_not_respond_is_distinguished_from_one_that_refuses(
    stderr: str, silent: bool
) -> None:
    assert Answer(1, "", stderr).silent is silent


def test_what_an_allocation_or_a_profile_left_does_not_reach_slurm() -> None:
    kept = environment(
        {
            "PATH": "/bin",
            "HF_TOKEN": "t",
            "SLURM_CONF": "/c",
            "SBATCH_PARTITION": "p",
            "SLURM_JOB_ID": "1",
            "SLURM_TIME_FORMAT": "relative",
            "SQUEUE_FORMAT": "%i",
            "SACCT_FORMAT": "x",
            "SUBMITIT_EXECUTOR": "slurm",
        }
    )
    assert kept == {"PATH": "/bin", "HF_TOKEN": "t", "SLURM_CONF": "/c"}


@pytest.mark.parametrize(
    ("out", "err", "found"),
    [
        pytest.param("12\n", "", [("12", "")], id="parsable"),
        pytest.param(
            "12;alpha\n", "", [("12", "alpha")], id="parsable, of one of several clusters"
        ),
        pytest.param("12;\n", "", [("12", "")], id="parsable, an empty cluster"),
        pytest.param("Submitted batch job 12\n", "", [("12", "")], id="a sentence"),
        pytest.param(
            "Submitted batch job 12 on cluster a-b.2\n",
            "",
            [("12", "a-b.2")],
            id="with its cluster",
        ),
        pytest.param("\n* Hello *\n\n  12  \nBye.\n", "", [("12", "")], id="between banners"),
        pytest.param(
            "\x1b[32m[site]\x1b[0m Submitted batch job \x1b[1m12\x1b[0m.\n",
            "",
            [("12", "")],
            id="in colours",
        ),
        pytest.param("2027\n12\n", "", [("12", ""), ("2027", "")], id="the later of two numbers"),
        pytest.param(
            "Submitted batch job 12 on cluster b\n12\n500\n",
            "",
            [("12", "b"), ("500", "")],
            id="a sentence before numbers",
        ),
        pytest.param("", "sbatch: Submitted batch job 12\n", [("12", "")], id="on standard error"),
        pytest.param("", "error: 12\n12\n", [], id="no number of standard error"),
        pytest.param("12 jobs are yours\njob-12\n", "", [], id="numbers in other sentences"),
        pytest.param("", "", [], id="nothing"),
    ],
)
def test_an_id_is_found_on_any_line_of_sbatchs_answer(
    out: str, err: str, found: list[tuple[str, str]]
) -> None:
    assert accepted(out, err) == [Accepted(*each) for each in found]
