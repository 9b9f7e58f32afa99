"""``completion``: scripts for shell completion."""

from __future__ import annotations

import click

_HOW = """\b
  bash:  eval "$(websight-orchestrate completion bash)"     in ~/.bashrc
  zsh:   eval "$(websight-orchestrate completion zsh)"      in ~/.zshrc
  fish:  websight-orchestrate completion fish | source      in ~/.config/fish/config.fish"""


@click.command(epilog=_HOW)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> int:
    """Print a script for SHELL that completes commands, options and run ids."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    name = "websight-orchestrate"
    maker = kind(ctx.find_root().command, {}, name, "_WEBSIGHT_ORCHESTRATE_COMPLETE")
    click.echo(maker.source())
    return 0
