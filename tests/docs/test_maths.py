"""The page of equations names places in the code that exist, and every equation of the paper."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "maths.md").read_text()
PLACES = sorted(set(re.findall(r"`(src/\S+\.py)` `(\w+)`", TEXT)))


def test_all_equations_of_the_paper_are_there_and_each_has_its_place():
    defined = {int(number) for number in re.findall(r"^\((\d+)\)", TEXT, re.MULTILINE)}
    rows = TEXT.partition("## Where each equation is")[2]
    placed = {int(number) for number in re.findall(r"\((\d+)\)", rows)}
    assert defined == placed == set(range(1, 19))


@pytest.mark.parametrize(("path", "name"), PLACES)
def test_each_place_exists(path: str, name: str):
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
