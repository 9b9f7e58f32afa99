"""Limits of this process: when an error comes of one, its name, amount and remedy."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from jobs import rlimits
from jobs.errors import Cause, from_os_error, from_unexpected

# As large as no test ever needs, so that nothing is limited in fact.
HUGE = 1 << 50

Limit = Callable[[int, int], None]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Limit]:
    """Sets a soft limit of this process for the test."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before: dict[int, tuple[int, int]] = {}

    def put(number: int, soft: int) -> None:
        before[number] = resource.getrlimit(number)
        resource.setrlimit(number, (soft, before[number][1]))

    yield put
    for number, limits in before.items():
        resource.setrlimit(number, limits)


@pytest.mark.parametrize(
    ("number", "error", "letter"),
    [
        pytest.param(resource.RLIMIT_FSIZE, OSError(errno.EFBIG, "x"), "f", id="file size"),
        pytest.param(resource.RLIMIT_AS, MemoryError(), "v", id="address space"),
        pytest.param(resource.RLIMIT_AS, OSError(errno.ENOMEM, "x"), "v", id="no memory to map"),
        pytest.param(resource.RLIMIT_AS, RuntimeError("can't start new thread"), "v", id="threads"),
        pytest.param(resource.RLIMIT_DATA, MemoryError(), "d", id="data"),
    ],
)
def test_an_error_that_a_limit_caused_names_it_with_the_remedy(
    limit: Limit, number: int, error: Exception, letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rlimits.reached(error)
    assert before is None or "pids.max" in before  # without a limit it is what it says
    limit(number, HUGE)
    here = rlimits.reached(error)
    assert here is not None
    assert "1,125,899,906.8 MB" in here and f"(ulimit -{letter}); raise it" in here
    assert f"`ulimit -S{letter} unlimited`" in here
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    in_a_job = rlimits.reached(error)
    assert in_a_job is not None and "--propagate=NONE" in in_a_job


def test_errors_become_ours_with_the_limit_as_their_cause(limit: Limit) -> None:
    too_big, no_memory = OSError(errno.EFBIG, "File too large"), MemoryError()
    assert from_os_error(too_big, doing="writing x").cause is Cause.UNSUPPORTED
    assert from_unexpected(no_memory, doing="it").cause is Cause.OUT_OF_MEMORY
    assert from_unexpected(ValueError(), doing="it").cause is Cause.INTERNAL
    limit(resource.RLIMIT_FSIZE, HUGE)
    limit(resource.RLIMIT_AS, HUGE)
    assert from_os_error(too_big, doing="writing x").cause is Cause.LIMIT
    assert from_unexpected(no_memory, doing="it").cause is Cause.LIMIT
    assert from_unexpected(ValueError(), doing="it").cause is Cause.INTERNAL


def test_too_many_open_files_are_always_a_limit() -> None:
    reported = from_os_error(OSError(errno.EMFILE, "Too many open files"), doing="opening x")
    assert reported.cause is Cause.LIMIT and "(ulimit -n)" in reported.message


def test_limits_that_may_have_ended_a_process_are_listed(limit: Limit) -> None:
    assert rlimits.may_be_why() == ""
    limit(resource.RLIMIT_CPU, 7200)
    assert rlimits.may_be_why().endswith("7,200 s of CPU time here (ulimit -t)")


@pytest.mark.parametrize(
    ("hard", "ahead", "reported"),
    [(1, 1, "1 s"), (2, 1, "2 s"), (8, 6, "8 s"), (3600, 3595, "3,600 s")],
)
def test_the_signal_comes_before_the_kill_and_the_users_own_number_is_reported(
    hard: int, ahead: int, reported: str
) -> None:
    code = (
        "import resource as r; from jobs import rlimits; "
        f"r.setrlimit(r.RLIMIT_CPU, ({hard}, {hard})); said = rlimits.watch_cpu_limit(); "
        "assert said == rlimits.CPU_TIME.reached(); "
        "print(r.getrlimit(r.RLIMIT_CPU)[0], said)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith(f"{ahead} processes are limited to {reported} of CPU time")
    assert "this shell cannot raise it" in said.stdout
