"""Text that somebody else wrote, on one line of ours."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.text import one_line, printable


@given(st.text(max_size=3_000))
def test_a_message_is_one_short_line(text: str) -> None:
    """The line has at most 1 KiB of UTF-8 and no control, separator or surrogate, whatever the text is."""
    line = one_line(text)
    assert len(line.encode()) <= 1024
    assert len(line.splitlines()) <= 1
    assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=200))
def test_harmless_text_stays_as_it_is(text: str) -> None:
    """Letters, digits, marks and symbols of any script are kept."""
    assert printable(text) == text


def test_line_breaks_become_spaces_in_a_line() -> None:
    """A line has single spaces for white space of any kind; otherwise only what the caller keeps stays."""
    assert one_line("two\r\n\tlines\u2028three") == "two lines three"
    assert printable("two\nlines\t", keep="\n") == "two\nlines\\t"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b2J", r"\x9b2J"),
        ("abc\u202edcba", r"abc\u202edcba"),
        ("\u2066x\u2069", r"\u2066x\u2069"),
        ("a\u200bb", r"a\u200bb"),
        ("bell\x07 null\x00", r"bell\x07 null\x00"),
        ("half \ud800 pair", r"half \ud800 pair"),
    ],
)
def test_what_a_terminal_acts_on_is_escaped(text: str, shown: str) -> None:
    """Escape sequences, C1 controls, bidirectional controls and invisible characters are shown, not obeyed."""
    assert printable(text) == shown
