"""The source text of JSON: where values begin and end, so that all other bytes can stay unchanged.

Everything that ``json.loads`` accepts is JSON here: NaN, unpaired surrogate escapes, and numbers of
any size, which are not converted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_space = re.compile(r"[ \t\r\n]*")
# Strings contain no raw line breaks, so a line break is white space between tokens.
_line_breaks = re.compile(r"[ \t]*[\r\n][ \t\r\n]*")


class Number:
    """The source text of a number."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


_decoder = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=Number)


def value_at(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at ``at``, numbers as ``Number``, and where it ends.

    Raises ``json.JSONDecodeError`` and ``RecursionError``.
    """
    return _decoder.raw_decode(text, at)


def skip(text: str, at: int) -> int:
    """The next position that is not white space."""
    match = _space.match(text, at)
    return match.end() if match else at


def children(text: str, start: int) -> Iterator[tuple[str | int, int, int]]:
    """Each value of the object or array at ``start``: its key or index, its start and its end.

    ``text`` must be valid JSON.
    """
    closing = "}" if text[start] == "{" else "]"
    at = skip(text, start + 1)
    index = 0
    while text[at] != closing:
        key: str | int = index
        if closing == "}":
            key, colon = value_at(text, at)
            at = skip(text, skip(text, colon) + 1)
        end = value_at(text, at)[1]
        yield key, at, end
        at = skip(text, end)
        if text[at] == ",":
            at = skip(text, at + 1)
        index += 1


def on_one_line(text: str) -> str:
    """The same JSON without line breaks."""
    return _line_breaks.sub(" ", text)
