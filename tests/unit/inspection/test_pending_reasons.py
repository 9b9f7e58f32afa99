"""What Slurm says of a waiting job, in words that help."""

from __future__ import annotations

import pytest

from orchestrator.inspection.pending_reasons import explain, will_never_start


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "other jobs come first"),
        ("Resources", "free nodes"),
        ("Dependency", "the job before it to end"),
        ("DependencyNeverSatisfied", "will never start"),
        ("JobArrayTaskLimit", "--parallel"),
        ("AssocMaxJobsLimit", "limit of running jobs"),
        ("QOSMaxJobsPerUserLimit", "limit of running jobs"),
        ("AssocGrpJobsLimit", "limit of running jobs"),
        ("QOSMaxSubmitJobPerUserLimit", "limit of submitted jobs"),
        ("AssocMaxSubmitJobLimit", "limit of submitted jobs"),
        ("QOSMaxCpuPerUserLimit", "limit of resources in use"),
        ("QOSGrpCpuLimit", "limit of resources in use"),
        ("AssocGrpMemLimit", "limit of resources in use"),
        ("AssocMaxCpuPerJobLimit", "allows a job"),
        ("QOSMaxMemoryPerNode", "allows a job"),
        ("QOSMaxWallDurationPerJobLimit", "--time"),
        ("AssocMaxWallDurationPerJobLimit", "--time"),
        ("QOSMinCpuNotSatisfied", "minimum"),
        ("AssocGrpCPUMinutesLimit", "used up its compute time"),
        ("QOSGrpCPUMinutesLimit", "used up its compute time"),
        ("AssocGrpCPURunMinutesLimit", "used up its compute time"),
        ("PartitionTimeLimit", "more time than the partition allows"),
        ("PartitionDown", "partition is down"),
        ("ReqNodeNotAvail, UnavailableNodes:n1,n2", "down, drained or reserved"),
        ("(ReqNodeNotAvail, Reserved for maintenance)", "overlaps a maintenance"),
        ("ReqNodeNotAvail, May be reserved for other job", "with a higher priority"),
        ("Reservation", "scontrol show reservation"),
        ("BeginTime", "start time (--begin)"),
        ("user_env_retrieval_failed_requeued_held", "--export=NONE"),
        ("JobHeldUser", "scontrol release"),
        ("JobHeldAdmin", "administrator"),
        ("launch failed requeued held", "could not start it"),
        ("InvalidAccount", "--account"),
        ("InvalidQOS", "--qos"),
        ("AccountNotAllowed", "--partition"),
        ("COMPLETING", "still cleaning up"),
        ("state REVOKED", "another cluster"),
        ("None", "scheduler"),
    ],
)
def test_a_reason_is_explained_and_shown(reason: str, words: str) -> None:
    said = explain(reason)
    assert words in said
    assert reason.strip("()") in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("ids", "command"),
    [
        pytest.param((), "`scontrol release JOBID`", id="not known"),
        pytest.param(("98",), "`scontrol release 98`", id="a job"),
        pytest.param(("97_3",), "`scontrol release '97_[3]'`", id="a task"),
        pytest.param(
            ("97_0", "97_1", "97_5", "98"), "`scontrol release '97_[0-1,5],98'`", id="several"
        ),
    ],
)
def test_commands_in_an_explanation_have_the_ids_of_the_pending_jobs(
    ids: tuple[str, ...], command: str
) -> None:
    assert command in explain("JobHeldUser", ids)


def test_the_begin_time_of_a_requeued_job_is_explained() -> None:
    assert "about two minutes later" in explain("BeginTime", requeued=True)
    assert "about two minutes later" not in explain("BeginTime")
    assert explain("Priority", requeued=True) == explain("Priority")


def test_an_unknown_reason_is_shown_as_it_is() -> None:
    assert explain("SomethingNew") == "Slurm says: SomethingNew"
    assert explain("") == "for its turn"


@pytest.mark.parametrize(
    "reason",
    [
        "DependencyNeverSatisfied",
        "PartitionTimeLimit",
        "QOSMaxWallDurationPerJobLimit",
        "AssocMaxCpuPerJobLimit",
        "JobHeldUser",
        "JobHeldAdmin",
        "launch failed requeued held",
        "job requeued in held state",
        "InvalidAccount",
    ],
)
def test_jobs_with_these_reasons_never_start(reason: str) -> None:
    assert will_never_start(reason)


@pytest.mark.parametrize("reason", ["Priority", "Resources", "Dependency", "AssocMaxJobsLimit", ""])
def test_jobs_with_these_reasons_start_by_themselves(reason: str) -> None:
    assert not will_never_start(reason)
