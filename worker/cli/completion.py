"""``streaminfer completion``: prints a script with which a shell completes commands, options, files and settings."""

from __future__ import annotations

import argparse
import sys

from worker.cli.completion_shells import SHELLS

EXAMPLE = """\
examples:
  streaminfer completion bash > ~/.local/share/bash-completion/completions/streaminfer
  streaminfer completion zsh > ~/.zfunc/_streaminfer
  streaminfer completion fish > ~/.config/fish/completions/streaminfer.fish

Make it again after an update. For this session only, in bash: source <(streaminfer completion bash)"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print a script with which a shell completes commands, options, files, the words of an option, and the keys of "
        "--set. It does not start Python when you press Tab."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("shell", metavar="SHELL", choices=[*SHELLS], help=", ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from worker.cli.completion_tree import commands, setting_keys

    sys.stdout.write(SHELLS[args.shell](commands(), setting_keys()))
    return 0
