"""Decodes all pixels with Pillow: the deepest check, at twelve times the extraction's time."""

from __future__ import annotations

import io
import re
import warnings

from jobs import extras, rlimits
from jobs.checks.base import WARNING, ImageCheck, is_warning

MAX_BYTES = 64 << 20  # of a decoded file, at most; bounds a task's memory
MAX_PIXELS = 2 * (1 << 30) // 4 // 3  # of all frames; Pillow's limit for a bomb
_NO_DECODER = re.compile(r"decoder \w+ not available")  # Pillow's message
# Pillow's plugins by format; other formats have none.
_PLUGINS = {
    "PNG": "PNG",
    "JPEG": "JPEG",
    "GIF": "GIF",
    "WebP": "WEBP",
    "BMP": "BMP",
    "TIFF": "TIFF",
    "AVIF": "AVIF",
    "JPEG 2000": "JPEG2000",
    "PNM": "PPM",
}


class Decode:
    """Checks the structure first, and then decodes the file.

    A file fails if the plugin for its format cannot open or decode it. If this Pillow has no such
    plugin, or was built without the decoder, the file gets a warning.
    """

    def __init__(self, structure: ImageCheck) -> None:
        try:
            import PIL.Image
            import PIL.PngImagePlugin
        except ImportError as error:
            raise extras.DECODE.missing() from error
        # Compressed texts and colour profiles of more than 1 MiB are no damage.
        PIL.PngImagePlugin.MAX_TEXT_CHUNK = PIL.PngImagePlugin.MAX_TEXT_MEMORY = MAX_BYTES
        self._pil = PIL
        self._structure = structure
        self._data = bytearray()
        self._size = 0

    def feed(self, data: memoryview) -> None:
        self._structure.feed(data)
        self._size += len(data)
        if self._size <= MAX_BYTES and self._structure.may_be_image:
            self._data += data

    def finish(self) -> str | None:
        finding = self._structure.finish()
        if not self._structure.may_be_image or (finding is not None and not is_warning(finding)):
            return finding
        if self._size > MAX_BYTES:
            return f"{WARNING}not decoded: larger than {MAX_BYTES >> 20} MiB"
        decoded = self._decode()
        return finding if decoded is None else self._structure.qualified(decoded)

    def _decode(self) -> str | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and of half a bomb
            try:
                with self._pil.Image.open(io.BytesIO(self._data)) as image:
                    pixels = image.width * image.height
                    frames = getattr(image, "n_frames", 1)
                    if self._structure.content == "JPEG":
                        frames = 1  # others (MPO) are previews, which many programs cut off
                    for frame in range(min(frames, max(1, MAX_PIXELS // max(1, pixels)))):
                        image.seek(frame)
                        image.load()
            except self._pil.UnidentifiedImageError:
                return self._not_opened()
            except self._pil.Image.DecompressionBombError:
                most = MAX_PIXELS // 10**6
                return f"{WARNING}not decoded: it has more than {most} million pixels"
            except MemoryError as error:
                if rlimits.reached(error):
                    raise  # a limit of this process, not a fault of the file
                return self._failed(error)
            # Pillow's decoders raise all kinds of exceptions for damaged files.
            except Exception as error:  # noqa: BLE001
                return self._failed(error)
        return None

    def _not_opened(self) -> str:
        """Why no plugin has opened the file: damage, or a missing plugin."""
        content, pillow = self._structure.content, self._pil.__version__
        plugin, accept = self._pil.Image.OPEN.get(_PLUGINS.get(str(content), "")) or (None, None)
        claim = accept is not None and accept(bytes(self._data[:16]))
        # A plugin's check returns a text if this Pillow was built without a codec.
        if plugin is None or not claim or isinstance(claim, str):
            return f"{WARNING}not decoded: Pillow {pillow} cannot read {content} here"
        try:
            plugin(io.BytesIO(self._data), "")  # again, for the reason, which `open` hides
        except Exception as error:  # noqa: BLE001
            return self._failed(error)
        return f"decode: Pillow cannot open this {content}"

    def _failed(self, error: Exception) -> str:
        text = str(error)[:200] or type(error).__name__
        if isinstance(error, OSError) and _NO_DECODER.fullmatch(text):
            return f"{WARNING}not decoded: Pillow was built without it: {text}"
        return f"decode: {text}"
