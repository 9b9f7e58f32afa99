"""Which file a record's path means, where no file has that very path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from jobs.finalize.buckets import folded
from jobs.finalize.ground import Ground, shown_key
from jobs.finalize.passes import Reference, join_key, matches_spellings
from jobs.finalize.spelling import transcribed, unified
from jobs.storage.safe_paths import shown


class Meaning(NamedTuple):
    """What became of a reference."""

    reference: Reference
    key: str | None  # of the file that it means
    fact: str = ""  # why it means none


def meanings(
    ground: Ground,
    references: Sequence[Reference],
    files: Collection[str],
    literal: Collection[str],
    near: Mapping[str, str],
) -> Iterator[Meaning]:
    """The one file that each of ``references`` can mean among ``files``, all of one bucket.

    ``literal``: the files that a record names by their very path; no other path means these, nor
    do two paths mean one file. ``near``: a file by its folded name, for messages.
    """
    by_form = _by_form(ground, files) if references else {}
    meant: defaultdict[str, list[Reference]] = defaultdict(list)
    for reference in references:
        forms = (form for form in _forms(ground, reference) if form in by_form)
        keys = by_form.get(next(forms, ""), [])
        if len(keys) == 1:
            meant[keys[0]].append(reference)
        else:
            yield Meaning(reference, None, _fact(reference, keys, near))
    for key, rivals in meant.items():
        names = {_name(ground, reference.path) for reference in rivals if reference.required}
        if key in literal:
            names.add(_name(ground, key))
        for reference in rivals:
            others = names - {_name(ground, reference.path)}
            if not others:
                yield Meaning(reference, key)
            elif reference.required:
                fact = f"it may be {shown_key(key)}, which records name {shown(min(others))} too"
                yield Meaning(reference, None, f"is in no shard; {fact}")


def _by_form(ground: Ground, files: Collection[str]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    form = unified if matches_spellings(ground) else str
    for key in files:
        if "\0" not in key:  # what is not UTF-8 is not written into records
            found[form(key)].append(key)
    return found


def _forms(ground: Ground, reference: Reference) -> list[str]:
    if not matches_spellings(ground):
        return [reference.key]
    return [unified(key) for key in (reference.key, reference.other) if key is not None]


def _name(ground: Ground, path: str) -> str:
    return join_key(ground, transcribed(path))


def _fact(reference: Reference, keys: list[str], near: Mapping[str, str]) -> str:
    if keys:
        names = " and ".join(shown_key(key) for key in sorted(keys))
        return f"is in no shard; {names} are, in other spellings, and either may be meant"
    for key in (reference.key, reference.other):
        other = near.get(folded(key)) if key is not None else None
        if other is not None:
            return f"is in no shard; {shown_key(other)} is, in another spelling"
    return "is in no shard"
