"""The pages of equations and of the code name places that exist; the first has the paper's equations and one more."""

import ast
import re
from pathlib import Path

import pytest

from docs.tools import rooms

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "maths.md").read_text()
CODE = (ROOT / "docs" / "architecture.md").read_text()
PLACES = sorted(set(re.findall(r"`(src/\S+\.py)` `(\w+)`", TEXT + CODE)))


def test_the_picture_of_the_code_has_every_room_and_the_pages_show_what_is_drawn(tmp_path: Path):
    here = {path.parent.name for path in (ROOT / "src" / "stagetrace").glob("*/__init__.py")}
    drawn = {name for words in rooms.ROOMS for name in words.split(", ")}
    assert here - drawn == {"cli", "demo", "progress"}
    for path in rooms.drawn(tmp_path):
        assert path.read_bytes() == (rooms.FOLDER / path.name).read_bytes(), "type: python -m docs.tools.rooms"


def test_all_equations_are_there_and_each_has_its_place():
    defined = {int(number) for number in re.findall(r"^\((\d+)\)", TEXT, re.MULTILINE)}
    rows = TEXT.partition("## Where each equation is")[2]
    placed = {int(number) for number in re.findall(r"\((\d+)\)", rows)}
    assert defined == placed == set(range(1, 20))


@pytest.mark.parametrize(("path", "name"), PLACES)
def test_each_place_exists(path: str, name: str):
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
