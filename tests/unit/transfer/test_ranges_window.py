"""Where the bytes of a file are that is never stored as a whole."""

from __future__ import annotations

import pytest

from jobs.transfer.ranges import Window

RING = Window(100)
TAIL = Window(100, kept_from=250)  # bytes 250 … are at 100 …


@pytest.mark.parametrize(
    ("window", "offset", "place"),
    [
        pytest.param(RING, 30, (30, 70), id="the first turn"),
        pytest.param(RING, 230, (30, 70), id="a later turn"),
        pytest.param(TAIL, 230, (30, 20), id="up to the bytes that are kept"),
        pytest.param(TAIL, 130, (30, 70), id="up to the end of the ring"),
        pytest.param(TAIL, 253, (103, None), id="kept"),
    ],
)
def test_a_byte_has_its_place(window: Window, offset: int, place: tuple[int, int | None]) -> None:
    assert window.place(offset) == place


@pytest.mark.parametrize(
    ("window", "start", "stop", "room"),
    [
        pytest.param(RING, 140, 150, True, id="over what was read"),
        pytest.param(RING, 140, 151, False, id="over what was not"),
        pytest.param(TAIL, 200, 260, False, id="too far ahead"),
        pytest.param(TAIL, 250, 900, True, id="kept"),
    ],
)
def test_bytes_have_room_if_those_before_them_were_read(
    window: Window, start: int, stop: int, room: bool
) -> None:
    assert window.has_room(start, stop, done=50) is room
