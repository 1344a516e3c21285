"""run.json: what a run folder says of itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard, cast, final

from stagetrace.errors import ResultsError
from stagetrace.results.adjoint import solution_record
from stagetrace.results.atomic import atomic
from stagetrace.results.json_value import JSON, entry, read_json
from stagetrace.results.scores import Scores
from stagetrace.results.sign import SIGN
from stagetrace.results.versions import versions
from stagetrace.solvers.base import Solution

FORMAT = 1
NAME = "run.json"


@final
@dataclass(frozen=True)
class Manifest:
    """The content of run.json; stages stand in chain order.

    complete: whether every file of the run is there.
    description: fingerprints and settings, plain JSON: what makes this run this run.
    scores: by stage, n_examples and n_queries (null where the query was reduced to one number).
    solutions: by stage, every field of the solution but its value.
    """

    complete: bool
    description: Mapping[str, JSON]
    scores: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    solutions: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    statistics: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    versions: Mapping[str, str] = field(default_factory=versions)

    def write(self, folder: Path) -> None:
        """Write run.json, atomically.

        Raises:
            ResultsError: the file system refused.
        """
        content = {
            "format": FORMAT,
            "status": "complete" if self.complete else "running",
            "sign": SIGN,
            "description": self.description,
            "scores": self.scores,
            "solutions": self.solutions,
            "statistics": self.statistics,
            "versions": self.versions,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with atomic(folder / NAME) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")

    def shape(self, stage: str) -> tuple[int, int | None]:
        """The n_examples and n_queries of a stage's scores.

        Raises:
            ValueError: they are not recorded.
        """
        record = entry(self.scores, stage)
        n_examples, n_queries = record.get("n_examples"), record.get("n_queries")
        if not _is_count(n_examples) or not (n_queries is None or _is_count(n_queries)):
            raise ValueError(f"it does not say how many scores stage {stage!r} has")
        return n_examples, n_queries


def read_manifest(folder: Path) -> Manifest:
    """Read run.json.

    Raises:
        ResultsError: there is none, it cannot be read, or it is of another format.
    """
    path = folder / NAME
    try:
        content = read_json(path)
        _check(content)
        manifest = Manifest(
            content["status"] == "complete",
            entry(content, "description"),
            entry(content, "scores"),
            entry(content, "solutions"),
            entry(content, "statistics"),
            {name: str(value) for name, value in entry(content, "versions").items()},
        )
        for stage in manifest.scores:
            manifest.shape(stage)
    except FileNotFoundError as cause:
        raise ResultsError(
            f"{folder} is not a stagetrace run folder: it has no {NAME}; give the folder of a run"
        ) from cause
    except (OSError, LookupError, TypeError, ValueError) as cause:
        raise ResultsError(
            f"{path} cannot be read as the record of a run ({' '.join(str(cause).split())}); "
            f"choose another folder, or delete this one and run again"
        ) from cause
    return manifest


def shapes(scores: Sequence[Scores]) -> Mapping[str, JSON]:
    """What run.json says of the scores."""
    return {each.stage: {"n_examples": each.n_examples, "n_queries": each.n_queries} for each in scores}


def records(solutions: Mapping[str, Solution]) -> Mapping[str, JSON]:
    """What run.json says of the solutions."""
    return {stage: solution_record(solution) for stage, solution in solutions.items()}


def _is_count(value: JSON) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check(content: object) -> None:
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError("it has no format number")
    fields = cast("dict[str, object]", content)
    if fields["format"] != FORMAT:
        raise ValueError(
            f"it has format {fields['format']!r}, this stagetrace reads format {FORMAT}: use the version that wrote it"
        )
    if fields.get("status") not in ("running", "complete"):
        raise ValueError(f"its status is {fields.get('status')!r}, not 'running' or 'complete'")
    if fields.get("sign") != SIGN:
        raise ValueError(f"its sign is {fields.get('sign')!r}, not {SIGN!r}")
