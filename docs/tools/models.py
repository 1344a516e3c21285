"""The tables of the page about models: `python -m docs.tools.models [--all] [--check]`.

The rows are those of `tests/models.py`. A number that the page has is kept; `--all` measures every row again.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer

from experiments.pages.blocks import BLOCK
from experiments.pages.cells import markdown
from tests.models import Refused, Right, Row, rows

PAGE = Path(__file__).parents[1] / "models.md"
NUMBER = re.compile(r"^\| (.+?) \| ([0-9.]+e[+-]\d+) \|", re.MULTILINE)
TRIED, NOT_TAKEN = ("what", "relative error", "tested to", "how"), ("what", "instead")


def errors_of(text: str) -> dict[str, float]:
    """What the page says each row missed by."""
    return {what: float(number) for what, number in NUMBER.findall(text)}


def filled(text: str, errors: Mapping[str, float], of: list[Row]) -> str:
    """The page with its tables made anew.

    Raises:
        ValueError: a table without rows, a row without a table, or two rows of one name.
    """
    tables, names = {block[1] for block in BLOCK.findall(text)}, [row.what for row in of]
    if tables != {row.table for row in of} or len(set(names)) < len(names):
        raise ValueError(f"the page has the tables {sorted(tables)}; the rows have {sorted({r.table for r in of})}")
    return BLOCK.sub(lambda block: f"{block[1]}\n{_made(block[2], errors, of)}\n{block[4]}", text)


def _made(table: str, errors: Mapping[str, float], of: list[Row]) -> str:
    mine = [row for row in of if row.table == table]
    tried = [row for row in mine if isinstance(row, Right)]
    refused = [row for row in mine if isinstance(row, Refused)]
    parts = []
    if tried:
        cells = [[row.what, f"{errors[row.what]:.0e}", f"{row.at_most:.0e}", row.how] for row in tried]
        parts.append(markdown(TRIED, cells))
    if refused:
        parts.append(markdown(NOT_TAKEN, [[row.what, row.instead] for row in refused]))
    return "\n".join(parts)


def main(
    everything: Annotated[bool, typer.Option("--all", help="Measure every row, not only what the page lacks.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if out of date.")] = False,
) -> None:
    """Fill the tables of the page about models, measuring what it lacks."""
    text, of = PAGE.read_text(), rows()
    known = {} if everything else errors_of(text)
    lacking = [row for row in of if isinstance(row, Right) and row.what not in known]
    if check:
        if lacking or filled(text, known, of) != text:
            typer.echo("the page about models is not up to date; type: python -m docs.tools.models", err=True)
            raise typer.Exit(1)
        return
    torch.set_num_threads(1)
    for row in lacking:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # models that nobody trained
            known[row.what] = row.error()
        typer.echo(f"{row.what}: {known[row.what]:.0e}")
    PAGE.write_text(filled(text, known, of))


if __name__ == "__main__":
    typer.run(main)
