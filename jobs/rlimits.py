"""Limits of this process (getrlimit(2)): messages for limits that are reached, with a remedy.

Slurm gives jobs the soft limits of the shell that submitted them (sbatch's ``--propagate``), and
processes on this machine inherit them.
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass

# SIGXCPU comes this long before the hard limit of CPU time, at which the kernel sends SIGKILL.
_CPU_MARGIN_S = 5


@dataclass(frozen=True)
class Rlimit:
    """One kind of limit that the shell's ``ulimit`` sets."""

    number: int  # of getrlimit
    letter: str  # of ulimit
    rule: str  # with {} for the amount
    unit: int = 1  # by which the limit is divided for messages

    @property
    def soft(self) -> int | None:
        """The effective limit in bytes, seconds or a number; None if there is none."""
        soft, hard = resource.getrlimit(self.number)
        if self.number == resource.RLIMIT_CPU and 0 < hard - soft <= _CPU_MARGIN_S:
            return hard  # see `watch_cpu_limit`
        return None if soft == resource.RLIM_INFINITY else soft

    @property
    def fact(self) -> str | None:
        """A message with the limit; None if there is none."""
        soft = self.soft
        if soft is None:
            return None
        amount = f"{soft / self.unit:,.1f}".removesuffix(".0")
        return f"{self.rule.format(amount)} here (ulimit -{self.letter})"

    def reached(self) -> str | None:
        """A message with the limit and the remedy; None if there is none."""
        return None if self.fact is None else f"{self.fact}; {self.remedy}"

    @property
    def remedy(self) -> str:
        """How to raise the limit."""
        soft, (_, hard) = self.soft, resource.getrlimit(self.number)
        raisable = hard != soft
        if "SLURM_JOB_ID" in os.environ:
            if raisable:
                return (
                    "the job inherited this limit from the shell that launched it: `resume` "
                    "submits with --propagate=NONE, as does `launch "
                    "--sbatch-arg=--propagate=NONE`"
                )
            return "it is a limit of the node: ask the site's support to raise it"
        if raisable:
            most = "unlimited" if hard == resource.RLIM_INFINITY else "hard"
            return f"raise it in this shell (`ulimit -S{self.letter} {most}`), then try again"
        return (
            "this shell cannot raise it: try again in a login shell or on a machine without this "
            "limit, or ask the site's support"
        )


FILE_SIZE = Rlimit(resource.RLIMIT_FSIZE, "f", "files are limited to {} MB", 10**6)
CPU_TIME = Rlimit(resource.RLIMIT_CPU, "t", "processes are limited to {} s of CPU time")
ADDRESS_SPACE = Rlimit(
    resource.RLIMIT_AS, "v", "processes are limited to {} MB of address space", 10**6
)
DATA = Rlimit(resource.RLIMIT_DATA, "d", "processes are limited to {} MB of data", 10**6)
OPEN_FILES = Rlimit(resource.RLIMIT_NOFILE, "n", "processes are limited to {} open files")

# The limits that a task may reach.
OF_TASKS = (FILE_SIZE, CPU_TIME, ADDRESS_SPACE, DATA)

_BY_ERRNO = {
    errno.EFBIG: (FILE_SIZE,),
    errno.EMFILE: (OPEN_FILES,),
    errno.ENOMEM: (ADDRESS_SPACE, DATA),
}
_NO_THREAD = "can't start new thread"  # CPython's message in a RuntimeError
# fork(2) fails with EAGAIN for either of these limits.
_NO_PROCESS = (
    "no more processes or threads can be started here: end some, or have their limit raised "
    "(ulimit -u, or pids.max of the control group), then try again"
)


def reached(error: BaseException) -> str | None:
    """The limit of this process that caused ``error``, with a remedy; None if no limit did."""
    limits: tuple[Rlimit, ...] = ()
    otherwise = None
    if isinstance(error, MemoryError):
        limits = (ADDRESS_SPACE, DATA)
    elif isinstance(error, OSError):
        limits = _BY_ERRNO.get(error.errno or 0, ())
        otherwise = _NO_PROCESS if error.errno == errno.EAGAIN else None
    elif isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        limits = (ADDRESS_SPACE,)  # a thread's stack takes some of it
        otherwise = _NO_PROCESS
    return next((text for limit in limits if (text := limit.reached())), otherwise)


def may_be_why() -> str:
    """A text on limits that can end a process without a message; empty if there are none."""
    facts = [limit.fact for limit in (ADDRESS_SPACE, DATA, CPU_TIME) if limit.fact]
    return f"; a limit may be the cause: {', '.join(facts)}" if facts else ""


def watch_cpu_limit() -> str:
    """Arrange that SIGXCPU comes some seconds before SIGKILL; returns the message for it.

    `ulimit -t` sets the soft and the hard limit to the same value, and then the kernel sends only
    SIGKILL (setrlimit(2)). It also raises the soft limit with each SIGXCPU, so the user's value has
    to be read now.
    """
    message = CPU_TIME.reached()
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        ahead = max(1, hard - min(_CPU_MARGIN_S, max(1, hard // 4)))
        if soft == resource.RLIM_INFINITY or soft > ahead:
            resource.setrlimit(resource.RLIMIT_CPU, (ahead, hard))
    return message or "this process received SIGXCPU: its CPU time is used up"
