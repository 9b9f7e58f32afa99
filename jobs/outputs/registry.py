"""The outputs that pack files, by their names."""

from __future__ import annotations

from jobs.model import Output
from jobs.outputs.base import PackedOutput
from jobs.outputs.webdataset import WebDataset
from jobs.outputs.zip import Zip

_PACKED: dict[Output, PackedOutput] = {Output.WEBDATASET: WebDataset(), Output.ZIP: Zip()}


def packed(output: Output) -> PackedOutput:
    """The output of that name (``KeyError`` for ``Output.FILES``)."""
    return _PACKED[output]


def outputs_with(option: str) -> tuple[Output, ...]:
    """The outputs that use this field of ``Options``."""
    return tuple(output for output, found in _PACKED.items() if option in found.options)
