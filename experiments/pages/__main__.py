"""`python -m experiments.pages`."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.pages.blocks import stale

ROOT = Path(__file__).parents[2]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = ROOT / "experiments" / "results",
    docs: Annotated[Path, typer.Option(help="Folder of the pages.")] = ROOT / "docs" / "experiments",
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if a page is not up to date.")] = False,
) -> None:
    """Fill the tables of the experiments' pages from their results."""
    found = stale(docs, results)
    for page, text in found.items():
        if not check:
            page.write_text(text)
        typer.echo(f"{'not up to date' if check else 'written'}: {page.name}")
    if check and found:
        typer.echo("type: python -m experiments.pages", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
