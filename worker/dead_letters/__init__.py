"""Dead letters: how one is composed, and how one is read."""
