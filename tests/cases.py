"""Cases of which a few run with every change, and stand for the others, which are slow."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Every case as a parameter, a tuple as several; those that are not quick are marked as slow."""
    params = list(cases)
    missing = [case for case in quick if case not in params]
    assert not missing, f"no such case: {missing}"
    marks = [() if case in quick else pytest.mark.slow for case in params]
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark)
        for case, mark in zip(params, marks, strict=True)
    ]
