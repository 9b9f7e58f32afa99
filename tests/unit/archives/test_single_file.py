"""A single file of the dataset keeps its name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.locales import in_latin1


def test_its_name_is_in_utf8_in_any_locale(tmp_path: Path) -> None:
    program = (
        "from jobs.archives.single_file import SingleFile\n"
        "from jobs.model import Fetched, Format, Options, Part, Shard, ShardKind, SourceFile\n"
        "for name in ('é.txt', '数.txt'):\n"
        "    shard = Shard('s', ShardKind.FILE, (SourceFile(name, 'https://h/x', 1),))\n"
        "    fetched = Fetched('s', Format.FILE, ('s.0',), (1,), (), (0,))\n"
        "    (member,) = SingleFile(fetched, shard, Options()).members(Part('s', 0, 1))\n"
        "    assert member.name == name.encode()\n"
    )
    subprocess.run([sys.executable, "-c", program], env=in_latin1(tmp_path), check=True)
