"""A small table, shown three ways: rich in a terminal, plain text, and HTML in a notebook."""

from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stagetrace.plaintext import printable

_LEFT = "text-align:left"
_RIGHT = "text-align:right"


@final
@dataclass(frozen=True)
class Sheet:
    """What a table says: a title, headings, rows of ready-made cells, and a line below.

    words: the headings of the columns that hold words (set to the left); the others hold numbers.
    loud: the numbers of the rows to be drawn in red. The cells must say the same in words.

    Example:
        >>> print(Sheet("a title", ("index", "score"), (("0", "+1.5"),)).text())
        a title
          index   score
         ───────────────
              0    +1.5
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    words: frozenset[str] = frozenset()
    loud: frozenset[int] = frozenset()

    def rich(self) -> Table:
        """The table for a rich console."""
        table = Table(
            title=Text(printable(self.title, lines=True), style="bold"),
            title_justify="left",
            caption=Text(printable(self.caption, lines=True)) if self.caption else None,
            caption_justify="left",
            box=box.SIMPLE,
        )
        for heading in self.headings:
            table.add_column(
                Text(printable(heading)), justify="left" if heading in self.words else "right", overflow="fold"
            )
        for number, row in enumerate(self.rows):
            table.add_row(*(Text(printable(cell)) for cell in row), style="bold red" if number in self.loud else "")
        return table

    def text(self, width: int = 140) -> str:
        """The table in plain text, at most `width` characters wide."""
        console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
        with console.capture() as capture:
            console.print(self.rich())
        lines = (line.rstrip() for line in capture.get().splitlines())
        return "\n".join(line for line in lines if line)

    def html(self) -> str:
        """The table in HTML; every cell is escaped, and what would hide in it is written out."""
        align = [_LEFT if heading in self.words else _RIGHT for heading in self.headings]
        head = _row("th", self.headings, align)
        body = "".join(
            _row("td", row, align, "color:#b00020;font-weight:bold" if number in self.loud else "")
            for number, row in enumerate(self.rows)
        )
        caption = f"<p>{escape(printable(self.caption, lines=True))}</p>" if self.caption else ""
        table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
        return f"<div><strong>{escape(printable(self.title, lines=True))}</strong>{table}{caption}</div>"


def _row(tag: str, cells: tuple[str, ...], align: list[str], style: str = "") -> str:
    inside = "".join(
        f'<{tag} style="{where}">{escape(printable(cell))}</{tag}>' for cell, where in zip(cells, align, strict=True)
    )
    return f'<tr style="{style}">{inside}</tr>' if style else f"<tr>{inside}</tr>"
