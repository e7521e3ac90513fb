"""Helpers for the tests of configurations and custom code: one record in, what the worker would do with it out.

.. code-block:: python

    from streaminfer import testing

    def test_a_record_without_features_is_invalid():
        assert testing.answer("iris.yaml", value={}).rejected.reason == "invalid"
"""

from __future__ import annotations

from worker.local.kept import answer, forget

__all__ = ["answer", "forget"]
