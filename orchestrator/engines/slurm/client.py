"""Calls Slurm's commands with a clean environment and timeouts, and returns their messages."""

from __future__ import annotations

import logging
import os
import pwd
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.errors import EngineError

log = logging.getLogger(__name__)

QUERY_TIMEOUT_S = 45.0  # squeue itself fails after 9 to 18 s if slurmctld is dead
SBATCH_TIMEOUT_S = 90.0
CONTROL_TIMEOUT_S = 10.0  # scontrol ping responds at once; other commands wait for slurmctld
REACH_S = (1.0, 2.0, 4.0)  # pauses between attempts, as long as a restart of slurmctld

# Variables of an outer job or a user's profile: SBATCH_* override the script's lines, SLURM_* of an
# interactive allocation get into the job, the others change the clients' output.
_FOREIGN = (
    "SBATCH_",
    "SLURM_",
    "SLURMD_",
    "SQUEUE_",
    "SACCT_",
    "SCANCEL_",
    "SINFO_",
    "SRUN_",
    "SUBMITIT_",
)
_PRESERVED = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})

_SILENCE = (
    "unable to contact slurm controller",
    "socket timed out",
    "connection refused",
    "connection timed out",
    "connection reset",
    "zero bytes were transmitted",
    "transport endpoint",
    "communications connection failure",
    "communication error",
    "temporarily unable to accept",
    "unexpected message received",
    "slurm backup controller in standby",
    "send/recv operation",
    "resource temporarily unavailable",
    "controller is in standby",
)


_PREFIXES = re.compile(
    r"^((sbatch|squeue|sacct|scancel|scontrol): |slurm_load_jobs |error: |fatal: )+"
)


@dataclass(frozen=True)
class Answer:
    """The output of a command."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def silent(self) -> bool:
        """Whether Slurm could not be reached, in contrast to a refusal."""
        text = self.stderr.lower()
        return self.returncode != 0 and any(words in text for words in _SILENCE)

    @property
    def words(self) -> str:
        """Slurm's message on one line, without its prefixes."""
        lines = (self.stderr or self.stdout).splitlines()
        messages = (_PREFIXES.sub("", line.strip()) for line in lines)
        return "; ".join(dict.fromkeys(filter(None, messages))) or f"exit status {self.returncode}"


