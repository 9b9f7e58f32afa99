"""Hints on archives whose files share folders now, although they may be different sets.

Of such files nothing says any more from which archive, and so from which set or class, they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import pairwise

from jobs.finalize.context import FinalizeContext
from jobs.formats import magic
from jobs.model import OnCollision, ShardKind
from jobs.storage.safe_paths import quoted_few

_SHOWN = 3  # names in a hint, at most
_DIGITS = re.compile(r"\d+")


def hints(context: FinalizeContext) -> Iterator[str]:
    """A sentence for each way in which archives lost what kept their files apart."""
    options = context.plan.options
    if options.on_collision is OnCollision.PER_SHARD:
        return
    if options.layout.has_records and not context.pieces:
        return  # that no records were found is reported
    tops = context.tops - {""}
    if _are_several(tops):
        yield (
            f"the top folders of archives were removed ({quoted_few(sorted(tops), _SHOWN)}), so "
            "files of different ones are in the same folders; to keep the top folders, launch "
            "with --strip-components 0"
        )
    if options.layout.has_records or options.strip_components:
        return  # records say what belongs together, or folders were removed on request
    without = _without_folders(context)
    if _are_several({name.removesuffix(magic.ending(name)) for name in without}):
        yield (
            f"the files of some archives ({quoted_few(without, _SHOWN)}) are in no folder there, "
            "so they are in one folder now; to give each archive a folder, launch with "
            "--on-collision per-shard"
        )


def _are_several(names: Collection[str]) -> bool:
    """Whether these may be the names of several sets, not of the pieces of one (``part-1``)."""
    return len({_DIGITS.sub("0", name) for name in names}) > 1


def _without_folders(context: FinalizeContext) -> list[str]:
    """The names of archives with several files, none of which is in a folder."""
    files = dict.fromkeys(context.shards, 0)
    for part, (start, stop) in zip(context.parts, pairwise(context.part_starts), strict=True):
        files[part.shard] += stop - start
    return [
        shard.name
        for shard in context.plan.shards
        if shard.kind is ShardKind.ARCHIVE and shard.id not in context.in_folders
        if files[shard.id] > 1
    ]
