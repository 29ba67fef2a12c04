"""`blockcow completion`: prints the script that makes a shell complete blockcow's verbs and options."""

import click
from click.shell_completion import get_completion_class

from blockcow.cli.verb import Verb


@click.command(cls=Verb)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Prints the completion script for bash, zsh or fish.

    \b
    bash: blockcow completion bash > ~/.local/share/bash-completion/completions/blockcow
    zsh:  blockcow completion zsh > a folder of your $fpath, as _blockcow
    fish: blockcow completion fish > ~/.config/fish/completions/blockcow.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click has no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "blockcow", "_BLOCKCOW_COMPLETE").source())
