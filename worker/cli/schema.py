"""``streaminfer schema``: the JSON Schema of configurations, for editors and for programs that check files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import worker
from worker.errors import StartError

FILE = Path(worker.__file__).parent / "config.schema.json"
"""The schema as it is installed."""

EXAMPLE = """\
examples:
  streaminfer schema --path
  streaminfer schema > config.schema.json

An editor with the YAML language server completes and checks a file that begins with
  # yaml-language-server: $schema=PATH"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print the JSON Schema of configurations, or where it is installed."
    parser.epilog = EXAMPLE
    parser.add_argument("--path", action="store_true", help="print where its file is instead")


def run(args: argparse.Namespace) -> int:
    """Print the schema, or its place.

    Raises:
        StartError: the installation lacks the file.
    """
    try:
        text = FILE.read_text(encoding="utf-8")
    except OSError as error:
        raise StartError(f"{FILE}: {error.strerror}; expected a whole installation of streaminfer") from None
    sys.stdout.write(f"{FILE.resolve() if FILE.is_symlink() else FILE}\n" if args.path else text)
    return 0
