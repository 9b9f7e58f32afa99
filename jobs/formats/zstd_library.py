"""Where zstd is: a module of Python's own, or its backport before Python 3.14."""

from __future__ import annotations

import sys
from types import ModuleType


def zstd() -> ModuleType:
    """The module, imported where it is needed."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