class TimedOut(EngineError):
    """A command did not end in time; Slurm may still have received it."""


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of Slurm's clients and jobs: the user's, without the variables above."""
    return {
        name: value
        for name, value in environ.items()
        if name in _PRESERVED or not name.startswith(_FOREIGN)
    }


def _addressed(argv: Sequence[str], at: str | None) -> tuple[list[str], dict[str, str]]:
    """A command and its environment, for the cluster ``at`` (see ``ask``)."""
    env = environment()
    if at is not None:
        env.pop("SLURM_CLUSTERS", None)
    return [argv[0], *(["-M", at] if at else []), *argv[1:]], env


def _query_environment(env: dict[str, str]) -> dict[str, str]:
    # Times in UTC; all indices of a pending array.
    return env | {
        "TZ": "UTC0",
        "LC_ALL": "C",
        "SLURM_TIME_FORMAT": "standard",
        "SLURM_BITSTR_LEN": "0",
    }


def ask(*argv: str, at: str | None = None, timeout_s: float = QUERY_TIMEOUT_S) -> Answer:
    """Run a query; ``EngineError`` if the command is missing or does not end in time.

    ``at``: the name of the cluster; empty: this machine's own, regardless of SLURM_CLUSTERS; None:
    the one in the user's environment.
    """
    command, env = _addressed(argv, at)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            env=_query_environment(env),
            check=False,
        )
    except OSError as error:
        raise _not_run(argv[0], error) from error
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"{argv[0]} did not respond within {timeout_s:.0f} s; try again") from error
    return Answer(done.returncode, _text(done.stdout), _text(done.stderr))


def submit(argv: Sequence[str], *, at: str | None = None) -> Answer:
    """Run sbatch with the user's environment; ``TimedOut`` if it is unknown whether it succeeded.

    See ``ask`` for ``at``. It runs in its own session, so that Ctrl-C does not end it after Slurm
    has accepted the job and before it prints the id; an interrupt waits for its end, a second one
    does not.
    """
    command, env = _addressed(argv, at)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise _not_run(argv[0], error) from error
    with process:
        try:
            out, err = process.communicate(timeout=SBATCH_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            # A site's wrapper of sbatch too: what it started has our pipes as well.
            os.killpg(process.pid, signal.SIGKILL)
            last = Answer(1, "", _text(process.communicate()[1]))
            why = f" ({last.words})" if last.stderr else ""
            raise TimedOut(
                f"{argv[0]} did not respond within {SBATCH_TIMEOUT_S:.0f} s{why}"
            ) from error
        except BaseException:
            try:
                process.communicate(timeout=10)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
            raise
    return Answer(process.returncode, _text(out), _text(err))


def _not_run(program: str, error: OSError) -> EngineError:
    if isinstance(error, FileNotFoundError):
        return EngineError(f"{program} is not on PATH; is this a login node?")
    return EngineError(f"{program} cannot be run ({error.strerror})")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# PATHs whose scontrol was too slow once: its output is not essential, so it is not called again.
_slow_control: set[str] = set()


def control(*words: str, at: str | None = None) -> Answer:
    """Call ``scontrol``; ``EngineError`` if it is missing, forbidden or slow.

    Its output is not essential, so it has ``CONTROL_TIMEOUT_S``, and after a timeout this process
    does not call it again.
    """
    path = os.environ.get("PATH", "")
    if path in _slow_control:
        raise TimedOut("scontrol was too slow in an earlier call")
    try:
        return ask("scontrol", *words, at=at, timeout_s=CONTROL_TIMEOUT_S)
    except TimedOut:
        _slow_control.add(path)
        raise


def control_text(*words: str, at: str | None = None) -> str:
    """The output of ``scontrol``; empty if it, or a controller, does not respond.

    Pings first, which fails at once if a controller is down.
    """
    try:
        answer = control("ping", at=at)
        if "DOWN" in answer.stdout and " is UP" not in answer.stdout:
            return ""
        return control(*words, at=at).stdout
    except EngineError as error:
        log.info("%s", error.message)
        return ""


def silence(at: str | None = None) -> str | None:
    """Why Slurm does not respond; None if it does.

    Uses ``scontrol ping``, which responds at once. If a site has no scontrol for users, or a slow
    one, uses squeue, which is needed to follow a run anyway.
    """
    try:
        answer = control("ping", at=at)
        if " is UP" in answer.stdout:  # with a backup, one controller is enough
            return None
        down = [line.strip() for line in answer.stdout.splitlines() if "DOWN" in line]
        if down:
            return f"its controller is down ({'; '.join(down)})"
    except EngineError as error:
        log.info("%s", error.message)
    try:
        answer = ask("squeue", "-h", "-u", user(), at=at)
    except EngineError as error:
        return error.message
    return answer.words if answer.returncode else None


def reach(at: str | None = None, otherwise: str = "") -> None:
    """Return once Slurm responds; ``EngineError`` if it does not for some seconds.

    ``otherwise``: what else the user can do, as the end of a sentence. Call it before starting
    work; later calls wait longer, because work would be lost.
    """
    for wait_s in (*REACH_S, None):
        why = silence(at)
        if why is None:
            return
        if wait_s is not None:
            log.warning("Slurm does not respond: %s; trying again in %.0f s", why, wait_s)
            time.sleep(wait_s)
    raise EngineError(
        f"Slurm does not respond: {why}. Nothing was submitted; try again later{otherwise}"
    )


def user() -> str:
    """This user, for squeue and scancel."""
    return str(os.geteuid())


def user_name(uid: str) -> str:
    """The name of a uid, if it has one."""
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        return uid
