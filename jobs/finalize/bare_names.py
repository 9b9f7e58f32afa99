"""A hint on records that name images without the ending of their files, as many tables do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from jobs.checks import records
from jobs.finalize.context import FinalizeContext, RecordsPiece
from jobs.formats.pictures import is_named
from jobs.storage.safe_paths import quoted

_PER_PIECE = 16  # lines of a piece that are compared, at most
_IN_ALL = 2_000  # of all pieces, at most; bounds the memory
_LONGEST = 200  # characters of a value that may be a name


class BareNames:
    """Compares values of some records with the names of images without their endings.

    Nothing is compared if one of the records names an image by its complete name.
    """

    def __init__(
        self, context: FinalizeContext, values: Sequence[Mapping[str, Sequence[str]]]
    ) -> None:
        """``values``: of each piece, from ``last_components``."""
        self._context = context
        self._values = values
        every = (names for fields in self._values for names in fields.values())
        self._wanted = frozenset(chain.from_iterable(every))
        self._images: dict[str, str] = {}  # the first image, by its name

    def add(self, paths: Iterable[str]) -> None:
        """Add files of the dataset."""
        if self._wanted:
            for path in paths:
                name = path.rpartition("/")[2].rpartition(".")[0]
                if name in self._wanted and is_named(path):
                    self._images.setdefault(name, path)

    def seen(self) -> Mapping[str, str]:
        """What was seen so far."""
        return self._images

    def take(self, images: Mapping[str, str]) -> None:
        """Add what another process has seen."""
        self._images = {**images, **self._images}

    def conclude(self) -> None:
        """Add a hint for each piece with a field of which most values are names of images."""
        for piece, fields in zip(self._context.pieces, self._values, strict=True):
            found = {
                field: [name for name in names if name in self._images]
                for field, names in fields.items()
            }
            best = max(found, key=lambda field: len(found[field]), default=None)
            if best is not None and 2 * len(found[best]) > len(fields[best]):
                self._say(piece, best, found[best], len(fields[best]))

    def _say(self, piece: RecordsPiece, field: str, names: list[str], of: int) -> None:
        self._context.unclear.append(
            f"the field {quoted(field)} of {piece.shard.name} seems to name images without their "
            f"endings: {len(names)} of {of} values that were compared, such as {quoted(names[0])} "
            f"for {quoted(self._images[names[0]])}; launch with complete names in it (the endings "
            "appended, and --image-field), or publish the images and the table as they are: run "
            "`resume` with --layout files"
        )


def last_components(
    lines: Sequence[bytes], image_field: str | None, pieces: int
) -> dict[str, list[str]]:
    """By field, the last components of its values in some of the lines; none if one names an image.

    ``lines``: a sample of a piece; ``pieces``: their number.
    """
    fields: dict[str, list[str]] = {}
    count = min(_PER_PIECE, _IN_ALL // pieces, len(lines))
    for line in (lines[index * len(lines) // count] for index in range(count)):
        try:
            values = records.values_of(line)
        except records.BadLineError:  # no record
            continue
        try:
            images = records.parse(line, image_field).images
        except records.BadLineError:  # it names no image
            images = ()
        if any(is_named(image.path) for image in images):
            return {}
        for field, value in values.items():
            if isinstance(value, (str, int)) and len(text := str(value)) <= _LONGEST:
                name = text.replace("\\", "/").rpartition("/")[2]
                fields.setdefault(field, []).extend([name] if name else [])
    return fields
