"""Command lines: argparse whose mistakes are one sentence with the nearest word, and whose help is wrapped."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from worker.errors import ConfigError

_COLUMN = 28
"""Where the descriptions of options begin, at most."""


class HelpFormatter(argparse.HelpFormatter):
    """Wraps each paragraph of a description; examples and tables keep their lines."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": _COLUMN, **options})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(each if _has_lines(each) else textwrap.fill(each, width) for each in paragraphs)


def _has_lines(paragraph: str) -> bool:
    """Whether the lines of a paragraph are its author's: an example, or a list."""
    return "\n" in paragraph or paragraph.startswith("example")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence instead of a page of usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **options})

    def _print_message(self, message: str, file: Any = None) -> None:
        """As argparse does, but what cannot be written is an error: there, a help that nobody got is one that was shown."""
        if message:
            (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        between = " " if message.endswith("?") else "; "
        raise ConfigError(f"{message}{between}see {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; words that nobody takes are a mistake of the command that got them.

        Raises:
            ConfigError: a mistake in the command line.
        """
        found, extras = self.parse_known_args(args, namespace)
        if extras:
            parser = self._deepest(found)
            parser.error(f"unrecognized arguments: {' '.join(extras)}{parser._hint(extras)}")
        return found

    def _deepest(self, found: argparse.Namespace) -> Parser:
        """The parser of the innermost command that was named."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                inner = action.choices.get(getattr(found, action.dest, None) or "")
                if isinstance(inner, Parser):
                    return inner._deepest(found)
        return self

    def _hint(self, extras: Sequence[str]) -> str:
        """What an unknown option was meant to be."""
        unknown = next((word for word in extras if word.startswith("-")), None)
        if unknown is None:
            return ""
        options = [
            name
            for action in self._actions
            if action.help != argparse.SUPPRESS
            for name in action.option_strings
            if name.startswith("--")
        ]
        return did_you_mean(unknown.partition("=")[0], options)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(each) for each in action.choices]
        hint = did_you_mean(str(value), choices) or f"; expected one of {', '.join(choices)}"
        raise argparse.ArgumentError(action, f"got {value!r}{hint}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean run?``; empty where nothing known is like the word."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1) or [each for each in known if _begins(each, word)][:1]
    return f"; did you mean {near[0]}?" if near else ""


def _begins(name: str, word: str) -> bool:
    """Whether a word is the beginning of a name, with enough letters to say so."""
    return len(re.sub("^-+", "", word)) > 1 and name.startswith(word)
