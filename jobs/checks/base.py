"""What a check of a member's content promises."""

from __future__ import annotations

from typing import Protocol

WARNING = "warning: "  # opens a finding that is worth telling and fails nothing
IF_NAMED = "if named: "  # opens a finding that counts only where a record names the file
NO_IMAGE = "not an image: "
EMPTY = "empty: 0 bytes"


class Check(Protocol):
    """Looks at a member's bytes as they pass, in any chunking; fastest when whole.

    The first feed of a format's own check holds ``jobs.formats.pictures.HEAD`` bytes, or the whole
    file.
    """

    def feed(self, data: memoryview) -> None: ...

    def finish(self) -> str | None:
        """What is wrong with the content, in a few words; None if nothing is.

        A text that begins with ``WARNING`` tells of something odd in content that is whole, one
        that begins with ``IF_NAMED`` of a file that need not be an image (see ``settled``).
        """
        ...


def is_warning(finding: str) -> bool:
    """Whether a finding fails nothing."""
    return finding.startswith(WARNING)


def is_no_image(finding: str | None) -> bool:
    """Whether a file that need not be an image holds something else."""
    return finding is not None and finding.startswith((IF_NAMED + NO_IMAGE, IF_NAMED + EMPTY))


def settled(finding: str | None, *, named: bool) -> str | None:
    """The finding once it is known whether a record names the file.

    Where none does, a file whose ending is no image's may hold anything, and damage to an image in
    it is a warning.
    """
    if finding is None or not finding.startswith(IF_NAMED):
        return finding
    plain = finding.removeprefix(IF_NAMED)
    if named:
        return plain
    return None if is_warning(plain) or is_no_image(finding) else WARNING + plain
