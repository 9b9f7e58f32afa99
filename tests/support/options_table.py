"""The guide's options reference, generated from the commands.

`python -m tests.support.options_table` writes it into the guide again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from orchestrator import cli

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "DOWNLOAD_GUIDE.md"
SHARED, FULL = "Slurm", "launch"  # the options that several commands have are listed at one
BEGIN, END = "<!-- options -->", "<!-- end of options -->"


def commands() -> dict[str, click.Command]:
    """Every command by its name, loaded."""
    group = cli.cli
    ctx = click.Context(group)
    found = {name: group.get_command(ctx, name) for name in group.list_commands(ctx)}
    return {name: command for name, command in found.items() if command is not None}


def reference() -> str:
    """A table of options for each command, as Markdown."""
    parts = [BEGIN]
    for name, command in commands().items():
        words = [f"websight-orchestrate {name}", "[OPTIONS]", *_arguments(command)]
        parts += ["", f"### {name}", "", f"`{' '.join(words)}`"]
        if rows := list(_rows(command, without=SHARED if name != FULL else None)):
            parts += ["", "| option | what it does |", "|---|---|", *rows]
    return "\n".join([*parts, "", END])


def _arguments(command: click.Command) -> Iterator[str]:
    for param in command.params:
        if isinstance(param, click.Argument):
            word = (param.name or "").upper()
            yield word if param.required else f"[{word}]"


def _rows(command: click.Command, *, without: str | None) -> Iterator[str]:
    """A row for each option; a single one for the group ``without``."""
    last = ""
    for param in command.params:
        if isinstance(param, click.Option) and not param.hidden:
            title = getattr(param, "title", "")
            if title != last:
                there = f"as for [{FULL}](#{FULL}) " if title == without else ""
                yield f"| **{title or 'Other'}** | {there}|"
            last = title
            if title == without:
                continue
            names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
            reported = (param.help or "").replace("|", "/")
            yield f"| {names}{_value(param)} | {reported}{_default(param)} |"


def _value(param: click.Option) -> str:
    if param.is_flag:
        return ""
    if isinstance(param.type, click.Choice):
        return f" {', '.join(map(str, param.type.choices))}"
    return f" {(param.metavar or param.type.name.upper().split()[0]).replace('|', ', ')}"


def _default(param: click.Option) -> str:
    if isinstance(param.default, bool):
        names = param.opts if param.default else param.secondary_opts
        return f" Default: `{names[0]}`." if param.secondary_opts else ""
    known = isinstance(param.default, str | int | float | Path)
    return f" Default: `{param.default}`." if known else ""


def main() -> None:
    """Put the reference into the guide in place of the old one."""
    text = GUIDE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    GUIDE.write_text(before + reference() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
