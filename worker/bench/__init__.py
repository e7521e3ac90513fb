"""Open-loop load through a running group: what was sent when, what came back when, and what that says."""
