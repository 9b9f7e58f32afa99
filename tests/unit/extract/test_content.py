"""What the manifest says of content."""

from __future__ import annotations

import pytest

from jobs.archives.base import Member, MemberKind
from jobs.extract.content import CheckedContent, whole_entries
from jobs.model import Inner, Options, Verify
from jobs.runtime.progress import Progress

CONTENTS = (
    b"",
    b"text\n",
    b"\x89PNG\r\n\x1a\n" + bytes(40),
    b"\x93NUMPY" + bytes(range(256)),
    b"<svg/>",
    b"GIF89a",
)


@pytest.mark.parametrize("algorithm", ["crc32", "sha256"])
@pytest.mark.parametrize("verify", [Verify.STRUCTURE, Verify.NONE])
@pytest.mark.parametrize(
    "name",
    [b"a.png", b"a.npy", b"a.svg", b"ending", b"\xff.jpg", Options().layout.records.encode()],
)
def test_the_line_of_a_file_in_one_piece_is_that_of_the_same_bytes_in_chunks(
    name: bytes, algorithm: str, verify: Verify
) -> None:
    options = Options(digest=algorithm, verify=verify)
    inner = Inner("nested.tar", 3)
    for data in (*CONTENTS, b"{}"):
        member = Member(name, MemberKind.FILE, len(data), 0o644, 0.0, 7, stripped="top")
        files = [(name, member, memoryview(data))]
        (entry,) = whole_entries(files, [12], lambda ordinal: (ordinal, inner), options)
        content = CheckedContent(name, options, Progress())
        content.take(memoryview(data)[:3])
        content.take(memoryview(data)[3:])
        assert entry == content.entry(7, inner, offset=12, stripped="top")
