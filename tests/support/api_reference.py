"""docs/api.md, made from docstrings; `python -m tests.support.api_reference` writes it."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from orchestrator import api

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def _signature(name: str, what: object) -> str:
    if isinstance(what, type) and issubclass(what, (enum.Enum, Exception)):
        return f"class {name}"
    words = str(inspect.signature(what)).replace("PosixPath", "Path")  # type: ignore[arg-type]
    words = re.sub(r"(: |-> )'([^']*)'", r"\1\2", words)
    return f"{'class ' if isinstance(what, type) else ''}{name}{words}"


def _entries() -> Iterator[tuple[str, str, str]]:
    """Heading, signature and docstring of each name, and of a class's own methods."""
    for name in api.__all__:
        what = getattr(api, name)
        yield name, _signature(name, what), inspect.getdoc(what) or ""
        for member, value in vars(what).items() if isinstance(what, type) else ():
            if inspect.isfunction(value) and not member.startswith("_") and inspect.getdoc(value):
                yield f"{name}.{member}", _signature(member, value), inspect.getdoc(value) or ""


def reference() -> str:
    """The whole document."""
    lines = ["# orchestrator.api", "", (inspect.getdoc(api) or "").partition("\n\n>>>")[0]]
    for heading, signature, doc in _entries():
        lines += ["", f"## {heading}", "", "```python", signature, "```", "", doc]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
