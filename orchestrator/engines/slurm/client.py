"""Slurm's commands: a clean environment, a time limit on every call, its own words on failure."""

from __future__ import annotations

import logging
import os
import pwd
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.errors import EngineError

log = logging.getLogger(__name__)

QUERY_TIMEOUT_S = 45.0  # squeue gives up on a dead slurmctld by itself after 9 to 18 s
SBATCH_TIMEOUT_S = 90.0
CONTROL_TIMEOUT_S = 10.0  # scontrol ping answers at once, where all else waits for slurmctld
REACH_S = (1.0, 2.0, 4.0)  # waits between questions: a restart of slurmctld is waited out

# What an outer job or a user's profile left: SBATCH_* beats the script's own lines, SLURM_* of an
# interactive allocation leaks into the job, the others change what the clients print.
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
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})

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


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def silent(self) -> bool:
        """Whether Slurm could not be reached for the moment, rather than saying no."""
        text = self.stderr.lower()
        return self.returncode != 0 and any(words in text for words in _SILENCE)

    @property
    def words(self) -> str:
        """Slurm's own words on one line, without its prefixes."""
        lines = (self.stderr or self.stdout).splitlines()
        prefixes = (
            "sbatch: ",
            "squeue: ",
            "sacct: ",
            "scancel: ",
            "scontrol: ",
            "slurm_load_jobs ",
        )
        said: list[str] = []
        for line in lines:
            text = line.strip()
            for prefix in (*prefixes, "error: ", "fatal: "):
                text = text.removeprefix(prefix)
            if text and text not in said:
                said.append(text)
        return "; ".join(said) or f"exit status {self.returncode}"


class TimedOut(EngineError):
    """A command did not come back in time; it may still have been heard."""


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of Slurm's clients, and so of the jobs: the user's, less what is foreign."""
    return {
        name: value
        for name, value in environ.items()
        if name in _KEPT or not name.startswith(_FOREIGN)
    }


def _addressed(argv: Sequence[str], at: str | None) -> tuple[list[str], dict[str, str]]:
    """A command and its environment, for the cluster ``at`` (see ``ask``)."""
    env = environment()
    if at is not None:
        env.pop("SLURM_CLUSTERS", None)
    return [argv[0], *(["-M", at] if at else []), *argv[1:]], env


def _query_environment(env: dict[str, str]) -> dict[str, str]:
    # Times in UTC whatever the zone here; array indices of a pending array in full.
    return env | {
        "TZ": "UTC0",
        "LC_ALL": "C",
        "SLURM_TIME_FORMAT": "standard",
        "SLURM_BITSTR_LEN": "0",
    }


def ask(*argv: str, at: str | None = None, timeout_s: float = QUERY_TIMEOUT_S) -> Answer:
    """Run a query; ``EngineError`` where the command is absent or does not come back in time.

    ``at`` names the cluster to ask; empty: this machine's own, whatever SLURM_CLUSTERS says; None:
    the one that the user's environment chooses.
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
        raise TimedOut(f"{argv[0]} did not answer within {timeout_s:.0f} s; try again") from error
    return Answer(done.returncode, _text(done.stdout), _text(done.stderr))


def submit(
    argv: Sequence[str], *, at: str | None = None, timeout_s: float = SBATCH_TIMEOUT_S
) -> Answer:
    """Run sbatch with the user's environment; ``TimedOut`` where it may or may not be accepted.

    See ``ask`` for ``at``.
    It has a session of its own, so that Ctrl-C does not cut it off between Slurm's accepting the
    job and its telling us; an interrupt waits until it is through.
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
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise TimedOut(f"{argv[0]} did not answer within {timeout_s:.0f} s") from error
        except BaseException:
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return Answer(process.returncode, _text(out), _text(err))


def _not_run(program: str, error: OSError) -> EngineError:
    if isinstance(error, FileNotFoundError):
        return EngineError(f"{program} is not on PATH; is this a login node?")
    return EngineError(f"{program} cannot be run ({error.strerror})")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# Those PATHs whose scontrol was too slow once: what it tells is good to know, but not worth
# waiting for again and again.
_slow_control: set[str] = set()


def control(*words: str, at: str | None = None) -> Answer:
    """Ask ``scontrol``; ``EngineError`` where it is missing, forbidden or slow.

    Nothing depends on its answer, so it gets ``CONTROL_TIMEOUT_S`` and, once it took longer, is not
    asked again by this process.
    """
    path = os.environ.get("PATH", "")
    if path in _slow_control:
        raise TimedOut("scontrol was too slow before")
    try:
        return ask("scontrol", *words, at=at, timeout_s=CONTROL_TIMEOUT_S)
    except TimedOut:
        _slow_control.add(path)
        raise


def control_text(*words: str, at: str | None = None) -> str:
    """What ``scontrol`` prints; nothing where it, or a controller, does not answer.

    It is preceded by a ping, which tells at once where a controller is down.
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
    """Why Slurm does not answer; None where it does.

    ``scontrol ping`` tells at once. Where a site has no scontrol for users, or a slow one, squeue
    is asked, without which no run can be followed.
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
    """Return once Slurm answers; ``EngineError`` where it does not for some seconds.

    ``otherwise`` is what else the user can do, as the end of a sentence.
    To be called ahead of work: what is begun has more patience, as there is more to lose.
    """
    for wait_s in (*REACH_S, None):
        why = silence(at)
        if why is None:
            return
        if wait_s is not None:
            log.warning("Slurm does not answer: %s; trying again in %.0f s", why, wait_s)
            threading.Event().wait(wait_s)
    raise EngineError(
        f"Slurm does not answer: {why}. Nothing was submitted; try again later{otherwise}"
    )


def user() -> str:
    """This user, as squeue and scancel take one."""
    return str(os.geteuid())


def user_name(uid: str) -> str:
    """The name of a uid, if it has one."""
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        return uid
