"""Schemas by the id that a record carries: the frame, the registry's client, what is known, and what is waited for."""
