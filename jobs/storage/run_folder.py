"""The names of all files in a run folder, how they are read, and who may own them."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import stat
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import structs

from jobs.errors import PreflightError, RunFolderError
from jobs.model import (
    SCHEMA,
    Fetched,
    Heartbeat,
    Options,
    Part,
    Plan,
    Stage,
    Submission,
    TaskResult,
    shard_of,
)
from jobs.storage import atomic, latency, presence
from jobs.storage.staging import FileIn

T = TypeVar("T")

DEFAULT_LOG_DIR = Path("logs")  # of the run folders
_file = partial(FileIn, "path")
_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")  # the format of planning
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
NOT_PRIVATE = (
    "the file system of {} does not keep the owner and the mode of a folder, so others could write "
    "to the run"
)
OTHER_LOG_DIR = "choose another --log-dir"
_ASK_ITS_OWNER = "ask its owner, who alone can show, continue or cancel the run"


@dataclass(frozen=True)
class RunFolder:
    """``logs/RUN_ID``: the plan, the evidence and the logs of one run."""

    path: Path

    plan = _file("plan.json")
    private = _file("private.json")  # locators with their secrets, by ``SHARD_ID#FILE_INDEX``
    draft = _file("draft.json")  # the first submission, before it is made
    submissions = _file("submissions")
    events = _file("events.jsonl")
    options = _file("options.json")  # in place of the plan's, if a resume has changed some
    results = _file("results")
    shards = _file("shards")
    manifests = _file("manifests")
    carried_manifests = _file("carried")
    progress = _file("progress")
    audit = _file("audit.jsonl")
    receipt = _file("receipt.json")  # a copy of the published receipt, for a repair
    report = _file("report.html")

    @property
    def run_id(self) -> str:
        return self.path.name

    def submission(self, number: int) -> Path:
        return self.submissions / f"{number:04d}.json"

    def result(self, stage: Stage, task: int, attempt: int) -> Path:
        return self.results / stage.value / f"{task}.{attempt}.json"

    def fetched(self, shard_id: str) -> Path:
        return self.shards / f"{shard_id}.json"

    def listing(self, shard_id: str) -> Path:
        """The contents of a shard that is a folder."""
        return self.shards / f"{shard_id}.listing"

    def manifest(self, part: Part) -> Path:
        return self.manifests / f"{part.id}.jsonl"

    def carried(self, part: Part) -> Path:
        """The manifest of a part whose files come from the published dataset."""
        return self.carried_manifests / f"{part.id}.jsonl"

    def heartbeat(self, stage: Stage, task: int) -> Path:
        return self.progress / f"{stage.value}-{task}.json"

    def submitit(self, attempt: int, stage: Stage, batch: int = 0) -> Path:
        """submitit's folder; ``batch``: number of the array, if a stage has several."""
        suffix = f"-{batch}" if batch else ""
        return self.path / "submitit" / f"{attempt:04d}-{stage.value}{suffix}"

    def create(self, plan: Plan) -> None:
        """Create the folder (mode 0700) and write the plan.

        ``RunFolderError`` if it exists; ``PreflightError`` if ``check`` would refuse it, as on a
        file system without permissions, or one that has another owner for every file.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_private = create_private(self.path)
        except FileExistsError as error:
            raise RunFolderError(f"{self.path} exists already; launch again") from error
        if not is_private:
            self.path.rmdir()
            raise PreflightError(f"{NOT_PRIVATE.format(self.path.parent)}; {OTHER_LOG_DIR}")
        try:
            self.make_subfolders()
            atomic.create_json(self.plan, plan)
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def make_subfolders(self) -> None:
        """Create missing subfolders; what was removed of a run is done again."""
        for folder in (self.progress, self.results, *self._evidence()):
            folder.mkdir(mode=0o700, exist_ok=True)

    def _evidence(self) -> tuple[Path, ...]:
        """The folders in which each host creates files that others decide by."""
        results = (self.results / stage.value for stage in Stage)
        return (self.submissions, self.shards, self.manifests, *results)

    def refresh(self) -> None:
        """Make this host see all files that other hosts have created."""
        for folder in (self.path, *self._evidence()):
            atomic.refresh_folder(folder)

    def has_news(self) -> bool:
        """Whether other hosts have created files that this one sees only after a refresh."""
        before = [_names(folder) for folder in self._evidence()]
        self.refresh()
        return [_names(folder) for folder in self._evidence()] != before

    def check(self) -> None:
        """Refuse a folder that others own or can write to: its pickles could run their code."""
        try:
            status = os.lstat(self.path)
        except FileNotFoundError as error:
            raise RunFolderError(
                f"{self.path}: no such run; list runs with `websight-orchestrate runs`"
            ) from error
        except PermissionError as error:
            raise closed_to_us(self.path) from error
        if not stat.S_ISDIR(status.st_mode) or not self._has_begun():
            raise self._no_run_folder()
        if status.st_uid != os.geteuid():
            raise RunFolderError(
                f"{self.path} belongs to {_user(status.st_uid)}, not to you; {_ASK_ITS_OWNER}"
            )
        if status.st_mode & _OTHERS_WRITE:
            raise RunFolderError(
                f"{self.path} is writable by others, so its contents cannot be trusted; inspect "
                f"it, then run `chmod 700 {shlex.quote(str(self.path))}`"
            )

    def _has_begun(self) -> bool:
        """Whether it has a plan or submissions; what is closed to us may exist."""
        return any(map(presence.may_exist, (self.plan, self.submissions)))

    def _no_run_folder(self) -> RunFolderError:
        return RunFolderError(
            f"{self.path} is not a run folder; list runs with `websight-orchestrate runs`"
        )

    def load_plan(self) -> Plan:
        """The plan with the run's present options.

        Raises ``RunFolderError`` if it is missing, damaged or newer than this tool, or if the
        folder was renamed: jobs, the claim and the receipt have the run's id.
        """
        if not self._has_begun():
            raise self._no_run_folder()
        plan = self._load(self.plan, Plan)
        if plan.schema > SCHEMA:
            raise RunFolderError(
                f"{self.plan} was written by version {plan.version} of this tool, "
                "which is newer than this one; use that version"
            )
        if plan.run_id != self.run_id:
            old, new = (shlex.quote(str(p)) for p in (self.path, self.path.parent / plan.run_id))
            raise RunFolderError(
                f"{self.path} is the folder of run {plan.run_id} under another name, by which its "
                f"jobs and its dataset cannot be found; rename it: mv {old} {new}"
            )
        if presence.exists(self.options):
            plan = structs.replace(plan, options=self._load(self.options, Options))
        return plan

    def load_private(self) -> dict[str, str]:
        """Locators with secrets, see ``private``; empty if the plan needs none."""
        if not presence.exists(self.private):
            return {}
        locators: dict[str, str] = self._load(self.private, dict[str, str])
        return locators

    def load_draft(self) -> Submission | None:
        """The first submission as it was launched, without job ids; None if that is not known."""
        return self._load_if_there(self.draft, Submission)

    def load_submission(self, number: int) -> Submission:
        return self._load(self.submission(number), Submission)

    def load_submissions(self) -> Iterator[Submission]:
        """All submissions, in order."""
        return map(self.load_submission, self.submission_numbers())

    def submission_numbers(self) -> list[int]:
        """Numbers of the existing submissions, in order."""
        return sorted(
            int(entry.name[:-5])
            for entry in presence.entries_of(self.submissions)
            if entry.name.endswith(".json") and entry.name[:-5].isdigit()
        )

    def load_fetched(self, shard_id: str) -> Fetched | None:
        """The ``Fetched`` of a downloaded shard; None if it is not downloaded."""
        return self._load_if_there(self.fetched(shard_id), Fetched)

    def fetched_ids(self) -> set[str]:
        """Ids of the downloaded shards."""
        return {
            entry.name[:-5]
            for entry in presence.entries_of(self.shards)
            if entry.name.endswith(".json")
        }

    def finished_ids(self) -> set[str]:
        """Ids of the finished parts: with a manifest, and of a downloaded shard.

        A part may be extracted while its archive arrives; it counts once the archive is verified.
        """
        return of_shards(self.extracted_ids(), self.fetched_ids())

    def extracted_ids(self) -> set[str]:
        """Ids of the parts with a manifest, even if their archive is not verified yet."""
        return {
            entry.name[:-6]
            for entry in presence.entries_of(self.manifests)
            if entry.name.endswith(".jsonl") and not entry.name.startswith(".")
        }

    def load_results(self) -> Iterator[TaskResult]:
        """All results, in no particular order."""
        paths = (
            entry.path
            for stage in Stage
            for entry in presence.entries_of(self.results / stage.value)
            if entry.name.endswith(".json") and not entry.name.startswith(".")
        )
        return latency.each(lambda path: self._load(path, TaskResult), paths)

    def load_heartbeats(self, without: Container[tuple[Stage, int]]) -> Iterator[Heartbeat]:
        """All heartbeats except those of the tasks in ``without``, in no particular order.

        Damaged ones are left out: they only show progress, and the task replaces them.
        """
        stages = {stage.value: stage for stage in Stage}

        def is_wanted(name: str) -> bool:
            if not name.endswith(".json") or name.startswith("."):
                return False
            head, _, number = name[:-5].partition("-")
            stage = stages.get(head)
            return not (stage and number.isdecimal() and (stage, int(number)) in without)

        paths = (
            entry.path for entry in presence.entries_of(self.progress) if is_wanted(entry.name)
        )
        return filter(None, latency.each(self._heartbeat, paths))

    def _heartbeat(self, path: str) -> Heartbeat | None:
        with suppress(RunFolderError):
            return self._load_if_there(path, Heartbeat)
        return None

    def _remedy(self, kind: type[Any]) -> str:
        return _REMEDIES.get(kind, _OTHERWISE).format(folder=self.path, run=self.run_id)

    def _load(self, path: Path | str, kind: type[T]) -> T:
        found = self._load_if_there(path, kind)
        if found is None:
            raise RunFolderError(f"{path} is missing; {self._remedy(kind)}")
        return found

    def _load_if_there(self, path: Path | str, kind: type[T]) -> T | None:
        try:
            # A run has tens of thousands of these: no Path, no buffer, one decoder for each type.
            with open(path, "rb", buffering=0, opener=atomic.opener) as file:
                return _decoder(kind).decode(file.read())
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RunFolderError(f"{path} is damaged ({error}); {self._remedy(kind)}") from error
        except PermissionError as error:
            raise closed_to_us(path) from error


def create_private(folder: Path) -> bool:
    """Create a folder; returns whether it is ours, and only we can write to it. ``OSError``.

    Some file systems, such as exFAT, have the owner and the mode of the mount for everything.
    """
    folder.mkdir(mode=0o700)
    with suppress(OSError):  # some file systems refuse it
        folder.chmod(0o700)  # independent of the umask
    status = folder.lstat()
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def closed_to_us(path: Path | str) -> RunFolderError:
    """The error for a file or folder of runs that may not be read."""
    return RunFolderError(f"{path}: permission denied; if another user made it, {_ASK_ITS_OWNER}")


def of_shards(parts: Iterable[str], shards: Container[str]) -> set[str]:
    """Those of the ids of parts whose shard is one of ``shards``."""
    return {part for part in parts if shard_of(part) in shards}


def is_run_folder(path: Path) -> bool:
    """Whether a folder is a run folder: by its name, its plan and its results folder."""
    if not _RUN_ID.fullmatch(path.name):
        return False
    folder = RunFolder(path)
    return presence.is_file(folder.plan) and presence.is_folder(folder.results)


# What to do if a file cannot be read, by its type; no remedy loses data.
_REMEDIES: dict[type[Any], str] = {
    Plan: (
        "the run cannot continue without its plan. Once none of its jobs is left, move {folder} "
        "away and launch again to the same --dest; downloaded and extracted files stay in "
        ".incoming/{run} there, but the new run does not use them"
    ),
    Submission: (
        "it lists the jobs of a submission. Once none of the run's jobs is left (their names "
        "contain {run}), rename it if it exists, and run `resume` with the Slurm options of the "
        "launch; finished work is kept"
    ),
    dict[str, str]: "it has the source's full URLs, which are stored nowhere else; launch again",
}
_OTHERWISE = "if it exists, rename it, then run `resume`; its contents are rebuilt"

_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {}


def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    if kind not in _DECODERS:
        _DECODERS[kind] = msgspec.json.Decoder(kind)
    return _DECODERS[kind]


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in presence.entries_of(folder) if not entry.name.startswith(".")}
