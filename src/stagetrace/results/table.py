"""Small tables, shown four ways: rich in a terminal, plain text, HTML in a notebook, and Markdown."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple, NoReturn, final

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from stagetrace.errors import DescriptionError
from stagetrace.plaintext import printable
from stagetrace.results.sign import REMOVAL_HEADING, SCORE_HEADING

if TYPE_CHECKING:
    from pandas import DataFrame  # pyright: ignore[reportMissingTypeStubs]

_LEFT = "text-align:left"
_RIGHT = "text-align:right"


@final
@dataclass(frozen=True)
class Table:
    """What a table says: a title, headings, rows of ready-made cells, and a line below.

    words: the headings of the columns that hold words (set to the left); the others hold numbers.
    highlighted: the numbers of the rows to be drawn in red. The cells must say the same in words.

    Example:
        >>> print(Table("a title", ("index", "score"), (("0", "+1.5"),)).text())
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
    highlighted: frozenset[int] = frozenset()

    def rich(self) -> RichTable:
        """The table for a rich console."""
        table = RichTable(
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
            table.add_row(
                *(Text(printable(cell)) for cell in row), style="bold red" if number in self.highlighted else ""
            )
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
            _row("td", row, align, "color:#b00020;font-weight:bold" if number in self.highlighted else "")
            for number, row in enumerate(self.rows)
        )
        caption = f"<p>{escape(printable(self.caption, lines=True))}</p>" if self.caption else ""
        table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
        return f"<div><strong>{escape(printable(self.title, lines=True))}</strong>{table}{caption}</div>"

    def markdown(self) -> str:
        """The head and the rows in Markdown, without title and caption."""
        rule = ["---" if heading in self.words else "---:" for heading in self.headings]
        lines = [map(_markdown_cell, self.headings), rule, *(map(_markdown_cell, row) for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(tag: str, cells: tuple[str, ...], align: list[str], style: str = "") -> str:
    inside = "".join(
        f'<{tag} style="{where}">{escape(printable(cell))}</{tag}>' for cell, where in zip(cells, align, strict=True)
    )
    return f'<tr style="{style}">{inside}</tr>' if style else f"<tr>{inside}</tr>"


def _markdown_cell(text: str) -> str:
    """A cell's text, not taken for a table's or a page's own marks."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", r"\|")


class ShownAsTable(ABC):
    """What `print`, a rich console and a notebook show as its table."""

    @abstractmethod
    def table(self) -> Table:
        """What it says, ready to be drawn."""

    def __str__(self) -> str:
        return self.table().text()

    def __rich__(self) -> RichTable:
        return self.table().rich()

    def _repr_html_(self) -> str:
        return self.table().html()

    def sheet(self) -> NoReturn:
        """The former name of `table`."""
        raise AttributeError(f"{type(self).__name__}.sheet() is now table()")


class Row(NamedTuple):
    """One example: its index in the stage's data set, its score and the effect of removing it."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index, as a row's name may
    score: float
    removal_effect: float


@final
@dataclass(frozen=True)
class Top(ShownAsTable):
    """Examples in order of their score: an immutable table that iterates over its rows.

    Sign: a positive score is harmful (more weight on the example raises the query loss); a negative removal
    effect means that removing the example helps. Unit of both: query loss.

    named: the examples' stable ids by their index; empty where they have none.

    Example:
        >>> top = Top("most harmful", (Row(index=7, score=0.5, removal_effect=-0.05),))
        >>> [row.index for row in top], top.scores, len(top)
        ([7], (0.5,), 1)
        >>> print(top)
        most harmful
          index   score (+ harmful, query loss)   effect of removal (query loss; - helps)
         ─────────────────────────────────────────────────────────────────────────────────
              7                      +5.000e-01                                -5.000e-02
    """

    title: str
    rows: tuple[Row, ...]
    named: Mapping[int, str] = field(default_factory=dict[int, str])

    @property
    def ids(self) -> tuple[str, ...] | None:
        """The examples' stable ids; None where they have none."""
        return tuple(self.named[row.index] for row in self.rows) if self.named else None

    @property
    def indices(self) -> tuple[int, ...]:
        """The examples' indices in the stage's data set."""
        return tuple(row.index for row in self.rows)

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores; positive = harmful; unit: query loss."""
        return tuple(row.score for row in self.rows)

    @property
    def removal_effects(self) -> tuple[float, ...]:
        """The predicted changes of the query loss on removal; negative = removing it helps."""
        return tuple(row.removal_effect for row in self.rows)

    def to_pandas(self) -> "DataFrame":
        """A frame with the columns index, id (where there are ids), score, removal_effect.

        Raises:
            DescriptionError: pandas is not installed.
        """
        ids = {} if self.ids is None else {"id": self.ids}
        return frame({"index": self.indices, **ids, "score": self.scores, "removal_effect": self.removal_effects})

    def table(self) -> Table:
        """What it says, ready to be drawn."""
        ids = [()] * len(self.rows) if self.ids is None else [(name,) for name in self.ids]
        rows = tuple(
            (str(row.index), *name, f"{row.score:+.3e}", f"{row.removal_effect:+.3e}")
            for row, name in zip(self.rows, ids, strict=True)
        )
        called = ("id",) if self.named else ()
        headings = ("index", *called, SCORE_HEADING, REMOVAL_HEADING)
        return Table(self.title, headings, rows, words=frozenset(called))

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Row:
        return self.rows[place]


def frame(columns: Mapping[str, Sequence[object]], index: Sequence[object] | None = None) -> "DataFrame":
    """The columns as a `pandas.DataFrame`.

    Raises:
        DescriptionError: pandas is not installed.
    """
    try:
        pandas = import_module("pandas")
    except ImportError as cause:
        raise DescriptionError(
            "to_pandas() needs pandas, which is not installed; type: pip install pandas "
            "(or read the Parquet files of a saved run with any other reader)"
        ) from cause
    return pandas.DataFrame(dict(columns), index=index)
