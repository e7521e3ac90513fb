"""Smaller and faster models: makes candidates, measures each, and chooses one that keeps the answers.

Only the command ``optimize`` uses it; the worker never imports it. One new method is one new file and one line in
:mod:`worker.optimize.table`.
"""
