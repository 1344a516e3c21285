"""`recipes`: each recipe followed, and its numbers beside those of the code that trained."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

from benchmarks.recipes import loops, media, others, seeing, trainers, trl_trainers
from benchmarks.recipes.made import measured
from benchmarks.report import Report
from stagetrace.errors import StagetraceError

LOSS, DERIVATIVE = 1e-6, 1e-5


def run(report: Report) -> None:
    """A table: what the library makes of each recipe; a recipe that is refused has its one line."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    own = {**trainers.RECIPES, **trl_trainers.RECIPES, **media.RECIPES, **seeing.RECIPES, **loops.RECIPES}
    every = {**own, **others.installed(report.say)}
    chosen = dict(list(every.items())[::6]) if report.asked.quick else every
    rows, refused = list[dict[str, Any]](), list[dict[str, Any]]()
    for name, recipe in chosen.items():
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                rows.append({"recipe": name, **measured(recipe(Path(folder)))})
            except StagetraceError as error:
                refused.append({"recipe": name, "refused": str(error)})
        report.say(f"{name}: {'refused' if not rows or rows[-1]['recipe'] != name else 'compared'}")
    report.table("Recipes: relative differences to the code that trained", rows, "recipes")
    report.table("Refused, with one line", refused, "refused")
    report.table("Made with", others.packages(), "packages")
    for column in ("loss", "Hessian product", "stage before", "scores"):
        found = [row[column] for row in rows if row.get(column) is not None]
        most = LOSS if column == "loss" else DERIVATIVE
        report.target(f"largest relative difference, {column}", max(found, default=0.0), most)
