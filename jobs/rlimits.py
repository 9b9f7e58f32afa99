"""Limits of this process (getrlimit(2)): what they say when they are reached, and the remedy.

Slurm gives jobs the soft limits of the shell that submitted them (sbatch's ``--propagate``), and
processes on this machine inherit them.
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass

# The soft limit of processor time comes so much ahead of the hard one, at which the kernel kills.
_CPU_MARGIN_S = 5


@dataclass(frozen=True)
class Rlimit:
    """One kind of limit, as the shell's ``ulimit`` knows it."""

    number: int  # of getrlimit
    letter: str  # of ulimit
    rule: str  # with {} for the amount
    unit: int = 1  # bytes, or things

    @property
    def soft(self) -> int | None:
        """The limit that holds, in bytes, seconds or things; None where there is none."""
        soft, hard = resource.getrlimit(self.number)
        if self.number == resource.RLIMIT_CPU and 0 < hard - soft <= _CPU_MARGIN_S:
            return hard  # see `watch_cpu_limit`
        return None if soft == resource.RLIM_INFINITY else soft

    @property
    def fact(self) -> str | None:
        """What the limit is; None where there is none."""
        soft = self.soft
        if soft is None:
            return None
        amount = f"{soft / self.unit:,.1f}".removesuffix(".0")
        return f"{self.rule.format(amount)} here (ulimit -{self.letter})"

    def reached(self) -> str | None:
        """What the limit is and what to do; None where there is none."""
        return None if self.fact is None else f"{self.fact}; {self.remedy}"

    @property
    def remedy(self) -> str:
        """How to get rid of the limit."""
        soft, (_, hard) = self.soft, resource.getrlimit(self.number)
        raisable = hard != soft
        if "SLURM_JOB_ID" in os.environ:
            if raisable:
                return (
                    "the job has this limit from the shell that launched: `resume` submits with "
                    "--propagate=NONE, as does `launch --sbatch-arg=--propagate=NONE`"
                )
            return "it is the node's own limit: ask the site's support to raise it"
        if raisable:
            most = "unlimited" if hard == resource.RLIM_INFINITY else "hard"
            return f"raise it in this shell (`ulimit -S{self.letter} {most}`), then try again"
        return (
            "this shell may not raise it: try again in a login shell or on a machine that has no "
            "such limit, or ask the site's support"
        )


FILE_SIZE = Rlimit(resource.RLIMIT_FSIZE, "f", "files are limited to {} MB", 10**6)
CPU_TIME = Rlimit(resource.RLIMIT_CPU, "t", "processes are limited to {} s of processor time")
ADDRESS_SPACE = Rlimit(
    resource.RLIMIT_AS, "v", "processes are limited to {} MB of address space", 10**6
)
DATA = Rlimit(resource.RLIMIT_DATA, "d", "processes are limited to {} MB of data", 10**6)
OPEN_FILES = Rlimit(resource.RLIMIT_NOFILE, "n", "processes are limited to {} open files")

# What a shell may limit and a task may reach.
OF_TASKS = (FILE_SIZE, CPU_TIME, ADDRESS_SPACE, DATA)

_BY_ERRNO = {
    errno.EFBIG: (FILE_SIZE,),
    errno.EMFILE: (OPEN_FILES,),
    errno.ENOMEM: (ADDRESS_SPACE, DATA),
}
_NO_THREAD = "can't start new thread"  # CPython's words, of a RuntimeError


def reached(error: BaseException) -> str | None:
    """Which limit of this process ``error`` comes of and what to do; None where of no limit."""
    limits: tuple[Rlimit, ...] = ()
    if isinstance(error, MemoryError):
        limits = (ADDRESS_SPACE, DATA)
    elif isinstance(error, OSError):
        limits = _BY_ERRNO.get(error.errno or 0, ())
    elif isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        limits = (ADDRESS_SPACE,)  # a thread's stack takes some of it
    return next((text for limit in limits if (text := limit.reached())), None)


def may_be_why() -> str:
    """The limits that can end a process without a word, to go on from what ended; often empty."""
    facts = [limit.fact for limit in (ADDRESS_SPACE, DATA, CPU_TIME) if limit.fact]
    return f"; a limit may be the cause: {', '.join(facts)}" if facts else ""


def watch_cpu_limit() -> str:
    """What to say when SIGXCPU comes, which from now on comes some seconds ahead of SIGKILL.

    `ulimit -t` sets the soft and the hard limit to one number, and then the kernel sends SIGKILL
    alone (setrlimit(2)). It also raises the soft limit with each SIGXCPU, so that the user's own
    number has to be read now.
    """
    said = CPU_TIME.reached()
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        ahead = max(1, hard - min(_CPU_MARGIN_S, max(1, hard // 4)))
        if soft == resource.RLIM_INFINITY or soft > ahead:
            resource.setrlimit(resource.RLIMIT_CPU, (ahead, hard))
    return said or "this process received SIGXCPU: its processor time is used up"
