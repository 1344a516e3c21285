"""`beside`: the benchmarks of two checkouts in turn, and how many times the other's seconds this one takes.

`python -m benchmarks beside --other CHECKOUT --data DIR --out FILE`: for each of `products`, `solvers` and `scoring`
(one of them with `--only`), a process of the other checkout, one of this one, and so on, so that a slow spell of the
machine hits both. A row of a table counts where both checkouts have it. Of each row the least time of all rounds is
compared, since a process that was not disturbed says most about the code; how far apart this checkout's own rounds lie
stands beside it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.report import Report, Row
from stagetrace.errors import DataError

NAMES = ("products", "solvers", "scoring")
TARGET = 1.05
HERE = Path(__file__).parent.parent
LEAST = ("least s", "least ms", "loop, least", "vmap, least")

Seconds = dict[str, float]


def run(report: Report, rounds: int = 2) -> None:
    """Each benchmark: both checkouts in turn, then row by row."""
    other = report.asked.other
    if other is None:
        raise DataError("beside: which checkout to compare with is not said; add --other CHECKOUT")
    if not (other / "benchmarks" / "__main__.py").is_file():
        raise DataError(f"beside: there is no checkout at {other}: it has no benchmarks/__main__.py")
    with TemporaryDirectory() as folder:
        for name in (report.asked.only,) if report.asked.only else NAMES:
            found: dict[str, list[Seconds]] = {"other": [], "this": []}
            for number in range(rounds):
                order = (("other", other), ("this", HERE))
                for who, checkout in order if number % 2 == 0 else reversed(order):
                    found[who].append(_one(report, checkout, name, Path(folder) / f"{name}-{who}-{number}.json"))
            _compare(report, name, found["this"], found["other"])


def _one(report: Report, checkout: Path, name: str, out: Path) -> Seconds:
    """One process of one checkout."""
    asked = report.asked
    command = [sys.executable, "-m", "benchmarks", name, "--data", str(asked.data.absolute()), "--out", str(out)]
    command += ["--seed", str(asked.seed), *(["--quick"] if asked.quick else [])]
    if asked.checkpoints is not None:
        command += ["--checkpoints", str(asked.checkpoints.absolute())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(checkout / "src"), str(checkout)])}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataError(f"beside: {name} failed in {checkout}: {done.stderr.strip()[-500:]}")
    return dict(timed(json.loads(out.read_text("utf-8"))))


def timed(whole: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every least time of a benchmark's tables, under the words that say which row it is."""
    for key, table in whole.items():
        for row in table if isinstance(table, list) else ():
            if not isinstance(row, dict):
                continue
            words = " ".join(str(value) for value in row.values() if isinstance(value, (str, int)))
            for column in LEAST:
                if isinstance(row.get(column), float):
                    yield f"{key}: {words}, {column}", row[column]


def _compare(report: Report, name: str, this: list[Seconds], other: list[Seconds]) -> None:
    """This checkout's least seconds over the other's, row by row, and their geometric mean."""
    shared = [row for row in this[0] if row in other[0]]
    table: list[Row] = []
    for row in shared:
        mine, theirs = [seconds[row] for seconds in this], [seconds[row] for seconds in other]
        table.append(
            {
                "row": row,
                "other's least": min(theirs),
                "this one's least": min(mine),
                "this over other": min(mine) / min(theirs),
                "this one's rounds, greatest over least": max(mine) / min(mine),
            }
        )
    report.table(f"{name}: {len(shared)} rows in both, {len(this)} rounds in turn", table, name)
    report.target(
        f"{name}: geometric mean of this checkout's times over the other's",
        geometric_mean([row["this over other"] for row in table]),
        TARGET,
    )
