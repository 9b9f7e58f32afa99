"""The interface of a check of a member's content."""

from __future__ import annotations

from typing import Protocol

WARNING = "warning: "  # prefix of a finding that is reported and fails nothing
IF_NAMED = "if named: "  # prefix of a finding that counts only if a record names the file
NO_IMAGE = "not an image: "
EMPTY = "empty: 0 bytes"


class Check(Protocol):
    """Examines a member's bytes, in chunks of any size; fastest with complete content.

    The first ``feed`` of a format's check has ``jobs.formats.pictures.HEAD`` bytes, or the complete
    file.
    """

    def feed(self, data: memoryview) -> None: ...

    def finish(self) -> str | None:
        """What is wrong with the content, in a few words; None if nothing is.

        A text with the prefix ``WARNING`` describes something unusual in intact content, one with
        ``IF_NAMED`` a file that need not be an image (see ``settled``).
        """
        ...


def is_warning(finding: str) -> bool:
    """Whether a finding is a warning."""
    return finding.startswith(WARNING)


def is_no_image(finding: str | None) -> bool:
    """Whether a file that need not be an image is something else."""
    return finding is not None and finding.startswith((IF_NAMED + NO_IMAGE, IF_NAMED + EMPTY))


def settled(finding: str | None, *, named: bool) -> str | None:
    """The finding after it is known whether a record names the file.

    If none does, a file without an image's ending may contain anything, and damage to an image in
    it is a warning.
    """
    if finding is None or not finding.startswith(IF_NAMED):
        return finding
    plain = finding.removeprefix(IF_NAMED)
    if named:
        return plain
    return None if is_warning(plain) or is_no_image(finding) else WARNING + plain
