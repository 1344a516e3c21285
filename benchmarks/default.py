"""`default` and `subsets`: what a user waits for who says nothing, and what the default's subset costs in agreement.

`default`: seconds of `stagetrace check` and of `stagetrace score` with its report, as processes of their own and with
no option, on `examples/hugging_face.py`; by the clock, and of the processor, which a busy machine spoils less.

`subsets`: the ranking by a curvature over some of the examples beside that over all of them: Spearman's correlation
over all examples of a stage, and how many of the 100 most harmful and 100 most helpful are the same. Each adjoint is
kept in CHECKPOINTS/adjoints as soon as it is there, so that a killed run goes on, and the file is written after each.
All examples of the first stage take hours: `--quick` shows that everything runs.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from benchmarks.language_models import GENERAL, TWEETS, Corpora, chain_of, train
from benchmarks.report import Report, Row
from stagetrace import Chain, Lanczos, Query
from stagetrace.curvature import Auto
from stagetrace.curvature.subset import ENOUGH
from stagetrace.progress import Bars
from stagetrace.results.files import RECORD as MANIFEST
from stagetrace.results.solutions import read_solution, write_solution
from stagetrace.solvers import Solution
from stagetrace.tracing.backward import backward_pass
from stagetrace.tracing.responses.implicit import Implicit
from stagetrace.tracing.score import Scorer
from stagetrace.validation.agreement import Agreement

EXAMPLE = Path(__file__).parents[1] / "examples" / "hugging_face.py"
SUBSETS: tuple[tuple[int | None, int], ...] = ((ENOUGH, 0), (250, 0), (None, 0))
"""Examples in the curvature of each stage and the seed of their draw, in the order they are computed in; None: all."""

QUICK_SUBSETS: tuple[tuple[int | None, int], ...] = ((50, 0), (None, 0), (150, 0))
TOP = 100
CHECK_TARGET, SCORE_TARGET, CHECKS_TARGET = 60.0, 360.0, 5.0


def run(report: Report) -> None:
    """`default`: train where there is nothing yet, and time both commands."""
    with prepared(report) as (folder, scratch, _):
        commands(report, folder, scratch)


def run_subsets(report: Report) -> None:
    """`subsets`: train where there is nothing yet, and compare the rankings."""
    with prepared(report) as (folder, _, corpora):
        chain, query = chain_of(folder, corpora, report.asked.seed)
        report.fields["model"] = {
            "parameters": sum(p.numel() for p in chain.stages[0].model.parameters()),
            "examples": {stage.name: len(stage.examples) for stage in chain.stages},
            "link": type(chain.stages[-1].link).__name__,
        }
        agreement(report, chain, query, folder / "adjoints", QUICK_SUBSETS if report.asked.quick else SUBSETS)


@contextmanager
def prepared(report: Report) -> Generator[tuple[Path, Path, Corpora]]:
    """The folder of the models, one for what is thrown away, and the data."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = report.asked.checkpoints or Path(scratch)
        corpora = Corpora.read(report.asked)
        train(folder, corpora, report.asked.seed)
        yield folder, Path(scratch), corpora


def environment(report: Report, folder: Path) -> dict[str, str]:
    """What the example reads: the folders of the models and of the data."""
    data = report.asked.data
    return {
        "STAGETRACE_PRETRAINED": str(folder / "language"),
        "STAGETRACE_FINETUNED": str(folder / "classifier"),
        "STAGETRACE_PRETRAINING_DATA": str(data / GENERAL),
        "STAGETRACE_FINETUNING_DATA": str(data / TWEETS),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }


def commands(report: Report, folder: Path, scratch: Path) -> None:
    """`check` and `score` as a user types them; the data sets whole, unless it is only to be seen that they run."""
    around = os.environ | environment(report, folder)
    table: list[Row] = []
    words = ("check",), ("score", "--out", str(scratch / "run"))
    for (command, *rest), limit in zip(words, (CHECK_TARGET, SCORE_TARGET), strict=True):
        if report.asked.quick and command == "score":
            continue
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        arguments = [sys.executable, "-m", "stagetrace", command, f"{EXAMPLE}:job", *rest]
        subprocess.run(arguments, env=around, check=True, stderr=subprocess.DEVNULL)
        after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        table.append({"command": command, "s": seconds, "processor s": processor, "threads": torch.get_num_threads()})
        report.target(f"seconds of {command}, no options", seconds, limit)
    report.table("What a user waits for", table, "commands")
    if (scratch / "run" / MANIFEST).exists():
        checks(report, json.loads((scratch / "run" / MANIFEST).read_text())["statistics"])


