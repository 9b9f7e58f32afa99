"""What members show together."""

from __future__ import annotations

import random

import pytest

from jobs.archives.base import Member, MemberKind
from jobs.archives.member_index import TopFolder
from jobs.model import Layout, Options

NAMES = (
    "set/a", "set/images/a.png", "set/./images/b.png", "set/images", "set/prompts.jsonl", "set",
    "other/a", "images/a.png", "__MACOSX/x", "set/x/images/a.png", "./set/c", "a",
)  # fmt: skip


@pytest.mark.parametrize("layout", ["websight", "files"])
def test_members_that_are_added_together_show_what_they_show_one_by_one(layout: str) -> None:
    options = Options(layout=Layout(layout) if layout != "files" else Layout("files", "", ""))
    rng, tops = random.Random(1), set()
    for _ in range(2000):
        names = rng.choices(NAMES[: rng.choice((2, 4, 6, 12))], k=rng.randrange(1, 9))
        members = [Member(name.encode(), MemberKind.FILE, 0, 0, 0.0, 0) for name in names]
        together, alone = TopFolder(options), TopFolder(options)
        cut = rng.randrange(len(members) + 1)
        together.add_all(members[:cut])
        together.add_all(members[cut:])
        for member in members:
            alone.add(member.name, member.kind)
        assert vars(together) == vars(alone)
        tops.add(together.top)
    assert tops == ({None, "set"} if layout == "websight" else {None})
