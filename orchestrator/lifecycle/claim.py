"""Claims: a small file in a destination, which only one run at a time can own."""

from __future__ import annotations

import getpass
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from jobs.errors import (
    ClaimedError,
    OrchestrateError,
    PreflightError,
    from_os_error,
)
from jobs.model import SCHEMA, utc_now
from jobs.runtime.process import ProcessId
from jobs.storage import atomic, presence
from jobs.storage.run_folder import RunFolder
from jobs.storage.safe_paths import quoted
from jobs.storage.staging import Staging
from orchestrator.inspection.evidence import state_of
from orchestrator.inspection.run_list import run_word
from orchestrator.inspection.state import RunStatus

_TRIES = 100
_HELP_AFTER = 20  # checks of an unfinished takeover before another process completes it
_LOOK_S = 0.05


@dataclass(frozen=True)
class Claim:
    """The content of the file."""

    run_id: str
    run_dir: str  # absolute path of the owner's run folder
    host: str  # where it was made
    user: str
    pid: int
    since: datetime
    token: str  # unique for each claim
    start: str = ""  # of the process ``pid``, in clock ticks since boot
    schema: int = SCHEMA

    @property
    def maker(self) -> ProcessId:
        """The process that made it."""
        return ProcessId(self.host, self.pid, self.start)


_HELD = {
    RunStatus.PLANNED: "it is being launched at this moment; see `status {run}`",
    RunStatus.RUNNING: "it is running; see `status {run}`, or stop it with `cancel {run}`",
    RunStatus.INCOMPLETE: (
        "it is incomplete; finish it with `resume {run}`, or release the destination with "
        "`cancel {run}`"
    ),
}


def _why_held(held: Claim) -> str | None:
    """Why an owner still owns the destination, and what to do; None if it may be taken over."""
    other = RunFolder(Path(held.run_dir))
    if not presence.may_exist(other.path):
        if held.maker.is_here:
            return None
        return (
            f"its run folder is not visible on this machine; check on {held.host}, and if that "
            "run no longer exists, remove .incoming/claim.json in the destination"
        )
    try:
        state = state_of(other)
    except OrchestrateError as error:
        return f"it is unknown whether it is still running ({error.message})"
    if state.status is RunStatus.PLANNED and not held.maker.alive:
        return None
    return _HELD[state.status].format(run=run_word(other)) if state.status in _HELD else None


def take(
    staging: Staging, run_dir: Path, why_held: Callable[[Claim], str | None] = _why_held
) -> Claim:
    """Claim the destination for the plan's run; returns the valid claim.

    A run that owns it already keeps it, with the present path of its folder. An owner for which
    ``why_held`` returns None is replaced; of several processes that try, one wins. Raises
    ``ClaimedError`` with run, host and time of any other owner, ``PreflightError`` if a file is in
    place of the destination, ``StorageError`` if it cannot be written to.
    """
    mine = _mine(staging, run_dir)
    try:
        for _ in range(_TRIES):
            staging.claim.parent.mkdir(parents=True, exist_ok=True)
            try:
                _create(staging.claim, mine)
                return mine
            except FileExistsError:
                pass
            except FileNotFoundError:
                continue  # a run that ended has just removed the folder
            held = holder(staging)
            if held is None:
                continue
            is_own = held.run_id == mine.run_id
            if is_own and held.run_dir == mine.run_dir:
                return held
            # A run whose folder was moved says where it is now.
            reason = None if is_own else why_held(held)
            if reason is not None:
                raise _refusal(staging, held, reason)
            if _take_over(staging, held, mine):
                return mine
    except NotADirectoryError as error:
        raise PreflightError(
            f"{quoted(str(staging.dest))} is a file, or below one; move that file away, then try "
            "again"
        ) from error
    except OSError as error:
        doing = f"claiming {quoted(str(staging.dest))}"
        raise from_os_error(error, doing=doing, then="try again") from error
    raise ClaimedError(
        f"{staging.dest} is being claimed by several runs at once; try again in a minute"
    )


def problems(staging: Staging) -> list[str]:
    """Why ``take`` would refuse the destination because of another run; changes nothing."""
    try:
        held = holder(staging)
    except ClaimedError as error:
        return [error.message]
    is_other = held is not None and held.run_id != staging.plan.run_id
    reason = _why_held(held) if held is not None and is_other else None
    return [_refusal(staging, held, reason).message] if held is not None and reason else []


def release(staging: Staging, run_id: str) -> None:
    """Release the destination if that run owns it; otherwise do nothing."""
    held = holder(staging)
    if held is None or held.run_id != run_id:
        return
    step = _step(staging, held)
    try:
        _create(step, held)  # from here on no other process takes this claim over
    except FileExistsError:
        return  # another process is taking it over
    except OSError as error:
        raise from_os_error(error, doing=f"releasing {quoted(str(staging.dest))}") from error
    try:
        if holder(staging) == held:
            staging.claim.unlink(missing_ok=True)
    finally:
        step.unlink(missing_ok=True)
    with suppress(OSError):
        staging.claim.parent.rmdir()  # only succeeds if no run has files in it


def holder(staging: Staging) -> Claim | None:
    """The valid claim; ``ClaimedError`` if the file is invalid."""
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
    """Create the file; others may read who has claimed a shared folder."""
    atomic.create_bytes(path, atomic.dumps(claim), mode=0o644)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, for example in containers
        return str(os.geteuid())


def _step(staging: Staging, held: Claim) -> Path:
    """The file whose creator may replace or remove ``held``."""
    return staging.claim.with_name(f".claim-after-{held.token}.json")


def _take_over(staging: Staging, held: Claim, mine: Claim) -> bool:
    """Replace ``held`` with ``mine``, unless another process does; returns whether it was done.

    Only the process that creates the step file may replace ``held``. While the step exists,
    ``held`` stays valid, so a process that sees both may rename the step over the claim. If the
    creator of a step died, another process completes the takeover, and then examines the new claim
    like any other.
    """
    step = _step(staging, held)
    try:
        _create(step, mine)
    except FileExistsError:
        for _ in range(_HELP_AFTER):
            time.sleep(_LOOK_S)
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
        pass  # another process completed it
    return holder(staging) == mine


def _refusal(staging: Staging, held: Claim, reason: str) -> ClaimedError:
    return ClaimedError(
        f"{staging.dest} is in use by run {held.run_id} of {held.user} (launched on {held.host}, "
        f"since {held.since:%Y-%m-%d %H:%M:%S} UTC, run folder {held.run_dir}): {reason}"
    )
