"""Dead letters: composing one and reading one."""
