"""What a check of a member's content promises."""

from __future__ import annotations

from typing import Protocol


class Check(Protocol):
    """Looks at a member's bytes as they pass, in any chunking."""

    def feed(self, data: memoryview) -> None: ...

    def finish(self) -> str | None:
        """What is wrong with the content, in a few words; None if nothing is."""
        ...
