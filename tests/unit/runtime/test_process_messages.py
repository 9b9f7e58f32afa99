"""Messages between processes: whole, in order, and no error after the other side has ended."""

from __future__ import annotations

import fcntl
import os
import resource
import threading
from collections.abc import Iterator
from typing import IO

import msgspec
import pytest

from jobs.runtime.process import Receiver, Sender


class _Text(msgspec.Struct, tag=True):
    number: int
    text: str = ""


class _Stop(msgspec.Struct, tag=True):
    pass


@pytest.fixture
def pipe() -> Iterator[tuple[int, IO[bytes]]]:
    read, write = os.pipe()
    with os.fdopen(write, "wb", buffering=0) as out:
        yield read, out
    os.close(read)


def _all(receiver: Receiver[object]) -> list[object]:
    found: list[object] = []
    while not receiver.ended:
        found += receiver.receive()
    return found


def test_messages_longer_than_a_pipe_come_whole_and_in_order(pipe: tuple[int, IO[bytes]]) -> None:
    sent: list[object] = [_Text(n, "\n" * (n * 50_000)) for n in range(8)]
    sender = Sender(pipe[1])

    def send() -> None:
        for message in (*sent, _Stop()):
            assert sender.send(message)
        sender.close()

    thread = threading.Thread(target=send)
    thread.start()
    assert _all(Receiver(pipe[0], _Text | _Stop)) == [*sent, _Stop()]
    thread.join()


def test_a_wait_has_a_limit_and_after_the_end_there_is_none(pipe: tuple[int, IO[bytes]]) -> None:
    receiver: Receiver[object] = Receiver(pipe[0], _Stop)
    assert (receiver.receive(0.01), receiver.ended) == ([], False)
    Sender(pipe[1]).close()
    assert (receiver.receive(), receiver.ended) == ([], True)
    assert receiver.receive() == []


def test_sending_says_whether_there_is_anyone_to_receive(pipe: tuple[int, IO[bytes]]) -> None:
    sender = Sender(pipe[1])
    sender.close()
    assert not sender.send(_Stop())
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb", buffering=0) as out:
        assert not Sender(out).send(_Stop())


def test_a_descriptor_may_have_any_number(pipe: tuple[int, IO[bytes]]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    try:
        high = fcntl.fcntl(pipe[0], fcntl.F_DUPFD, 2000)
        assert Sender(pipe[1]).send(_Stop())
        assert Receiver(high, _Stop).receive() == [_Stop()]
        os.close(high)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
