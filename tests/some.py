"""Which of many cases are tested by default; the others where tests are slow."""

import pytest


def some(cases, fast):
    """The cases, slow but for those that are `fast`."""
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in cases]
