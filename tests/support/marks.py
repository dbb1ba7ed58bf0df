"""Marks of cases."""

import pytest


def slow_but(fast, cases):
    """The cases of a test, all marked slow but those that are `fast`: each a value, or a tuple of several."""
    cases = list(cases)
    assert all(case in cases for case in fast), fast
    found = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        found.append(pytest.param(*values, marks=() if case in fast else pytest.mark.slow))
    return found
