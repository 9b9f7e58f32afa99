"""Explains Slurm's reasons why a job waits, with what the user can do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from orchestrator.units import indices

# What a reason means; the reason itself is shown in brackets. JOBID becomes the jobs' ids.
# https://slurm.schedmd.com/resource_limits.html and job_reason_codes.html
_WAITS = {
    "Priority": "other jobs come first; it starts when its turn comes",
    "Resources": "for free nodes; less -c, --mem or --time may start it sooner (`cancel`, then "
    "`resume` with them)",
    "Dependency": "for the job before it to end",
    "JobArrayTaskLimit": "for its turn: as many tasks as --parallel allows are running",
    "BeginTime": "until its start time (--begin)",
    "ReqNodeNotAvail": "the nodes it needs are down, drained or reserved; it starts once they are "
    "available, or `cancel` and `resume` with another --partition or --exclude-nodes",
    "NodeDown": "a node it needs is down; `cancel`, then `resume` with --exclude-nodes",
    "Reservation": "for its reservation to begin, or to have free nodes (`scontrol show "
    "reservation` shows when)",
    "PartitionDown": "the partition is down; it starts when the site brings it up, or `cancel` "
    "and `resume` with another --partition",
    "PartitionInactive": "the partition starts no jobs now; wait, or `cancel` and `resume` with "
    "another --partition",
    "NodeConfig": "no node has what it requests; `cancel`, then `resume` with less",
    "Licenses": "for a licence to become free",
    "Prolog": "its node is being prepared",
    "Cleaning": "its node is being cleaned up after an earlier attempt",
    "COMPLETING": "it has ended, but Slurm is still cleaning up on its node; if that does not end, "
    "ask the site's support",
    "SUSPENDED": "Slurm has suspended it, probably for a job with a higher priority; it continues "
    "from where it is once Slurm resumes it",
    "STOPPED": "its processes were stopped (SIGSTOP); `scancel --signal=CONT JOBID` continues them",
    "NonZeroExitCode": "it ended with an error",
    "TimeLimit": "it reached its time limit",
    "InactiveLimit": "it was inactive for too long",
    "SystemFailure": "Slurm itself failed; it will try again",
    "FrontEndDown": "the machine that starts jobs is down; ask the site's support",
    "BurstBufferResources": "for the burst buffer",
    "BurstBufferStageIn": "for the burst buffer to be filled",
    "FedJobLock": "for the clusters of the federation to agree",
    "state REVOKED": "another cluster of the federation has started it, and accounting does not "
    "know it yet; `squeue -M all` shows it there",
    "MaxRequeueExceeded": "it was requeued too often; see its log, then `cancel` and `resume`",
    "RaisedSignal": "it was ended by a signal",
    "None": "for the scheduler to consider it",
    "MaxSubmitJobsLimit": "your limit of submitted jobs is reached; it waits for some to end",
}
# Jobs with these reasons never start by themselves.
_STUCK = {
    "DependencyNeverSatisfied": "the job before it failed, so it will never start; `resume` "
    "cancels it and continues",
    "JobHeldUser": "it is held by its owner; `scontrol release JOBID` releases it",
    "JobHeldAdmin": "it is held by an administrator; ask the site's support why",
    "JobHoldMaxRequeue": "it was requeued too often and is held now; see its log, then `cancel` "
    "and `resume`",
    "JobLaunchFailure": "its node could not start it; see its log and the node, then `scontrol "
    "release JOBID`, or `cancel` and `resume`",
    "ReservationDeleted": "its reservation was deleted; `cancel`, then `resume` with another "
    "--reservation",
    "InvalidAccount": "its account is invalid; `cancel`, then `resume` with another --account",
    "InvalidQOS": "its QOS is invalid; `cancel`, then `resume` with another --qos",
    "AccountNotAllowed": "its account may not use this partition; `cancel`, then `resume` with "
    "another --account or --partition",
    "QOSNotAllowed": "its QOS may not be used in this partition; `cancel`, then `resume` with "
    "another --qos or --partition",
    "PartitionTimeLimit": "it requests more time than the partition allows, so it will never "
    "start; `cancel`, then `resume --time` with less (`sinfo -o '%P %l'` shows the limits)",
    "PartitionNodeLimit": "it requests more nodes or memory than the partition has; `cancel`, "
    "then `resume` with less --mem or -c, or another --partition",
    "PartitionConfig": "no node of the partition has what it requests; `cancel`, then `resume` "
    "with less --mem or -c, or another --partition",
    "BadConstraints": "no node has what it requests; `cancel`, then `resume` with another "
    "--constraint, --mem or -c",
}

# The same for the beginnings of reasons; the first that matches is used.
_STUCK_PATTERNS = {
    r"launch failed requeued held": _STUCK["JobLaunchFailure"],
    r"job requeued in held state": _STUCK["JobHeldUser"],
    r"user.env.retrieval": "its node could not load your login environment, which --export=NONE "
    "requires; check what your shell's profile does there, then `scontrol release JOBID`, or "
    "`cancel` and `resume` without that option",
    r"(Assoc|QOS)\w*(MaxWall|MaxTime)": "it requests more time than your account or QOS allows, "
    "so it will never start; `cancel`, then `resume --time` with less",
    r"(Assoc|QOS)\w*(PerJob|PerNode)": "it requests more than your account or QOS allows a job, "
    "so it will never start; `cancel`, then `resume` with less --mem or -c",
}
_WAITS_PATTERNS = {
    r"ReqNodeNotAvail.*maintenance": "its time limit overlaps a maintenance of the nodes; it "
    "starts after that, or earlier with less --time (`scontrol show reservation` shows when; "
    "`cancel`, then `resume --time`)",
    r"ReqNodeNotAvail.*reserved for other job": "the nodes it needs are drained, or reserved for "
    "jobs with a higher priority",
    r"ReqNodeNotAvail": _WAITS["ReqNodeNotAvail"],
    r"Nodes required for job are DOWN": _WAITS["ReqNodeNotAvail"],
    r"(Assoc|QOS)\w*(Minutes|Mins|RunMin)": "your account or QOS has used up its compute time; "
    "ask its owner for more, or `cancel` and `resume` with another --account or --qos",
    r"(Assoc|QOS)\w*Min": "it requests less than the minimum of your account or QOS; `cancel`, "
    "then `resume` with more",
    r"(Assoc|QOS)\w*Submit": "your account or QOS has reached its limit of submitted jobs; it "
    "waits for some to end",
    r"(Assoc|QOS)\w*Job": "your account or QOS has reached its limit of running jobs; it waits "
    "for some to end",
    r"(Assoc|QOS)": "your account or QOS has reached its limit of resources in use; it waits for "
    "jobs to end",
    r"Reservation|Resv": _WAITS["Reservation"],
    r"Partition": _STUCK["PartitionConfig"],
    r"BurstBuffer": _WAITS["BurstBufferResources"],
}

# A requeued job waits until the credential of its last start has expired: 120 s by default
# (slurm.conf(5), AuthInfo, cred_expire).
_REQUEUED = "it was requeued, and Slurm starts a requeued job about two minutes later"


def explain(reason: str, job_ids: Sequence[str] = (), *, requeued: bool = False) -> str:
    """Why jobs wait, as a text after "waiting", with Slurm's reason in brackets.

    Commands in it have ``job_ids``; ``requeued``: the jobs have run before.
    """
    word = reason.strip().strip("()")
    words = _found(word, _STUCK, _STUCK_PATTERNS) or _found(word, _WAITS, _WAITS_PATTERNS)
    if requeued and word == "BeginTime":
        words = _REQUEUED
    if words is None:
        return f"Slurm says: {word}" if word else "for its turn"
    ids = shlex.quote(_list(job_ids)) if job_ids else "JOBID"
    return f"{words.replace('JOBID', ids)} ({word})"


def _list(job_ids: Sequence[str]) -> str:
    """Ids for scontrol and scancel: ``7,12_[3-5]``."""
    tasks: dict[str, list[int]] = {}
    for job_id in job_ids:
        base, _, index = job_id.partition("_")
        tasks.setdefault(base, []).extend([int(index)] if index.isdigit() else [])
    return ",".join(f"{base}_[{indices(of)}]" if of else base for base, of in tasks.items())


def will_never_start(reason: str) -> bool:
    """Whether a job with this reason will never start without intervention."""
    return _found(reason.strip().strip("()"), _STUCK, _STUCK_PATTERNS) is not None


def _found(word: str, exact: Mapping[str, str], patterns: Mapping[str, str]) -> str | None:
    matching = (
        words for pattern, words in patterns.items() if re.match(pattern, word, re.IGNORECASE)
    )
    return exact.get(word) or next(matching, None)
