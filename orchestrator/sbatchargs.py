"""What sbatch may be told beyond our own options: all but what we say to it ourselves."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from jobs.errors import UsageError
from jobs.memberpath import shown


@dataclass(frozen=True)
class _Option:
    """An option of sbatch: its long name, its letter, and what to use in its place."""

    name: str
    letter: str
    instead: str


_SHAPE = "each task is one process on one node, and --tasks and --parallel say how many there are"
_LOGS = "--log-dir says where logs lie"

# Changed, these would break the chain, run a task twice, or hide the results.
_OURS = (
    _Option("--array", "a", _SHAPE),
    _Option("--nodes", "N", _SHAPE),
    _Option("--ntasks", "n", _SHAPE),
    *(
        _Option(f"--ntasks-per-{each}", "", _SHAPE)
        for each in ("node", "core", "socket", "gpu", "tres")
    ),
    _Option("--output", "o", _LOGS),
    _Option("--error", "e", _LOGS),
    _Option("--input", "i", "tasks read none"),
    _Option("--chdir", "D", _LOGS),
    _Option("--job-name", "J", "it holds the run's id"),
    _Option("--dependency", "d", "the chain's jobs wait for each other; --begin waits for a time"),
    _Option("--kill-on-invalid-dep", "", "the chain needs it"),
    _Option("--signal", "", "it lets tasks stop in order"),
    _Option("--wait", "W", "our own --wait stays until the run has ended"),
    _Option("--parsable", "", "our own --parsable prints the last job's id"),
    _Option("--test-only", "", "--dry-run and `doctor` try without submitting"),
    _Option("--wrap", "", "--setup adds lines before a task, --then a script after the run"),
    _Option("--clusters", "M", "SLURM_CLUSTERS in the environment chooses one"),
)
# What resume, status and the checks at launch need to know too.
_HERE = tuple(
    _Option(name, letter, f"use our own {own or name}")
    for name, letter, own in (
        ("--partition", "p", ""),
        ("--account", "A", ""),
        ("--qos", "q", ""),
        ("--time", "t", ""),
        ("--cpus-per-task", "c", ""),
        ("--mem", "", ""),
        ("--constraint", "C", ""),
        ("--exclude", "x", "--exclude-nodes"),
        ("--reservation", "", ""),
        ("--mail-type", "", ""),
        ("--mail-user", "", ""),
    )
)
_BARE = "HIOQVhksuv"  # letters that take no value, so that another may follow at once (-HN2)


def parse(text: str) -> str:
    """``text`` if it may go to all jobs; ``UsageError`` says which of our options does it."""
    return _checked(text, (*_OURS, *_HERE))


def parse_for_download(text: str) -> str:
    """As ``parse``; the download job alone may differ from the others in what they ask for."""
    return _checked(text, _OURS)


def _checked(text: str, refused: tuple[_Option, ...]) -> str:
    if not text.isprintable():
        raise UsageError(f"{shown(text)} holds a control character; write it on one line")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{shown(text)} cannot be read ({error})") from error
    if not words or not words[0].startswith("-"):
        raise UsageError(f"{shown(text)} is no option of sbatch; write it as --option=value")
    for option in _said(words, refused):
        raise UsageError(f"{shown(text)}: {option.name} cannot be set here; {option.instead}")
    return text


def _said(words: list[str], options: tuple[_Option, ...]) -> Iterator[_Option]:
    """Those of ``options`` that are among ``words``, however sbatch lets them be written."""
    for word in words:
        long = word.partition("=")[0]
        letter = word[1:].lstrip(_BARE)[:1]
        for option in options:
            if word.startswith("--"):
                # sbatch takes an unambiguous beginning of an option for the whole.
                if len(long) > 2 and option.name.startswith(long):
                    yield option
            elif word.startswith("-") and letter and letter == option.letter:
                yield option
