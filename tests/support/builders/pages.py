"""Archives of WebSight pages: a PNG and a record for each."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping

from tests.support.builders.staged import png


def tar(files: Mapping[str, bytes]) -> bytes:
    """A plain tar of ``files``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def images(numbers: Iterable[int], colour: int | None = None) -> dict[str, bytes]:
    """The images of pages, by their paths."""
    return {f"images/{n:04d}.png": png(n if colour is None else colour) for n in numbers}


def records(numbers: Iterable[int], note: str = "") -> bytes:
    """The records of pages, as JSON lines."""
    lines = (
        json.dumps({"id": f"{n:04d}", "image": f"images/{n:04d}.png", "prompt": f"{note}{n} é"})
        for n in numbers
    )
    return "".join(f"{line}\n" for line in lines).encode()


def pages(numbers: Iterable[int], note: str = "", colour: int | None = None) -> bytes:
    """A tar of pages."""
    numbers = list(numbers)
    return tar({**images(numbers, colour), "prompts.jsonl": records(numbers, note)})
