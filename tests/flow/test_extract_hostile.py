"""The hostile set through the extract stage: every verdict right, no file anywhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.archives import detect
from jobs.errors import OrchestrateError
from jobs.model import OnCollision, Options, Outcome
from tests.support.archives.hostile import Case, cases
from tests.support.builders.made_run import Run
from tests.support.builders.runs import RUN_ID, RunBuilder

# One process extracts them all, one after the other: what one shard leaves, the next one meets.
_TASK = """
import json, resource, sys
from pathlib import Path
from jobs.extract.stage import run_extract
from jobs.runtime.progress import Progress
from jobs.storage.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
plan = folder.load_plan()
results = run_extract(folder, plan, plan.parts(), Progress())
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
reported = [
    (r.item, r.outcome, r.problem and (r.problem.cause, r.problem.message)) for r in results
]
print(json.dumps({"peak": peak, "reported": reported}))
"""
CANARY = b"must stay as it is"


@dataclass
class Verdict:
    """What the stage says of one archive."""

    part: str
    outcome: Outcome
    cause: str | None
    message: str


@dataclass
class Extracted:
    """The hostile set after its extraction."""

    run: Run
    root: Path
    verdicts: dict[str, Verdict]  # by case
    peak_kib: int
    log: str


def _is_archive(case: Case) -> bool:
    if callable(case.content):
        return True  # each bomb is one, and takes long to make
    try:
        detect.sniff(case.content[:4096], case.file)
    except OrchestrateError:
        return False  # the download job refuses it
    return True


CASES = [case for case in cases() if _is_archive(case)]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    root = tmp_path_factory.mktemp("hostile")
    for name in ("canary", "etc/passwd", "work/canary", "work/dest/canary"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CANARY)
    files = []
    for index, case in enumerate(CASES):
        folder = root / "archives" / f"{index:04d}"
        folder.mkdir(parents=True)
        files.append(case.write(folder))
    # Each in a folder of its own, so that the files of each can be distinguished.
    options = Options(on_collision=OnCollision.PER_SHARD)
    run = RunBuilder(*files, options=options).fetched(root / "work")
    done = subprocess.run(
        [sys.executable, "-c", _TASK, str(run.folder.path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    answer = json.loads(done.stdout)
    verdicts = {}
    for case, (part, outcome, problem) in zip(CASES, answer["reported"], strict=True):
        cause, message = problem or (None, "")
        verdicts[case.id] = Verdict(part, Outcome(outcome), cause, message)
    return Extracted(run, root, verdicts, answer["peak"], done.stderr)


def test_every_verdict_is_right(extracted: Extracted) -> None:
    expected = {case.id: case.cause and case.cause.value for case in CASES}
    assert {id: verdict.cause for id, verdict in extracted.verdicts.items()} == expected
    for id, verdict in extracted.verdicts.items():
        assert (verdict.outcome is Outcome.OK) is (expected[id] is None), id


def test_every_refusal_is_one_line_that_names_the_archive(extracted: Extracted) -> None:
    for case in CASES:
        message = extracted.verdicts[case.id].message
        assert case.cause is None or (case.file in message and message.isprintable()), case.id


def test_only_sound_archives_have_a_manifest(extracted: Extracted) -> None:
    sound = {extracted.verdicts[case.id].part for case in CASES if case.cause is None}
    assert extracted.run.folder.finished_ids() == sound


def test_sound_archives_give_what_their_manifests_say(extracted: Extracted) -> None:
    run = extracted.run
    parts = {part.id: part for part in run.parts}
    for case in (case for case in CASES if case.cause is None):
        entries = run.entries(parts[extracted.verdicts[case.id].part])
        for entry in entries:
            place = bytes.fromhex(entry.raw) if entry.raw else entry.path.encode()
            if entry.path != "prompts.jsonl":
                status = os.lstat(os.fsencode(run.staging.data) + b"/" + place)
                assert (status.st_size, status.st_nlink) == (entry.size, 1), case.id
        for name in case.files:
            assert any(entry.path.endswith(Path(name).name) for entry in entries), (case.id, name)


def test_nothing_outside_the_data_folder_was_made_or_changed(extracted: Extracted) -> None:
    root = extracted.root
    staging = extracted.run.staging
    for name in ("canary", "etc/passwd", "work/canary", "work/dest/canary"):
        assert (root / name).read_bytes() == CANARY
    others = {
        path.relative_to(root).parts[0] if path.parent == root else str(path.relative_to(root))
        for path in (*root.iterdir(), *(root / "work").iterdir(), *staging.root.iterdir())
    }
    assert others == {
        "canary",
        "etc",
        "archives",
        "work",
        *("work/canary", "work/dest", "work/logs"),
        *(f"work/dest/.incoming/{RUN_ID}/{name}" for name in ("data", "records", "archives")),
    }
    assert list(staging.archives.iterdir()) == []


def test_no_link_device_or_special_bit_was_ever_made(extracted: Extracted) -> None:
    for folder, _, names in os.walk(os.fsencode(extracted.run.staging.data)):
        for name in names:
            status = os.lstat(folder + b"/" + name)
            assert status.st_mode & 0o177000 == 0o100000, name
            assert status.st_nlink == 1


def test_bombs_are_refused_before_they_fill_the_disk(extracted: Extracted) -> None:
    for path in extracted.run.staging.data.iterdir():
        used = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        assert used <= 300 << 20, path


def test_memory_stays_below_128_mib(extracted: Extracted) -> None:
    # Decompression may use 72 MiB, the process and what its threads hold at a time 50.
    assert extracted.peak_kib < 128 << 10


def test_no_traceback_is_shown(extracted: Extracted) -> None:
    assert "Traceback" not in extracted.log
