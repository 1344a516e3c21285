"""What `curate` is told to drop, the rows it reads, and what it shows."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from stagetrace.cli.target import Target, load
from stagetrace.curate import Curation, Drop, DropAbove, KeepTop, Rows, Rule, matched, read_rows
from stagetrace.curate.record import class_table, group_table, headline
from stagetrace.curate.rules import amount
from stagetrace.curate.verify import check_same
from stagetrace.curate.write import RECORD
from stagetrace.errors import refuse
from stagetrace.results import Scores

__all__ = ["load_same", "rows_of", "rule_of", "show_choice"]


def rule_of(drop: str | None, above: float | None, keep: str | None) -> Rule:
    """The one that was typed."""
    typed = [rule for rule in (drop, above, keep) if rule is not None]
    if len(typed) != 1:
        refuse(f"curate: type one of --drop, --drop-above and --keep-top, got {len(typed) or 'none'} of them")
    if above is not None:
        return DropAbove(above)
    return Drop(amount(drop, "--drop")) if drop is not None else KeepTop(amount(keep or "", "--keep-top"))


def rows_of(
    data: Path | None, split: str | None, ids: str | None, scores: Scores, needing: Mapping[str, str | None]
) -> Rows | None:
    """The rows of the stage's examples, if data were given; refused where an option needs them and they were not."""
    if data is not None:
        return matched(read_rows(data, split), scores, ids)
    for option, word in needing.items():
        if word is not None and word != "indices":
            refuse(f"{option} reads the rows that the stage was trained on; type --data FOLDER_OR_PARQUET, too")
    return None


def load_same(target: str, curation: Curation) -> Target:
    """The target, if it is what was traced: before anything is written."""
    job = load(target)
    check_same(curation, job.chain, job.query)
    return job


def show_choice(curation: Curation, console: Console) -> None:
    """What was dropped, and the tables."""
    for line in headline(curation):
        console.print(line, highlight=False, soft_wrap=True)
    if curation.classes:
        console.print(class_table(curation).rich())
    if curation.groups:
        console.print(group_table(curation).rich())
    console.print(f"first order, and for the query that was traced; see {RECORD}", highlight=False)
