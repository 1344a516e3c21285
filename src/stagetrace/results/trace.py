"""What a trace gives: the scores of every stage, how well each stage was solved, and what was asked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn, TypeVar, final

from stagetrace.errors import DescriptionError, refuse
from stagetrace.plaintext import printable
from stagetrace.results.folder import RunFolder
from stagetrace.results.jsonable import JSON
from stagetrace.results.manifest import versions
from stagetrace.results.parts import split
from stagetrace.results.plot import plot_stages
from stagetrace.results.reading import read_run
from stagetrace.results.scores import Scores, title_of
from stagetrace.results.sign import SIGN, UNIT
from stagetrace.results.table import ShownAsTable, Table, frame
from stagetrace.results.token_parts import split_tokens
from stagetrace.results.tokens import TokenScores
from stagetrace.solvers.base import Solution

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame  # pyright: ignore[reportMissingTypeStubs]

Kept = TypeVar("Kept")

_WORDS = frozenset({"stage", "status"})
_HEADINGS = ("stage", "examples", "smallest", "largest", "harmful", "residual", "status")


@final
class UnknownStageError(DescriptionError, KeyError):
    """No stage of that name has scores."""

    def __str__(self) -> str:
        return str(self.args[0])


@final
class _ByStage(dict[str, Kept]):
    """What a trace keeps by stage name beside its scores; of a stage that is not in it, it says what to type."""

    def __init__(self, name: str, given: Mapping[str, Kept], none: str) -> None:
        super().__init__(given)
        self._name, self._none = name, none

    def __missing__(self, stage: str) -> NoReturn:
        have = f"type one of: {', '.join(map(repr, self))}" if self else self._none
        raise UnknownStageError(f"trace.{self._name}[{stage!r}]: there are none of a stage of that name; {have}")


@final
@dataclass(frozen=True, eq=False, repr=False)
class Trace(ShownAsTable):
    """The result of `stagetrace.trace`, and what a run folder holds: `trace["pretrain"]` gives that stage's `Scores`.

    Sign: a positive score is harmful; a negative removal effect means that removing the example helps.
    Unit: query loss.

    scores: by stage name, in chain order; iterating, `len` and `in` go over these.
    solutions: how each stage was solved, by stage name, in chain order.
    description: fingerprints and settings: what makes this run this run.
    statistics: timings, work counts, findings.
    tokens: scores of single tokens by stage name, where they were asked for; see `TokenScores`.
    versions: of stagetrace, torch, python and pyarrow.

    Raises:
        DescriptionError: scores under the name of another stage.

    Example:
        >>> import torch
        >>> trace = Trace({"pretrain": Scores("pretrain", torch.tensor([0.5, -1.0]).double())})
        >>> list(trace), trace["pretrain"].top(1).indices
        (['pretrain'], (0,))
    """

    scores: Mapping[str, Scores]
    solutions: Mapping[str, Solution] = field(default_factory=dict[str, Solution])
    description: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    statistics: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    versions: Mapping[str, str] = field(default_factory=versions)
    tokens: Mapping[str, TokenScores] = field(default_factory=dict[str, TokenScores])

    def __post_init__(self) -> None:
        for name, scores in self.scores.items():
            if scores.stage != name:
                refuse(f"Trace: the scores under {name!r} are those of stage {scores.stage!r}; give each its own name")
        for name in self.tokens:
            if name not in self.scores or self.scores[name].n_examples != self.tokens[name].n_examples:
                refuse(f"Trace: the token scores under {name!r} are of no stage, or of other examples, than its scores")
        for name in ("scores", "description", "statistics", "versions"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        solutions = _ByStage("solutions", self.solutions, "no stage of this run was solved")
        tokens = _ByStage("tokens", self.tokens, "scores of tokens are made by trace(chain, query, tokens=True)")
        object.__setattr__(self, "solutions", MappingProxyType(solutions))
        object.__setattr__(self, "tokens", MappingProxyType(tokens))

    def __getitem__(self, stage: str) -> Scores:
        """The scores of one stage.

        Raises:
            DescriptionError: no such stage (also a KeyError).
        """
        if stage not in self.scores:
            names = ", ".join(repr(name) for name in self.scores) or "none"
            raise UnknownStageError(f"trace[{stage!r}]: no stage of that name has scores; type one of: {names}")
        return self.scores[stage]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __contains__(self, stage: object) -> bool:
        return stage in self.scores

    @property
    def contrast(self) -> int | None:
        """Examples of the query's contrast, whose loss is taken off the query's; None where there was none."""
        query = self.description.get("query")
        contrast = query.get("contrast") if isinstance(query, Mapping) else None
        found = contrast.get("examples") if isinstance(contrast, Mapping) else None
        return found if isinstance(found, int) else None

    def save(self, path: str | Path) -> None:
        """Write a run folder: run.json, scores as Parquet, solutions as safetensors; no other format, no code.

        A folder of the same description is replaced: its files one by one, each whole, run.json last. The matrix
        of an unreduced query is stored as float32.

        Raises:
            ResultsError: the folder holds something else or another run (nothing is written then), or the file
                system refused (what stood there before stays).
            DescriptionError: a description or statistics that JSON cannot hold.
            DataError: a score too large for float32.
        """
        with RunFolder.open(path, self.description, replacing=True) as folder:
            for stage in reversed(self._stages()):
                for number, part in enumerate(split(self.scores[stage]) if stage in self.scores else ()):
                    folder.write_part(stage, number, part)
                for number, some in enumerate(split_tokens(self.tokens[stage]) if stage in self.tokens else ()):
                    folder.write_tokens(stage, number, self.tokens[stage].n_examples, some)
                if stage in self.solutions:
                    folder.write_solution(stage, self.solutions[stage])
            folder.finish(self.statistics, self.versions)

    @staticmethod
    def load(path: str | Path) -> "Trace":
        """Read a run folder. The matrix of an unreduced query comes back as the float32 stored.

        Raises:
            ResultsError: it is no run folder, the run is unfinished, or a file is missing, damaged or of another run.
        """
        return Trace(*read_run(path))

    def summary(self) -> str:
        """A table in plain text: a line a stage, with how it was solved and the range of its scores."""
        return str(self)

    def table(self) -> Table:
        """What the summary says, ready to be drawn."""
        stages = self._stages()
        failed = {place for place, stage in enumerate(stages) if not self._converged(stage)}
        rows = tuple((stage, *_range(self.scores.get(stage)), *_solving(self.solutions.get(stage))) for stage in stages)
        warning = "NOT CONVERGED: a solve stopped early, read its scores with caution.\n" if failed else ""
        solved = [
            f"{stage}: {solution.system}, {solution.products:,} products" for stage, solution in self.solutions.items()
        ]
        less = "" if self.contrast is None else f"query loss: the query's less its contrast's (of {self.contrast:,})\n"
        caption = f"{warning}solved {'; '.join(solved)}\n{less}{SIGN}" if solved else f"{warning}{less}{SIGN}"
        return Table(f"trace (scores in {UNIT})", _HEADINGS, rows, caption, _WORDS, frozenset(failed))

    def to_pandas(self) -> "DataFrame":
        """A frame with a row a stage: examples, smallest and largest score, share harmful, residual, status.

        Raises:
            DescriptionError: pandas is not installed.
        """
        each = [(scores, self.solutions.get(name)) for name, scores in self.scores.items()]
        ranked = [scores.per_example for scores, _ in each]
        columns: dict[str, list[object]] = {
            "examples": [scores.n_examples for scores, _ in each],
            "smallest_score": [values.min().item() for values in ranked],
            "largest_score": [values.max().item() for values in ranked],
            "share_harmful": [scores.share_harmful for scores, _ in each],
            "residual": [None if solution is None else solution.relative_residual for _, solution in each],
            "status": [None if solution is None else solution.status.value for _, solution in each],
        }
        return frame(columns, index=list(self.scores))

    def plot(self) -> "Figure":
        """A histogram of the scores of each stage, one panel below the other, in chain order.

        Raises:
            DescriptionError: matplotlib is not installed, or no stage has scores.
        """
        if not self.scores:
            refuse("Trace.plot: no stage has scores, so there is nothing to draw")
        return plot_stages({title_of(scores): scores.per_example for scores in self.scores.values()})

    def __repr__(self) -> str:
        failed = [stage for stage in self.solutions if not self._converged(stage)]
        warning = f"; NOT CONVERGED: {printable(', '.join(failed))}" if failed else ""
        return f"Trace({', '.join(map(repr, self.scores.values()))}{warning})"

    def _converged(self, stage: str) -> bool:
        solution = self.solutions.get(stage)
        return solution is None or solution.converged

    def _stages(self) -> list[str]:
        """Every stage with scores or a solution, in chain order."""
        first, second = self.solutions, self.scores
        if not set(second) <= set(first):
            first, second = second, first
        return list(dict.fromkeys([*first, *second]))


def _solving(solution: Solution | None) -> tuple[str, str]:
    """Relative residual and status."""
    if solution is None:
        return "-", "not recorded"
    residual = f"{solution.relative_residual:.1e}"
    if solution.converged:
        return residual, "converged"
    return residual, f"NOT CONVERGED: {solution.status.value}, asked for {solution.tolerance:.1e}"


def _range(scores: Scores | None) -> tuple[str, str, str, str]:
    """Examples, smallest score, largest score, share harmful."""
    if scores is None:
        return "-", "-", "-", "not scored"
    ranked = scores.per_example
    share = f"{scores.share_harmful:.0%}"
    return f"{scores.n_examples:,}", f"{ranked.min().item():+.2e}", f"{ranked.max().item():+.2e}", share
