"""The outputs that pack files, by their names."""

from __future__ import annotations

from pathlib import PurePath

from jobs.model import Output
from jobs.outputs.base import PackedOutput
from jobs.outputs.squashfs import Squashfs
from jobs.outputs.webdataset import WebDataset
from jobs.outputs.zip import Zip

_PACKED: dict[Output, PackedOutput] = {
    Output.WEBDATASET: WebDataset(),
    Output.ZIP: Zip(),
    Output.SQUASHFS: Squashfs(),
}


def packed(output: Output) -> PackedOutput:
    """The output of that name (``KeyError`` for ``Output.FILES``)."""
    return _PACKED[output]


def made(shard: str) -> PackedOutput:
    """The output with shards of that name (``KeyError`` if there is none)."""
    return {output.ending: output for output in _PACKED.values()}[PurePath(shard).suffix]


def outputs_with(option: str) -> tuple[Output, ...]:
    """The outputs that use this field of ``Options``."""
    return tuple(output for output, found in _PACKED.items() if option in found.options)
