"""When two spellings mean one path: escapes, separators, Unicode form, case of the ending.

These change on the way between systems: web tools percent-escape (RFC 3986, section 2.1), Windows
writes backslashes, macOS decomposes characters (Unicode Standard Annex 15), cameras write endings
in capitals.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from urllib.parse import unquote_to_bytes


def _unescaped(path: str) -> str:
    """With percent-escapes decoded, unless that does not give UTF-8."""
    if "%" not in path:
        return path
    try:
        return unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        return path


def _separated(path: str) -> str:
    """With ``/`` between components, and without ``.``, empty and inner ``..`` components."""
    path = path.replace("\\", "/")
    if "//" in path or "./" in path or path.endswith(("/", ".")):
        path = posixpath.normpath(path)
        if path.startswith("//"):  # which ``normpath`` keeps
            path = path[1:]
    return path


def _composed(path: str) -> str:
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _with_lower_ending(path: str) -> str:
    stem, ending = posixpath.splitext(path)
    return stem + ending.lower()


# Paths that no step changes, as nearly all are.
_is_unified = re.compile(r"(?:[\w -]+/)*[\w -]+(?:\.[a-z0-9]+)?", re.ASCII).fullmatch
_STEPS = (
    ("percent-escapes", _unescaped),
    ("separators", _separated),
    ("Unicode form", _composed),
    ("the case of its ending", _with_lower_ending),
)


def unified(path: str) -> str:
    """The form that all spellings of one path share; ``..`` and ``/`` may stay at its start."""
    if _is_unified(path):
        return path
    return _with_lower_ending(transcribed(path))


def transcribed(path: str) -> str:
    """``unified`` but for the case of the ending, by which two files of one folder may differ."""
    return _composed(_separated(_unescaped(path)))


def differences(one: str, other: str) -> str:
    """In what two spellings of one path differ, in words."""
    found = []
    for word, left_out in _STEPS:
        forms = [one, other]
        for _, step in _STEPS:
            if step is not left_out:
                forms = [step(form) for form in forms]
        if forms[0] != forms[1]:
            found.append(word)
    return " and ".join(found) or "spelling"
