"""Chains of Hugging Face stages as rows of the page about models."""

from functools import partial

from tests.hf.test_chains import CASES, error
from tests.models import Right, Row

ROWS: list[Row] = [
    Right("chains", name, partial(error, name), 1e-5, case.link.__name__) for name, case in CASES.items()
]
