"""What the commands print."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stagetrace.plaintext import printable
from stagetrace.preflight import Finding, Level
from stagetrace.report.numbers import number
from stagetrace.report.preview import Preview
from stagetrace.report.previews import Previews, read_previews
from stagetrace.report.reach import reach_of_run
from stagetrace.report.words import in_words
from stagetrace.results import Ranking, Scores, Trace
from stagetrace.results.table import Row, Top
from stagetrace.results.tokens import TokenScores, table_of
from stagetrace.solvers.base import Solution
from stagetrace.stages.chain import Chain
from stagetrace.validation import Validation, report

LINE = 60
"""Characters of an example in a table, at most."""

FAR = 100
"""Examples of a ranking that are looked at for some that look the same: of more there are no previews."""

NUMBERS = 64
"""Characters of a line that the other columns need."""

STYLES = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "bold yellow"}


def result(trace: Trace, top: int, console: Console, out: Path, page: Path | None = None) -> None:
    """The summary table, the most harmful and most helpful examples of each stage, and where it all is."""
    summary(trace, console, out)
    if top:
        previews = read_previews(out)
        for scores in trace.scores.values():
            ranking(scores, top, console, previews)
            token_ranking(trace.tokens.get(scores.stage), top, console, previews)
    if page is not None:
        console.print(f"to look at it, open {page}", soft_wrap=True, highlight=False)
    console.print(f"saved to {out}", soft_wrap=True)


def summary(trace: Trace, console: Console, folder: Path) -> None:
    """How far the scores reach, where a training was recorded; then a line a stage."""
    for found in reach_of_run(trace, folder):
        words = printable(f"{found.where}: {found.text}", lines=True)
        console.print(Text(words, style=STYLES[found.level]), soft_wrap=True)
    console.print(legible(trace.table().rich(), console.width))


def question(previews: Previews, query: int, console: Console) -> None:
    """The query example itself, if it was kept."""
    item = previews.by_place().get((None, query))
    if item is None:
        return
    loss = "" if item.loss is None else f"loss {number(item.loss)}"
    prediction = item.prediction and f"predicted {item.prediction}"
    text = "; ".join(filter(None, (item.label and f"class {item.label}", prediction, loss, in_a_line(item))))
    console.print(printable(f"query {query}: {text}"), highlight=False, soft_wrap=True)


def ranking(
    scores: Scores, top: int, console: Console, previews: Previews | None = None, query: int | None = None
) -> None:
    """The most harmful and the most helpful examples of a stage, with what they look like where that was kept."""
    shown = {} if previews is None else previews.by_place()
    room = max(16, min(LINE, console.width - NUMBERS))
    for harmful in (True, False):
        found, alike = _grouped(scores, top, shown, harmful=harmful, query=query)
        table = replace(found.table(), caption="\n".join(alike))
        items = [shown.get((scores.stage, index)) for index in found.indices]
        for heading, cells in (
            ("class", [item.label if item else "" for item in items]),
            ("example", [in_a_line(item, room) if item else "" for item in items]),
        ):
            if any(cells):
                rows = tuple((*row, cell) for row, cell in zip(table.rows, cells, strict=True))
                words = table.words | {heading}
                table = replace(table, headings=(*table.headings, heading), rows=rows, words=words)
        console.print(legible(table.rich(), console.width))


def token_ranking(
    tokens: TokenScores | None,
    top: int,
    console: Console,
    previews: Previews | None = None,
    query: int | None = None,
) -> None:
    """The tokens of a stage at both ends, as far as those that were kept can tell, in words where these were kept."""
    shown = {} if previews is None else previews.by_place()
    if tokens is None:
        return
    for harmful in (True, False):
        rows = tokens.ends(top, harmful=harmful, query=query)
        which = "most harmful" if harmful else "most helpful"
        kept = f"{tokens.kept:,} of {tokens.scored:,} tokens kept"
        if rows:
            title = f"{len(rows)} {which} tokens ({kept}; position of the token that is predicted)"
            words = [_word(shown.get((tokens.stage, row.index)), row.position) for row in rows]
            table = table_of(tokens.stage, title, rows, words if any(words) else ())
            console.print(legible(table.rich(), console.width))


def _word(item: Preview | None, position: int) -> str:
    """A token in words, in quotes since blanks belong to it; nothing where it was not kept."""
    return f"'{printable(item.pieces[position])}'" if item is not None and position < len(item.pieces) else ""


def rankings(found: Mapping[str, Ranking], top: int, console: Console, query: int) -> None:
    """How each stage was solved, and both ends of its ranking for one query."""
    for stage, ranking in found.items():
        told = "" if ranking.solution is None else f"; {_told(ranking.solution)}"
        line = f"{stage}: {ranking.harmful.shape[1]:,} kept at either end, {ranking.n_queries:,} queries{told}"
        console.print(printable(line), highlight=False, soft_wrap=True)
        for harmful in (True, False) if top else ():
            kept = min(top, ranking.harmful.shape[1])
            console.print(legible(ranking.top(kept, query=query, harmful=harmful).table().rich(), console.width))


def _told(solution: Solution) -> str:
    """The worst residual beside the one that was asked for."""
    return (
        f"{solution.system}, worst relative residual {solution.relative_residual:.1e} "
        f"(asked for: {solution.tolerance:.1e})"
    )


def _grouped(
    scores: Scores, top: int, shown: Mapping[tuple[str | None, int], Preview], *, harmful: bool, query: int | None
) -> tuple[Top, list[str]]:
    """The end of a ranking with a row for all examples that look the same, and in words which those are."""
    found = scores.top(top, harmful=harmful, query=query)
    looked = scores.top(max(top, FAR), harmful=harmful, query=query) if shown else found
    rows, alike = list[Row](), dict[object, list[int]]()
    for row in looked:
        item = shown.get((scores.stage, row.index))
        look: object = row.index if item is None or item.look is None else item.look
        if look not in alike and len(rows) == top:
            continue
        if look not in alike:
            rows.append(row)
        alike.setdefault(look, []).append(row.index)
    notes = [
        f"#{indices[0]} stands for {len(indices)} examples that look the same: {', '.join(map(str, indices))}"
        for indices in alike.values()
        if len(indices) > 1
    ]
    return replace(found, rows=tuple(rows), named=looked.named), notes


def in_a_line(item: Preview, room: int = LINE) -> str:
    """The beginning of what an example says, in `room` characters; nothing of a picture alone."""
    words = printable(" ".join(in_words(item)[: 4 * LINE].split()))
    return words if len(words) <= room else f"{words[: room - 3]}..."


def findings(chain: Chain, found: Iterable[Finding], console: Console) -> list[Finding]:
    """A line per finding, and a verdict; gives the findings back."""
    console.print(f"{chain}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "what", "level", "found"):
        table.add_column(heading, overflow="fold")
    warned, seen = 0, list[Finding]()
    try:
        for finding in found:
            seen.append(finding)
            warned += finding.level is Level.WARNING
            table.add_row(
                Text(printable(finding.where)),
                finding.what,
                Text(finding.level.value, style=STYLES[finding.level]),
                Text(printable(finding.text, lines=True)),
            )
    finally:  # what was found stands, also where a later check refuses
        console.print(legible(table, console.width))
    console.print(f"{warned} warning{'s' if warned != 1 else ''}" if warned else "no warnings")
    return seen


def validation(
    found: Validation, fitted: Mapping[str, str], left_out: Mapping[str, str], console: Console, files: list[Path]
) -> None:
    """The agreement of every estimator for each choice of removals, what was done, and where it all is."""
    for table in report.tables(found):
        console.print(legible(table.rich(), console.width))
    for name, reason in left_out.items():
        console.print(f"{name} does not apply: {reason}", highlight=False)
    for name, how in fitted.items():
        console.print(f"stage '{name}' was retrained by {how}", highlight=False)
    for words in (report.control(found), report.SIGN, report.FIGURES, report.work(found)):
        console.print(words, highlight=False)
    console.print(f"saved to {', '.join(map(str, files))}", soft_wrap=True)


def legible(table: Table, width: int) -> Table:
    """The table without broken words, if the console is wide enough for the longest of each column."""
    longest = [
        max(len(word) for cell in (column.header, *column.cells) for word in str(cell).split() or [""])
        for column in table.columns
    ]
    for padding in (1, 0):
        if sum(longest) + (2 * padding + 1) * len(longest) < width:
            table.padding = (0, padding)
            for column, least in zip(table.columns, longest, strict=True):
                column.min_width = least
            break
    return table
