"""`why`: from the command to the picture, `stagetrace why` as processes, on the models and texts of `default`.

What is asked about is the predicted label of a test tweet, by a classifier behind a GPT-2. The first question makes the
fits of EK-FAC; the same one again is read; another one finds them. Then an index is built, and a third question goes
through it. Seconds by the clock, and of the processor, which a busy machine spoils less.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.default import EXAMPLE, environment, prepared
from benchmarks.language_models import GENERAL, TWEETS, Corpora, rows
from benchmarks.report import Report, Row

SOLVE = ("--solve", "curvature=ekfac")
LIMIT = 60.0
FEWEST_WORDS = 8
"""Of a tweet that is asked about."""


def run(report: Report) -> None:
    """Ask, ask again, ask another, and ask through an index."""
    with prepared(report) as (folder, scratch, corpora):
        asked = [text for text in corpora.tests.texts if len(text.split()) >= FEWEST_WORDS]
        around, out, index = environment(report, folder), str(scratch / "why"), str(scratch / "index")
        few: tuple[str, ...] = ()
        if report.asked.quick:
            around, few = around | _cut(corpora, scratch / "data"), ("--queries", "3", "--numbers", "60")
        steps = {
            "a first question: fits, scores, picture": ("why", "--prompt", asked[0], "--out", out),
            "the same again: read": ("why", "--prompt", asked[0], "--out", out),
            "another one: the fits are kept": ("why", "--prompt", asked[1], "--out", out),
            "(an index, once)": ("index", "--out", index, *few),
            "another one, through the index": ("why", "--prompt", asked[2], "--out", out, "--index", index),
        }
        table: list[Row] = []
        for what, (command, *words) in steps.items():
            seconds, processor = timed([command, f"{EXAMPLE}:job", *words, *SOLVE], around)
            table.append({"what": what, "s": seconds, "processor s": processor})
            report.table("From the command to the picture", table, "why")
            if report.asked.out is not None:
                report.write(report.asked.out)
        pages = [page for page in Path(out).glob("*/why.html") if page.stat().st_size]
        report.fields["pages"] = len(pages)
        for row in (table[1], table[2], table[4]):
            report.target(f"processor seconds, {row['what']}", float(row["processor s"]), LIMIT)


def _cut(corpora: Corpora, folder: Path) -> dict[str, str]:
    """The few texts of `--quick` as data sets of their own, which the example reads in the place of the whole ones."""
    import datasets

    for name, splits in {
        GENERAL: {"train": corpora.lines},
        TWEETS: {"train": corpora.tweets, "test": corpora.tests},
    }.items():
        (folder / name).mkdir(parents=True)
        for split, texts in splits.items():
            made = datasets.Dataset.from_list(rows(texts))
            made.to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
    return {
        "STAGETRACE_PRETRAINING_DATA": str(folder / GENERAL),
        "STAGETRACE_FINETUNING_DATA": str(folder / TWEETS),
    }


def timed(words: list[str], around: Mapping[str, str]) -> tuple[float, float]:
    """Seconds of the clock and of the processor that a command took; what it prints is left out."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "stagetrace", *words]
    subprocess.run(
        command, env={**os.environ, **around}, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
