"""Archives inside an archive are opened through files that no other process uses."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from jobs.archives import nested
from jobs.model import Options, Part, Shard, ShardKind, SourceFile
from tests.support.archives.rawtar import END, member
from tests.support.builders.runs import RunBuilder
from tests.support.locales import in_latin1

OUTER = Shard("0000-a", ShardKind.ARCHIVE, (SourceFile("a.tar", "x", 10),))


def test_processes_of_the_same_number_on_two_nodes_open_different_archives(tmp_path: Path) -> None:
    plan = nested.plan_of(RunBuilder(OUTER, options=Options(nested=True)).plan)
    folder = "数据集" * 28  # 252 bytes, and together longer than a name may be
    with ExitStack() as stack:
        readers = []
        for name in ("one", "two"):
            inner = nested.shard_of(OUTER, f"{folder}/{name}.tar".encode())
            chunks = [memoryview(member(name.encode(), b"x") + END)]
            opened = nested.opened(inner, chunks, plan, tmp_path)
            readers.append((inner, stack.enter_context(opened)))
        found = [
            [each.name for each in reader.members(Part(inner.id, 0, 1))]
            for inner, reader in readers
        ]
    assert found == [[b"one"], [b"two"]]
    assert list(tmp_path.iterdir()) == []


def test_packed_files_are_known_in_a_locale_without_utf8(tmp_path: Path) -> None:
    program = (
        "from jobs.archives.nested import all_packed\n"
        "paths = ['数.7z', '数.tar.gz.aa', '数.parquet']\n"
        "assert all_packed(paths) == paths[:2]\n"
    )
    subprocess.run([sys.executable, "-c", program], env=in_latin1(tmp_path), check=True)
