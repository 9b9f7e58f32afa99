"""Finalize: audited, merged in plan order, published completely or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.finalize.stage import run_finalize
from jobs.runtime.progress import Progress
from tests.support.builders.staged import pages, stage


def receipt_of(dest: Path) -> dict[str, Any]:
    return dict(json.loads((dest / "RECEIPT.json").read_bytes()))


def test_a_sound_dataset_is_published_and_says_so(tmp_path: Path) -> None:
    shards = [pages(0, 5), pages(5, 5), pages(10, 3)]
    run = stage(tmp_path, shards)
    summary, problem = run_finalize(run.folder, run.plan, Progress())
    assert problem is None
    assert summary.published
    assert summary.lines == (
        "✓ Found 13 records in prompts.jsonl",
        "✓ Found 13 images",
        "✓ Dataset verification passed!",
    )
    dest = Path(run.plan.dest)
    assert (dest / "prompts.jsonl").read_bytes() == b"".join(s.records or b"" for s in shards)
    for shard in shards:
        for name, data in shard.files.items():
            assert (dest / str(name)).read_bytes() == data
    assert sorted(path.name for path in dest.iterdir()) == [
        "MANIFEST.jsonl",
        "RECEIPT.json",
        "images",
        "prompts.jsonl",
    ]
    assert (summary.records, summary.images, summary.files) == (13, 13, 14)
