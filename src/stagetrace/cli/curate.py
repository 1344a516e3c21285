"""`stagetrace curate`: what to train on next, what that is predicted to change, and the check."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stagetrace.cli import fits, options
from stagetrace.cli.target import Target, load
from stagetrace.curate import Curation, Drop, DropAbove, KeepTop, Rows, Rule, curate, read_rows, verify
from stagetrace.curate.record import OutputFormat, Record, class_table, group_table, headline, verified_table
from stagetrace.curate.rules import amount
from stagetrace.curate.verify import RANDOM, check_same
from stagetrace.curate.write import RECORD, write, write_note
from stagetrace.errors import refuse
from stagetrace.progress import Bars
from stagetrace.terminal import terminal


def curate_run(
    folder: options.Folder,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="Where to write: a new or empty folder; an earlier choice in it is replaced."
        ),
    ],
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="STAGE", help="Whose examples (default: the first stage).")
    ] = None,
    drop: Annotated[
        str | None, typer.Option("--drop", metavar="N|P%", help="Drop the most harmful: 25 examples, or 10% of them.")
    ] = None,
    drop_above: Annotated[
        float | None, typer.Option("--drop-above", metavar="X", help="Drop scores above X (query loss, + harmful).")
    ] = None,
    keep_top: Annotated[
        str | None, typer.Option("--keep-top", metavar="N|P%", help="Keep the most helpful, drop all others.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="PATH", help="The stage's rows: Parquet file or data set folder.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", metavar="NAME", help="Which split of the folder.")] = None,
    balance: Annotated[
        str | None, typer.Option("--balance", metavar="COLUMN", help="Drop the same share of each class.")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="COLUMN", help="Show totals by source, with intervals.")
    ] = None,
    kind: Annotated[
        OutputFormat | None,
        typer.Option(
            "--format",
            help="How to write the rows that are kept (default: parquet).",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--verify", metavar="TARGET", help="Retrain without what was dropped.")
    ] = None,
    random: Annotated[
        int, typer.Option("--random", metavar="N", min=2, help="--verify: random sets of as many examples.")
    ] = RANDOM,
    retrain: options.Retrain = [],  # noqa: B006
    seeds: options.Seeds = 3,
    processes: options.Processes = None,
    together: options.Together = 8,
    seed: Annotated[int, typer.Option("--seed", help="--verify: seed of the random sets.")] = 0,
    debug: options.Debug = False,
) -> None:
    """Choose the examples to train on next by their scores; write them, and the change that is predicted."""
    del debug
    if target is None and (retrain or random != RANDOM):
        refuse("curate: --retrain and --random are for --verify TARGET; add that, or leave them out")
    rule, console = _rule(drop, drop_above, keep_top), terminal()
    rows = _rows(data, split, {"--balance": balance, "--group": group, "--split": split, "--format": kind})
    curation = curate(
        folder,
        stage=stage,
        rule=rule,
        classes=None if rows is None or balance is None else rows.column(balance),
        groups=None if rows is None or group is None else rows.column(group),
    )
    job = None if target is None else _same(target, curation)
    fitted = {} if job is None else fits.fits(job.chain, curation.stage, retrain, job.options.get("fit"))
    as_ = kind or ("indices" if rows is None else "parquet")
    record = Record(curation, rows, as_, f"stagetrace {shlex.join(sys.argv[1:])}")
    files = write(record, out)
    _show(curation, console)
    if job is not None:
        runs = range(seeds if any(each.is_stochastic for each in fitted.values()) else 1)
        found = verify(
            curation,
            job.chain,
            job.query,
            fit=fitted,
            random=random,
            seed=seed,
            seeds=runs,
            processes=processes,
            together=together,
            out=out / "retrained",
            progress=Bars(),
        )
        record = replace(record, verified=found, fits=fits.describe(job.chain, fitted))
        write_note(record, out)
        console.print(verified_table(curation, found, record.fits).rich())
    console.print(f"saved to {', '.join(map(str, files))}", highlight=False, soft_wrap=True)


def _rule(drop: str | None, above: float | None, keep: str | None) -> Rule:
    """The one that was typed."""
    typed = [rule for rule in (drop, above, keep) if rule is not None]
    if len(typed) != 1:
        refuse(f"curate: type one of --drop, --drop-above and --keep-top, got {len(typed) or 'none'} of them")
    if above is not None:
        return DropAbove(above)
    return Drop(amount(drop, "--drop")) if drop is not None else KeepTop(amount(keep or "", "--keep-top"))


def _rows(data: Path | None, split: str | None, needing: Mapping[str, str | None]) -> Rows | None:
    """The data, if they were given; refused where an option needs them and they were not."""
    if data is not None:
        return read_rows(data, split)
    for option, word in needing.items():
        if word is not None and word != "indices":
            refuse(f"{option} reads the rows that the stage was trained on; type --data FOLDER_OR_PARQUET, too")
    return None


def _same(target: str, curation: Curation) -> Target:
    """The target, if it is what was traced: before anything is written."""
    job = load(target)
    check_same(curation, job.chain, job.query)
    return job


def _show(curation: Curation, console: Console) -> None:
    """What was dropped, and the tables."""
    for line in headline(curation):
        console.print(line, highlight=False, soft_wrap=True)
    if curation.classes:
        console.print(class_table(curation).rich())
    if curation.groups:
        console.print(group_table(curation).rich())
    console.print(f"first order, and for the query that was traced; see {RECORD}", highlight=False)
