"""The tables of the benchmarks' pages: `python -m docs.tools.benchmarks [--check]`.

A block `<!-- table: FILE KEY -->` ... `<!-- end -->` holds the rows that FILE.json, of the page's folder of results,
has under KEY, so no number is typed by hand. `<!-- table: runs -->` says what each file was measured on, and
`<!-- table: targets -->` what was promised of it and whether it was met.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.pages.blocks import BLOCK
from experiments.pages.cells import NOT_RUN, markdown

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {
    PAGE: RESULTS,
    ROOT / "docs" / "beside.md": RESULTS,
    ROOT / "docs" / "recipes.md": RESULTS,
    ROOT / "docs" / "corpora.md": RESULTS,
    ROOT / "docs" / "why.md": RESULTS,
    ROOT / "docs" / "tutorials" / "dpo.md": RESULTS,
    ROOT / "docs" / "two-stage-benchmark.md": ROOT / "benchmarks" / "two_stage" / "results",
}
"""Page -> the folder of its results."""


def filled(text: str, results: Path) -> str:
    """The page with its tables made anew."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    if len(BLOCK.findall(text)) != text.count("<!-- table:"):
        raise ValueError("a block '<!-- table: ... -->' without its '<!-- end -->'")
    return BLOCK.sub(lambda block: f"{block[1]}\n{_made(block[2], found)}\n{block[4]}", text)


def _made(words: str, found: dict[str, Any]) -> str:
    if words == "runs":
        head = ("file", "date", "device", "cores", "threads", "torch")
        return markdown(head, [_run(each) for each in found.values()])
    if words == "targets":
        head = ("file", "what", "found", "aim: at most", "met")
        return markdown(head, [row for name, each in found.items() for row in _targets(name, each)])
    name, key = re.split(r"\s+", words, maxsplit=1)
    rows = found[name][key]
    if not rows:
        return NOT_RUN
    head = list(dict.fromkeys(column for row in rows for column in row))
    return markdown(head, [[_cell(row.get(column)) for column in head] for row in rows])


def _run(result: dict[str, Any]) -> list[object]:
    on = result["hardware"]
    device = result.get("card", f"{on['device']}, {on['kind']}")
    return [result["benchmark"], result["date"], device, on["cores"], on["threads"], result["versions"]["torch"]]


def _targets(name: str, result: dict[str, Any]) -> list[list[object]]:
    return [
        [name, each["what"], _cell(each["reached"]), _cell(each["at_most"]), "yes" if each["met"] else "**no**"]
        for each in result["targets"]
    ]


def _cell(value: object) -> str | None:
    """A number in three digits; what was not measured stays None."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if value is None or isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main(check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if out of date.")] = False) -> None:
    """Fill the tables of the benchmarks' pages from their results."""
    for page, results in PAGES.items():
        text = filled(page.read_text(), results)
        if text == page.read_text():
            continue
        if check:
            typer.echo(f"{page.name} is not up to date; type: python -m docs.tools.benchmarks", err=True)
            raise typer.Exit(1)
        page.write_text(text)
        typer.echo(f"written: {page}")


if __name__ == "__main__":
    typer.run(main)
