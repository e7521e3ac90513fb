"""Sends open-loop load through a running group and measures the latency of its results."""
