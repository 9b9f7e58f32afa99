"""Errors: what an addition to a message leaves as it is."""

from __future__ import annotations

from jobs.errors import Cause, TooLargeError, with_message


def test_an_error_with_another_message_has_the_same_type_and_place() -> None:
    error = TooLargeError("a.tar is a bomb", cause=Cause.LIMIT, shard="00-a", member="x.png")
    found = with_message(error, f"{error.message}; raise the limit")
    assert type(found) is TooLargeError
    assert (found.cause, found.shard, found.member) == (Cause.LIMIT, "00-a", "x.png")
    assert str(found) == found.message == "a.tar is a bomb; raise the limit"
