"""Receipts of all versions can be read, and a repair changes nothing in them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from jobs.model import utc_now
from jobs.storage import atomic
from jobs.storage.receipt import read_receipt, receipt_head, with_repair

_GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "RECEIPT.json"
_LATER = (  # fields that the first version did not write
    *("planned_by", "run_dir", "layout", "sums", "history", "left_out", "packed", "archives"),
    *("records_among_data", "stages", "attempts"),
)


def _written(folder: Path) -> dict[str, object]:
    text = _GOLDEN.read_text().replace('"TIME"', '"2026-03-01T00:00:00Z"')
    for name in ("SECONDS", "RATE", "N"):
        text = text.replace(f": {name}", ": 1")
    (folder / "RECEIPT.json").write_text(text)
    return dict(json.loads(text))


def test_what_is_read_is_written_again_in_the_same_order(tmp_path: Path) -> None:
    path = tmp_path / "RECEIPT.json"
    _written(tmp_path)
    same = msgspec.json.decode(msgspec.json.encode(read_receipt(path)))
    assert list(same.items()) == list(json.loads(path.read_bytes()).items())


def test_a_receipt_of_the_first_version_and_one_of_a_later_version_are_read(tmp_path: Path) -> None:
    content = _written(tmp_path)
    old = {name: value for name, value in content.items() if name not in _LATER}
    new = {**content, "source": {"kind": "tape"}, "stages": {"mount": {}}, "more": [1]}
    for each in (old, new):
        atomic.write_json(tmp_path / "RECEIPT.json", each)
        receipt = read_receipt(tmp_path / "RECEIPT.json")
        assert (receipt.counts["records"], receipt.manifest.files) == (10, 12)
        assert [shard.records for shard in receipt.shards] == [8, 2, 0]


def test_a_repair_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    content = {**_written(tmp_path), "more": {"of": "another version"}}
    path = tmp_path / "RECEIPT.json"
    for number in (1, 2):
        atomic.write_json(path, content)
        content = with_repair(path, utc_now())
        assert len(content["repairs"]) == number  # type: ignore[arg-type]
    assert list(content)[-2:] == ["more", "repairs"]


@pytest.mark.parametrize("damaged", [b"", b"{", b'{"run_id": "\xff"}', b'{"run_id": 1}'])
def test_a_damaged_receipt_has_no_head(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "RECEIPT.json").write_bytes(damaged)
    assert receipt_head(tmp_path) is None
    with pytest.raises(msgspec.DecodeError):
        read_receipt(tmp_path / "RECEIPT.json")
