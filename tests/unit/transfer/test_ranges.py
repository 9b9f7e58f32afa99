"""Sets of ranges, and which range a connection asks for next."""

from __future__ import annotations

import pytest

from jobs.transfer.ranges import LEAST_PIECE, MOST_PIECE, Range, Ranges, next_piece

MIB = 1 << 20


def test_ranges_are_joined_where_they_touch_and_cut_where_they_are_removed() -> None:
    ranges = Ranges([(0, 10), (20, 30)])
    assert ranges.add(5, 25) == 10
    assert list(ranges) == [(0, 30)]
    ranges.remove(10, 12)
    assert (list(ranges), ranges.total, ranges.prefix) == ([(0, 10), (12, 30)], 28, 10)
    assert ranges.outside(0, 35) == [(10, 12), (30, 35)]
    assert ranges.outside(11, 20) == [(11, 12)]


@pytest.mark.parametrize(
    ("todo", "connections", "wanted", "piece"),
    [
        pytest.param([], 4, [], None, id="nothing is left"),
        pytest.param([(0, 80 * MIB)], 4, [], (0, 10 * MIB), id="half of an equal share"),
        pytest.param([(0, 1 << 40)], 4, [], (0, MOST_PIECE), id="never too much"),
        pytest.param([(5, 2 * MIB)], 4, [], (5, 5 + LEAST_PIECE), id="nor too little"),
        pytest.param([(5, 5 + MIB * 3 // 2 - 1)], 4, [], (5, 5 + MIB * 3 // 2 - 1), id="no crumbs"),
        pytest.param([(5, 9), (20, 99 * MIB)], 1, [], (5, 9), id="the first gap"),
        pytest.param(
            [(0, 50 * MIB), (60 * MIB, 90 * MIB)],
            1,
            [(70 * MIB, 71 * MIB)],
            (70 * MIB, 71 * MIB),
            id="what somebody waits for",
        ),
        pytest.param([(0, MIB)], 1, [(5 * MIB, 6 * MIB)], (0, MIB), id="which is here already"),
    ],
)
def test_the_next_piece_is(
    todo: list[Range], connections: int, wanted: list[Range], piece: Range | None
) -> None:
    assert next_piece(Ranges(todo), connections, wanted) == piece


def test_pieces_of_all_connections_fit_into_the_room() -> None:
    for connections in (1, 8):
        start, stop = next_piece(Ranges([(0, 1 << 40)]), connections, (), 128 << 20) or (0, 0)
        assert (stop - start) == min(MOST_PIECE, (64 << 20) // connections)
