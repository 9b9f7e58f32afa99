"""Errors: those of the system in plain words; what an addition to a message leaves as it is."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from jobs.errors import (
    Cause,
    TooLargeError,
    fact_of,
    from_os_error,
    from_unexpected,
    with_message,
)

REPAIR = "have the file system or its mount repaired, then run `resume`"
FREE = "free some space, then run `resume`"
ELSEWHERE = "launch again with another --dest, --temp-dir or --log-dir"


@pytest.mark.parametrize(
    ("number", "cause", "said"),
    [
        ("ENOSPC", Cause.DISK_FULL, f"no space left; {FREE}"),
        ("EDQUOT", Cause.QUOTA, f"over quota; {FREE}"),
        ("EROFS", Cause.READ_ONLY, f"the file system is read-only; {REPAIR}"),
        ("EACCES", Cause.PERMISSION, "permission denied; ask for permission, then run `resume`"),
        ("EIO", Cause.IO, f"the file system reports an input/output error; {REPAIR}"),
        ("EUCLEAN", Cause.IO, f"the file system is damaged; {REPAIR}"),
        ("ESTALE", Cause.IO, f"the mount is stale; {REPAIR}"),
        ("ENOTCONN", Cause.IO, f"the file system's server does not respond; {REPAIR}"),
        ("ESHUTDOWN", Cause.IO, f"the file system's server does not respond; {REPAIR}"),
        ("ETIMEDOUT", Cause.IO, f"the file system's server does not respond; {REPAIR}"),
        ("ENOMEM", Cause.OUT_OF_MEMORY, "no memory left; run `resume`, which on Slurm requests"),
        ("EMFILE", Cause.LIMIT, "processes are limited to 4,096 open files here (ulimit -n); "),
        ("EAGAIN", Cause.LIMIT, "no more processes or threads can be started here: end some"),
        ("ENFILE", Cause.IO, "this machine has too many open files; wait, then run `resume`"),
        ("ENAMETOOLONG", Cause.UNSUPPORTED, f"too long for this file system; {ELSEWHERE}"),
        ("EINVAL", Cause.UNSUPPORTED, f"the file system does not allow this; {ELSEWHERE}"),
        ("EILSEQ", Cause.UNSUPPORTED, f"the file system does not allow this name; {ELSEWHERE}"),
        ("EFBIG", Cause.UNSUPPORTED, f"too large for this file system; {ELSEWHERE}"),
        ("ENOTSUP", Cause.UNSUPPORTED, f"the file system does not support this; {ELSEWHERE}"),
        ("ENOENT", Cause.IO, "No such file or directory; run `resume`"),
    ],
)
def test_an_error_of_the_system_has_a_cause_and_says_what_to_do(
    number: str, cause: Cause, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {resource.RLIMIT_NOFILE: (4096, 1 << 20)}
    none = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits.get(kind, none))
    code = getattr(errno, number)
    found = from_os_error(
        OSError(code, os.strerror(code)), doing="writing 'x'", then="run `resume`"
    )
    assert found.message.startswith(f"writing 'x': {said}")
    assert found.cause is cause


def test_every_error_of_the_system_is_one_line_in_words() -> None:
    for code in errno.errorcode:
        error = OSError(code, os.strerror(code), "/data/x")
        for then in ("", "run `resume`"):
            message = from_os_error(error, doing="reading 'x'", then=then).message
            assert message.startswith("reading 'x': ") and "Errno" not in message
            assert not {"{", "}", "\n"} & set(message)


def test_that_no_thread_can_be_started_is_a_limit_and_no_defect() -> None:
    found = from_unexpected(RuntimeError("can't start new thread"), doing="downloading x")
    assert found.cause is Cause.LIMIT and "ulimit" in found.message


def test_an_error_with_another_message_has_the_same_type_and_place() -> None:
    error = TooLargeError("a.tar is a bomb", cause=Cause.LIMIT, shard="00-a", member="x.png")
    found = with_message(error, f"{error.message}; raise the limit")
    assert type(found) is TooLargeError
    assert (found.cause, found.shard, found.member) == (Cause.LIMIT, "00-a", "x.png")
    assert str(found) == found.message == "a.tar is a bomb; raise the limit"


@pytest.mark.parametrize(
    ("error", "fact"),
    [
        (OSError(errno.ESTALE, "Stale file handle", "/x"), "the mount is stale"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), "No such file"),
        (OSError("a text alone"), "OSError"),
        (ValueError("line 3"), "line 3"),
    ],
)
def test_what_an_error_says_has_neither_number_nor_path(error: Exception, fact: str) -> None:
    assert fact_of(error) == fact
