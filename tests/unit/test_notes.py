"""Notes beside committed positions survive a client that reads beyond their end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.kafka.notes import opened, sealed

LINE = st.text(st.characters(exclude_characters="\n"), max_size=20)


@given(LINE, st.text(max_size=4))
def test_a_note_ends_where_it_was_written_to_end(note: str, behind: str) -> None:
    """What stands behind a note in the client's memory is no part of it."""
    assert opened(sealed(note) + (behind if note else "")) == note


def test_other_programs_notes_are_read_as_they_are() -> None:
    """Metadata without an end, or none at all, is read as it is; no note is written as nothing."""
    assert opened("attempts=1") == "attempts=1"
    assert opened(None) == opened("") == sealed("") == ""
