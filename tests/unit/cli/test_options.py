"""The options that several commands share, as their help pages show them."""

from __future__ import annotations

import re

import click
import pytest

from tests.support import options_table

COMMANDS = options_table.commands()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_help_page_has_an_entry_for_each_option_and_for_no_argument(name: str) -> None:
    command = COMMANDS[name]
    ctx = click.Context(command, info_name=name)
    _, *sections = re.split(r"^\S.*:\n", command.get_help(ctx), flags=re.M)
    entries = re.findall(r"^  ([-\[][^\s,]+)", "".join(sections), re.M)
    params = command.get_params(ctx)
    assert entries and sorted(entries) == sorted(
        each.opts[0] for each in params if isinstance(each, click.Option)
    )
