"""Thousands of tiny operations: one thread takes a fraction of the time of several."""

from collections.abc import Iterator

import pytest

from tests.oracles import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
