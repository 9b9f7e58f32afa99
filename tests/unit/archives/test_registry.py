"""Every archive of the hostile set is judged right by the readers."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import ArchiveError
from tests.support.archives.hostile import Case, cases
from tests.support.archives.reading import digests

CASES = cases()


def test_the_hostile_set_is_large_and_its_ids_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize(
    "case",
    # A bomb is inflated up to what is allowed, twice: that takes as long as fifty other cases.
    [
        pytest.param(each, id=each.id, marks=pytest.mark.slow if callable(each.content) else ())
        for each in CASES
    ],
)
def test_the_verdict_is_right_and_on_one_line_also_in_three_parts(
    case: Case, tmp_path: Path
) -> None:
    path = case.write(tmp_path)
    if case.cause is None:
        found = digests(path)
        assert set(case.files) <= set(found)
        assert ".tar" not in case.file or digests(path, parts=3) == found
        return
    for parts in (1, 3) if ".tar" in case.file else (1,):
        with pytest.raises(ArchiveError) as refusal:
            digests(path, parts=parts)
        assert refusal.value.cause is case.cause, refusal.value.message
        assert refusal.value.message.isprintable()
        if case.by_reader:
            assert case.file.partition(".")[0] in refusal.value.message
