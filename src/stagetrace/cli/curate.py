"""`stagetrace curate`: what to train on next, what that is predicted to change, and the check."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from stagetrace.cli import options
from stagetrace.errors import refuse

__all__ = ["curate_run"]


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
    ids: Annotated[
        str | None,
        typer.Option("--ids", metavar="COLUMN", help="The rows' ids, by which those of a larger corpus are found."),
    ] = None,
    balance: Annotated[
        str | None, typer.Option("--balance", metavar="COLUMN", help="Drop the same share of each class.")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="COLUMN", help="Show totals by source, with intervals.")
    ] = None,
    kind: Annotated[
        options.RowFormat | None,
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
    ] = options.RANDOM_SETS,
    retrain: options.Retrain = [],  # noqa: B006
    seeds: options.Seeds = 3,
    processes: options.Processes = None,
    together: options.Together = 8,
    seed: Annotated[int, typer.Option("--seed", help="--verify: seed of the random sets.")] = 0,
    debug: options.Debug = False,
) -> None:
    """Choose the examples to train on next by their scores; write them, and the change that is predicted."""
    del debug

    from stagetrace.cli import fits
    from stagetrace.cli.choice import load_same, rows_of, rule_of, show_choice
    from stagetrace.curate import curate, verify
    from stagetrace.curate.curation import chosen
    from stagetrace.curate.record import Record, verified_table
    from stagetrace.curate.write import write, write_note
    from stagetrace.progress import Bars
    from stagetrace.results import Trace
    from stagetrace.terminal import terminal

    if target is None and (retrain or random != options.RANDOM_SETS):
        refuse("curate: --retrain and --random are for --verify TARGET; add that, or leave them out")
    rule, console = rule_of(drop, drop_above, keep_top), terminal()
    trace = Trace.load(folder)
    needing = {"--balance": balance, "--group": group, "--split": split, "--format": kind, "--ids": ids}
    rows = rows_of(data, split, ids, chosen(trace, stage), needing)
    curation = curate(
        trace,
        stage=stage,
        rule=rule,
        classes=None if rows is None or balance is None else rows.column(balance),
        groups=None if rows is None or group is None else rows.column(group),
    )
    curation = replace(curation, folder=str(folder))
    job = None if target is None else load_same(target, curation)
    fitted = {} if job is None else fits.fits(job.chain, curation.stage, retrain, job.options.get("fit"))
    as_ = kind or ("indices" if rows is None else "parquet")
    record = Record(curation, rows, as_, f"stagetrace {shlex.join(sys.argv[1:])}")
    files = write(record, out)
    show_choice(curation, console)
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