def checks(report: Report, statistics: Mapping[str, Any]) -> None:
    """What each check of the run cost, by the clock, over what the whole run took before its report."""
    whole, found = statistics["seconds"]["in all"], statistics["checks"]
    names = list(dict.fromkeys(check["what"] for check in found))
    places = list(dict.fromkeys(check["where"] for check in found))
    table: list[Row] = []
    for name in names:
        seconds = {each["where"]: each["seconds"] for each in found if each["what"] == name}
        by_place = {f"{place}, s": seconds.get(place) for place in places}
        table.append({"check": name, **by_place, "of the run, %": 100 * sum(seconds.values()) / whole})
    report.table("What the checks cost", table, "checks")
    report.target("share of the checks in the run, %", sum(row["of the run, %"] for row in table), CHECKS_TARGET)


def agreement(
    report: Report, chain: Chain, query: Query, folder: Path, subsets: Sequence[tuple[int | None, int]]
) -> None:
    """Each subset's ranking beside the one of the most examples; a table, and the file, after each that is solved.

    The last stage by every subset first: it has fewer examples, and the others go on from its adjoints.
    """
    found: dict[str, list[Solved]] = {stage: [] for stage in chain.names}
    for stage in reversed(chain.names):
        for examples, seed in subsets:
            found[stage].append(Solved.of(chain, query, folder, stage, examples, seed))
            if len(found[stage]) > 1:
                table = [row for name, solved in found.items() for row in _beside_the_most(chain, name, solved)]
                report.table("Each ranking beside that of the most examples", table, "agreement")
            if report.asked.out is not None:
                report.write(report.asked.out)


def _beside_the_most(chain: Chain, stage: str, solved: Sequence["Solved"]) -> list[Row]:
    if not solved:
        return []
    most = max(range(len(solved)), key=lambda place: solved[place].examples or float("inf"))
    scores = scored(chain, stage, [each.adjoint for each in solved])
    return [
        {"stage": stage, "examples": each.label, "seed": each.seed, **each.said, **beside(found, scores[most])}
        for each, found in zip(solved, scores, strict=True)
    ]


@final
@dataclass(frozen=True)
class Solved:
    """A stage's adjoint by the curvature over some of its examples and of the later stages', and how it was found."""

    examples: int | None
    seed: int
    adjoint: Tensor
    said: Row

    @property
    def label(self) -> str:
        return _label(self.examples)

    @staticmethod
    def of(chain: Chain, query: Query, folder: Path, stage: str, examples: int | None, seed: int) -> "Solved":
        """Walked back to the stage, or as it was kept; what is found on the way is kept."""
        folder.mkdir(parents=True, exist_ok=True)
        models = [path.read_bytes() for path in sorted(folder.parent.rglob("model.safetensors"))]
        run = hashlib.sha256(b"".join(models)).hexdigest()

        def place(name: str) -> Path:
            return folder / f"{name}-{_label(examples)}-{seed}.safetensors"

        def kept(name: str) -> Solution | None:
            return read_solution(place(name), run, name) if place(name).exists() else None

        if not place(stage).exists():
            bars, walked = Bars(), chain.bound_stages[chain.names.index(stage) :]
            responses = {bound.name: Implicit(bound, Auto(examples, seed), Lanczos()) for bound in walked}
            gradient, started = query.gradient(chain.last, bars), time.process_time()
            for bound, back in backward_pass(chain, responses, gradient, kept, bars):
                if not place(bound.name).exists():
                    said = json.dumps(_said(back.solution, time.process_time() - started))
                    place(bound.name).with_suffix(".json").write_text(said + "\n")
                    write_solution(place(bound.name), run, bound.name, back.solution)
                started = time.process_time()
                if bound.name == stage:
                    break
        adjoint = read_solution(place(stage), run, stage).value
        return Solved(examples, seed, adjoint, json.loads(place(stage).with_suffix(".json").read_text()))


def _label(examples: int | None) -> str:
    return "all" if examples is None else f"{examples:,}"


def _said(solution: Solution, seconds: float) -> Row:
    return {
        "system": str(solution.system),
        "smallest": None if solution.spectrum is None else solution.spectrum.smallest,
        "products": solution.products + solution.checks,
        "residual": solution.relative_residual,
        "processor s": seconds,
    }


def scored(chain: Chain, stage: str, columns: Sequence[Tensor]) -> Tensor:
    """Scores `[adjoints, examples]` in one pass over the stage's examples."""
    stacked = torch.cat(list(columns), dim=1)
    scorer = Scorer.of(chain[stage].risk, stacked, parts=False, rows=stacked.shape[1])
    parts = list(scorer.run(lambda number: None, lambda number, part: None, Bars()))
    return torch.cat([part.values for part in parts], dim=1).double()


def beside(found: Tensor, reference: Tensor) -> Row:
    """How far two rankings of the same examples agree."""
    top = min(TOP, len(found) // 10)
    same: dict[str, Any] = {}
    for name, sign in (("harmful", 1), ("helpful", -1)):
        sets = [set((sign * scores).topk(top).indices.tolist()) for scores in (found, reference)]
        same[f"same of the {top} most {name}"] = len(sets[0] & sets[1])
    return {"spearman": Agreement.of(reference, found, resamples=1).spearman_r, **same}
