"""Rows that meet by key: in memory while they are few, else in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.finalize.disk_partitions import HELD, ROWS, Buckets


@pytest.mark.parametrize("rows", [10, HELD + 1], ids=["in memory", "in files"])
def test_rows_whose_keys_fold_alike_meet_in_one_bucket_in_their_order(
    tmp_path: Path, rows: int
) -> None:
    with Buckets(tmp_path, rows=rows) as buckets:
        for number in range(200):
            buckets.add(f"Images/{number}É.png", number, "file")
            buckets.add(f"images/{number}e\u0301.png", number, "reference")
        found = [[list(row) for row in bucket] for bucket in buckets.read()]
    assert sorted(row for bucket in found for row in bucket) == sorted(
        [number, kind] for number in range(200) for kind in ("file", "reference")
    )
    for bucket in found:
        for number in {row[0] for row in bucket}:
            assert [row[1] for row in bucket if row[0] == number] == ["file", "reference"]
    assert len(found) == (1 if rows <= HELD else 1 + rows // ROWS)
    assert list(tmp_path.iterdir()) == []
