"""Recipes of packages that a stage is described by hand for: the loss is the trainer's, and so are its derivatives."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.recipes import others
from benchmarks.recipes.made import measured
from benchmarks.recipes.run import DERIVATIVE, LOSS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
EACH = [(package, name) for package, recipes in others.EVERY.items() for name in recipes]


@pytest.mark.parametrize(("package", "name"), EACH, ids=[name for _, name in EACH])
def test_numbers_are_those_of_the_code_that_trained(package: str, name: str, tmp_path: Path):
    if not find_spec(package):
        pytest.skip(f"{package} is not installed")
    found = measured(others.EVERY[package][name](tmp_path))
    assert found["loss"] < LOSS
    columns = ("Hessian product", "stage before", "scores")
    assert all(found[column] < DERIVATIVE for column in columns if found.get(column) is not None)


def test_without_a_package_a_line_is_said(monkeypatch: pytest.MonkeyPatch):
    said = list[str]()
    monkeypatch.setattr(others, "EVERY", {"no_such_package": {"a recipe": lambda folder: folder}})
    assert others.installed(said.append) == {}
    assert said == ["no-such-package is not installed, so its recipes are left out (1): pip install no-such-package"]
