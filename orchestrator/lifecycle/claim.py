"""Who holds a destination: one small file there, made and handed on so that only one run wins."""

from __future__ import annotations

import getpass
import os
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from jobs.errors import ClaimedError, from_os_error
from jobs.model import SCHEMA, utc_now
from jobs.runtime.process import ProcessId
from jobs.storage import atomic
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import Staging

_TRIES = 100
_HELP_AFTER = 20  # looks at a takeover that stands still, before it is finished for its maker
_LOOK_S = 0.05


@dataclass(frozen=True)
class Claim:
    """What the file says."""

    run_id: str
    run_dir: str  # absolute path of the holder's run folder
    host: str  # where it was made
    user: str
    pid: int
    since: datetime
    token: str  # unlike that of any other claim ever made
    start: str = ""  # of the process ``pid``, in clock ticks since boot
    schema: int = SCHEMA

    @property
    def maker(self) -> ProcessId:
        """The process that made it."""
        return ProcessId(self.host, self.pid, self.start)


# Why a holder still holds the destination and what to do about it; None where it may be taken over.
Judge = Callable[[Claim], str | None]


def take(staging: Staging, run_dir: Path, judge: Judge) -> Claim:
    """Hold the destination for the plan's run; the claim that is in force then comes back.

    A run that holds it already goes on holding it. A holder that ``judge`` gives up is replaced;
    of several processes that try, one wins. Raises ``ClaimedError`` naming run, host and time of
    a holder that is not given up, ``StorageError`` where the destination cannot be written.
    """
    mine = _mine(staging, run_dir)
    pause = threading.Event()
    try:
        for _ in range(_TRIES):
            staging.claim.parent.mkdir(parents=True, exist_ok=True)
            try:
                _create(staging.claim, mine)
                return mine
            except FileExistsError:
                pass
            except FileNotFoundError:
                continue  # a run that ended has just tidied the folder away
            held = holder(staging)
            if held is None:
                continue
            if held.run_id == mine.run_id:
                return held
            reason = judge(held)
            if reason is not None:
                raise _refusal(staging, held, reason)
            if _take_over(staging, held, mine, pause):
                return mine
    except OSError as error:
        raise from_os_error(error, doing=f"claiming {quoted(str(staging.dest))}") from error
    raise ClaimedError(
        f"{staging.dest} is being claimed by several runs at once; try again in a minute"
    )


def check(staging: Staging, judge: Judge) -> None:
    """Raise what ``take`` would raise of another run; nothing is touched."""
    held = holder(staging)
    reason = judge(held) if held is not None else None
    if held is not None and reason is not None:
        raise _refusal(staging, held, reason)


def release(staging: Staging, run_id: str) -> None:
    """Let go of the destination if that run holds it; nothing happens otherwise."""
    held = holder(staging)
    if held is None or held.run_id != run_id:
        return
    step = _step(staging, held)
    try:
        _create(step, held)  # from here on nobody else takes this claim over
    except FileExistsError:
        return  # somebody is doing so, and had a reason
    except OSError as error:
        raise from_os_error(error, doing=f"releasing {quoted(str(staging.dest))}") from error
    try:
        if holder(staging) == held:
            staging.claim.unlink(missing_ok=True)
    finally:
        step.unlink(missing_ok=True)
    with suppress(OSError):
        staging.claim.parent.rmdir()  # only if nothing of any run is left in there


def holder(staging: Staging) -> Claim | None:
    """The claim in force; ``ClaimedError`` where the file makes no sense."""
    try:
        return atomic.read_json(staging.claim, Claim)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ClaimedError(
            f"{staging.dest} is in use by another user's run, and {staging.claim} cannot be "
            "read; choose another --dest"
        ) from error
    except msgspec.DecodeError as error:
        raise ClaimedError(
            f"{staging.claim} is invalid ({error}); check that no run is still writing to "
            f"{staging.dest}, then remove that file"
        ) from error


def _mine(staging: Staging, run_dir: Path) -> Claim:
    me = ProcessId.here()
    return Claim(
        run_id=staging.plan.run_id,
        run_dir=str(run_dir.absolute()),
        host=me.host,
        user=_user(),
        pid=me.pid,
        start=me.start,
        since=utc_now(),
        token=secrets.token_hex(8),
    )


def _create(path: Path, claim: Claim) -> None:
    """Write ``claim`` only if nothing is there; others may read who holds a shared folder."""
    atomic.create_bytes(path, atomic.dumps(claim), mode=0o644)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in containers
        return str(os.geteuid())


def _step(staging: Staging, held: Claim) -> Path:
    """The file by which one process alone replaces ``held``, or removes it."""
    return staging.claim.with_name(f".claim-after-{held.token}.json")


def _take_over(staging: Staging, held: Claim, mine: Claim, pause: threading.Event) -> bool:
    """Replace ``held`` by ``mine``, unless somebody else does; whether that was done.

    Only who makes the step may replace ``held``; while the step is there ``held`` stays in force,
    so that seeing both is leave to rename the one over the other. That holds for a bystander too:
    a step whose maker died is finished by whoever finds it, and then judged like any claim.
    """
    step = _step(staging, held)
    try:
        _create(step, mine)
    except FileExistsError:
        for _ in range(_HELP_AFTER):
            pause.wait(_LOOK_S)
            if holder(staging) != held:
                return False
        with suppress(FileNotFoundError):
            step.rename(staging.claim)
        return False
    if holder(staging) != held:
        step.unlink(missing_ok=True)
        return False
    try:
        step.rename(staging.claim)
    except FileNotFoundError:
        pass  # a bystander was quicker
    return holder(staging) == mine


def _refusal(staging: Staging, held: Claim, reason: str) -> ClaimedError:
    return ClaimedError(
        f"{staging.dest} is in use by run {held.run_id} of {held.user} (launched on {held.host}, "
        f"since {held.since:%Y-%m-%d %H:%M:%S} UTC, run folder {held.run_dir}): {reason}"
    )
