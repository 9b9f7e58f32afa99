"""Slurm's reasons for a job's waiting, in plain words with what can be done about it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from orchestrator.units import indices

# https://slurm.schedmd.com/resource_limits.html and job_reason_codes.html. The first pattern that
# is found at the beginning of a reason counts; the word itself is shown in brackets.
_EXACT: dict[str, str] = {
    "Priority": "other jobs come first; it starts when its turn comes",
    "Resources": "for free nodes; asking for less (-c, --mem, --time) may start it sooner",
    "Dependency": "for the job before it to end",
    "DependencyNeverSatisfied": "the job before it failed, so it will never start; "
    "`resume` clears it away and goes on",
    "JobArrayTaskLimit": "for its turn: as many tasks as --parallel allows are running",
    "BeginTime": "until the time it may begin at",
    "JobHeldUser": "it is held by its owner; `scontrol release JOBID` lets it go",
    "JobHeldAdmin": "it is held by an administrator; ask the site's support why",
    "JobHoldMaxRequeue": "it was requeued too often and is held now; look at its log, "
    "then `cancel` and `resume`",
    "JobLaunchFailure": "its node could not start it; see its log and the node, then "
    "`scontrol release JOBID`, or `cancel` and `resume`",
    "ReqNodeNotAvail": "the nodes it needs are down, drained or reserved; it starts once they are "
    "back, or leave them out with --exclude-nodes",
    "NodeDown": "a node it needs is down; leave it out with --exclude-nodes",
    "Reservation": "for its reservation to begin, or to have free nodes "
    "(`scontrol show reservation` tells when)",
    "ReservationDeleted": "its reservation is gone; `cancel`, then `resume --reservation` another",
    "InvalidAccount": "its account is not valid; `cancel`, then `resume --account` another",
    "InvalidQOS": "its QOS is not valid; `cancel`, then `resume --qos` another",
    "AccountNotAllowed": "its account may not use this partition; `cancel`, then `resume` with "
    "another --account or --partition",
    "QOSNotAllowed": "its QOS may not be used in this partition; `cancel`, then `resume` with "
    "another --qos or --partition",
    "PartitionDown": "the partition is down; it starts when the site brings it up, or `cancel` "
    "and `resume --partition` another",
    "PartitionInactive": "the partition takes no jobs now; wait, or `cancel` and "
    "`resume --partition` another",
    "PartitionTimeLimit": "it asks for more time than the partition allows, so it will never "
    "start; `cancel`, then `resume --time` with less (`sinfo -o '%P %l'` shows the limits)",
    "PartitionNodeLimit": "it asks for more nodes or memory than the partition has; `cancel`, "
    "then `resume` with less --mem or -c, or another --partition",
    "PartitionConfig": "it asks for what no node of the partition has; `cancel`, then `resume` "
    "with less --mem or -c, or another --partition",
    "BadConstraints": "no node has what it asks for; `cancel`, then `resume` with another "
    "--constraint, --mem or -c",
    "NodeConfig": "no node has what it asks for; `cancel`, then `resume` with less",
    "Licenses": "for a licence to become free",
    "Prolog": "its node is being prepared",
    "Cleaning": "its node is tidied up after an earlier attempt",
    "NonZeroExitCode": "it ended with an error",
    "TimeLimit": "it reached its time limit",
    "InactiveLimit": "it was inactive for too long",
    "SystemFailure": "Slurm itself failed; it is tried again",
    "FrontEndDown": "the machine that starts jobs is down; ask the site's support",
    "BurstBufferResources": "for the burst buffer",
    "BurstBufferStageIn": "for the burst buffer to be filled",
    "FedJobLock": "for the clusters of the federation to agree",
    "MaxRequeueExceeded": "it was requeued too often; look at its log, then `cancel` and `resume`",
    "RaisedSignal": "it ended by a signal",
    "None": "for the scheduler to look at it",
}
_EXACT["MaxSubmitJobsLimit"] = "your limit of submitted jobs is reached; it waits for some to end"

_MAINTENANCE = (
    "its time limit reaches into a maintenance of the nodes; it starts after that, or earlier with "
    "less --time (`scontrol show reservation` tells when; `cancel`, then `resume --time`)"
)

_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"ReqNodeNotAvail.*maintenance", _MAINTENANCE),
    (
        r"ReqNodeNotAvail.*reserved for other job",
        "the nodes it needs are drained, or kept for jobs with a higher priority",
    ),
    (r"launch failed requeued held", _EXACT["JobLaunchFailure"]),
    (r"job requeued in held state", _EXACT["JobHeldUser"]),
    (
        r"user.env.retrieval",
        (
            "its node could not load your login environment, as --export=NONE asks for; check what "
            "your shell's profile does there, then `scontrol release JOBID`, or `cancel` and "
            "`resume` without that option"
        ),
    ),
    (r"ReqNodeNotAvail", _EXACT["ReqNodeNotAvail"]),
    (r"Nodes required for job are DOWN", _EXACT["ReqNodeNotAvail"]),
    (
        r"(Assoc|QOS|Association)\w*(MaxWall|MaxTime)",
        (
            "it asks for more time than your account or QOS allows, so it will never start; "
            "`cancel`, then `resume --time` with less"
        ),
    ),
    (
        r"(Assoc|QOS|Association)\w*(PerJob|PerNode)",
        (
            "it asks for more than your account or QOS allows a job, so it will never start; "
            "`cancel`, then `resume` with less --mem or -c"
        ),
    ),
    (
        r"(Assoc|QOS|Association)\w*(Minutes|Mins|RunMin)",
        (
            "your account or QOS has used up its compute time; ask its owner for more, or `cancel` "
            "and `resume` with another --account or --qos"
        ),
    ),
    (
        r"(Assoc|QOS|Association)\w*Min",
        (
            "it asks for less than the least that your account or QOS takes; `cancel`, then "
            "`resume` with more"
        ),
    ),
    (
        r"(Assoc|QOS|Association)\w*Submit",
        "your account or QOS has reached its limit of submitted jobs; it waits for some to end",
    ),
    (
        r"(Assoc|QOS|Association)\w*(Jobs|Job)",
        "your account or QOS runs as many jobs as it may; it waits for some to end",
    ),
    (
        r"(Assoc|QOS|Association)",
        "your account or QOS uses as much as it may at once; it waits for other jobs to end",
    ),
    (r"Reservation|Resv", _EXACT["Reservation"]),
    (r"Partition", _EXACT["PartitionConfig"]),
    (r"BurstBuffer", _EXACT["BurstBufferResources"]),
)

_NEVER = re.compile(
    r"DependencyNeverSatisfied|PartitionTimeLimit|PartitionNodeLimit|PartitionConfig|"
    r"BadConstraints|InvalidAccount|InvalidQOS|AccountNotAllowed|QOSNotAllowed|JobHeld|"
    r"JobHoldMaxRequeue|JobLaunchFailure|launch failed requeued held|job requeued in held|"
    r"ReservationDeleted|user.env.retrieval|"
    r"(Assoc|QOS)\w*(MaxWall|PerJob|PerNode)"
)


# A requeued job waits until the credential of its last start has expired: 120 s unless the site
# says otherwise (slurm.conf(5), AuthInfo, cred_expire).
_REQUEUED = "it was requeued, and Slurm starts a requeued job about two minutes later"


def explain(reason: str, job_ids: Sequence[str] = (), *, requeued: bool = False) -> str:
    """Why jobs wait, in words that go on from "waiting", with Slurm's own word in brackets.

    What they say to type is about ``job_ids``; ``requeued``: they have run before.
    """
    word = reason.strip().strip("()")
    # Where tasks of an array wait for different things Slurm names them all: "JobHeldUser,None".
    known = (words for pattern, words in _PATTERNS if re.match(pattern, word, re.IGNORECASE))
    words = _EXACT.get(word) or next(known, None) or _EXACT.get(word.partition(",")[0])
    if requeued and word == "BeginTime":
        words = _REQUEUED
    if words is None:
        return f"Slurm says: {word}" if word else "for its turn"
    ids = shlex.quote(_list(job_ids)) if job_ids else "JOBID"
    return f"{words.replace('JOBID', ids)} ({word})"


def _list(job_ids: Sequence[str]) -> str:
    """Ids as scontrol and scancel take them: ``7,12_[3-5]``."""
    tasks: dict[str, list[int]] = {}
    for job_id in job_ids:
        base, _, index = job_id.partition("_")
        tasks.setdefault(base, []).extend([int(index)] if index.isdigit() else [])
    return ",".join(f"{base}_[{indices(of)}]" if of else base for base, of in tasks.items())


def waits_in_vain(reason: str) -> bool:
    """Whether a job with this reason will not start unless somebody does something."""
    return _NEVER.match(reason.strip().strip("()")) is not None
