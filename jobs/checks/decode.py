"""Every pixel decoded by Pillow: the deepest check, at twelve times the extraction's time."""

from __future__ import annotations

import io
import warnings

from jobs.checks.base import WARNING, Check, is_warning
from jobs.errors import UsageError

MAX_BYTES = 64 << 20  # of a file that is decoded: a task's memory stays bounded
MAX_PIXELS = 2 * (1 << 30) // 4 // 3  # of all frames: Pillow's own limit for a bomb


class Decode:
    """Runs the check of the structure first, and decodes what passed it."""

    def __init__(self, structure: Check) -> None:
        try:
            import PIL
            import PIL.Image
        except ImportError as error:
            raise UsageError(
                "--verify decode needs Pillow, which is not installed; "
                "`pip install 'websight-orchestrate[decode]'`, or use --verify structure"
            ) from error
        self._pil = PIL
        self._structure = structure
        self._data = bytearray()
        self._size = 0

    def feed(self, data: memoryview) -> None:
        self._structure.feed(data)
        self._size += len(data)
        if self._size <= MAX_BYTES:
            self._data += data

    def finish(self) -> str | None:
        finding = self._structure.finish()
        if finding is not None and not is_warning(finding):
            return finding
        if self._size > MAX_BYTES:
            return f"{WARNING}not decoded: larger than {MAX_BYTES >> 20} MiB"
        return self._decode() or finding

    def _decode(self) -> str | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and of half a bomb
            try:
                with self._pil.Image.open(io.BytesIO(self._data)) as image:
                    pixels = image.width * image.height
                    if pixels > MAX_PIXELS:
                        return f"decode: {image.width} × {image.height} pixels are too many"
                    frames = getattr(image, "n_frames", 1)
                    for frame in range(min(frames, max(1, MAX_PIXELS // max(1, pixels)))):
                        image.seek(frame)
                        image.load()
            except self._pil.UnidentifiedImageError:
                return f"{WARNING}not decoded: Pillow does not know this format"
            except self._pil.Image.DecompressionBombError:
                return "decode: too many pixels (a decompression bomb)"
            # Pillow's decoders raise anything on bytes they cannot take: a verdict on the file.
            except Exception as error:  # noqa: BLE001
                return f"decode: {str(error)[:200] or type(error).__name__}"
        return None
