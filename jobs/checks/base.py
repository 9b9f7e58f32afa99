"""What a check of a member's content promises."""

from __future__ import annotations

from typing import Protocol

WARNING = "warning: "  # opens a finding that is worth telling and fails nothing
HEAD = 64  # bytes; the first feed of a format's own check holds so many, or the whole file


class Check(Protocol):
    """Looks at a member's bytes as they pass, in any chunking; fastest when whole."""

    def feed(self, data: memoryview) -> None: ...

    def finish(self) -> str | None:
        """What is wrong with the content, in a few words; None if nothing is.

        A text that begins with ``WARNING`` tells of something odd in content that is whole.
        """
        ...


def is_warning(finding: str) -> bool:
    """Whether a finding fails nothing."""
    return finding.startswith(WARNING)
