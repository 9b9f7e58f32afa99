"""Rows that meet by key, added by several processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.finalize import join
from jobs.finalize.join import ROWS, Buckets


@pytest.mark.parametrize("rows", [10, 4 * ROWS], ids=["one bucket", "several"])
def test_rows_with_the_same_key_meet_in_one_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(join, "_HELD", 30)
    with Buckets(tmp_path, rows=rows) as buckets:
        buckets.add(0, [(f"{number}é", number) for number in range(200)])
        buckets.flush()
        pid = os.fork()
        if pid == 0:
            buckets.add(1, [(f"{number}é", "other") for number in range(200)])
            buckets.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        found = [[buckets.rows(place, kind) for kind in (0, 1)] for place in range(len(buckets))]
    assert len(found) == 1 + rows // ROWS
    for bucket in found:
        keys = [key for key, _ in bucket[0]]
        assert keys == [key for key, _ in bucket[1]]
        assert bucket[0] == sorted(bucket[0], key=lambda row: row[1])
    assert sorted(row[1] for bucket in found for row in bucket[0]) == list(range(200))
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_process_stay_where_a_later_one_has_its_id(tmp_path: Path) -> None:
    with Buckets(tmp_path, rows=10) as earlier, Buckets(tmp_path, rows=10) as later:
        for number, buckets in enumerate((earlier, later)):
            buckets.add(0, [("a", number)])
            buckets.flush()
        assert later.rows(0, 0) == [("a", 0), ("a", 1)]
