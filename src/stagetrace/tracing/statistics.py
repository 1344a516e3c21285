"""What a run did: scores, solutions, the cost of solving and scoring, and the seconds of each task."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import torch

from stagetrace.checks import Finding
from stagetrace.curvature.cost import Cost
from stagetrace.parallel import world
from stagetrace.progress import Advance, Progress
from stagetrace.results import JSON, Scores, Trace
from stagetrace.results.jsonable import to_json
from stagetrace.results.token_parts import join_tokens
from stagetrace.results.tokens import TokenScores
from stagetrace.solvers.base import Solution
from stagetrace.stages.chain import Chain
from stagetrace.stages.coverage import Coverage, notices_at, remarks
from stagetrace.stages.halves import halvings
from stagetrace.tracing.responses.response import Response
from stagetrace.tracing.score import Scorer, SumScorer, WeightScorer
from stagetrace.tracing.sharded import ShardedScorer
from stagetrace.tracing.token_recorded import RecordedTokenScorer
from stagetrace.tracing.token_score import TokenScorer

AnyScorer = Scorer | SumScorer | WeightScorer | ShardedScorer | TokenScorer | RecordedTokenScorer


@final
class RunStatistics:
    """Collects scores, solutions and seconds; a `Progress` that times the tasks of the one it wraps."""

    def __init__(self, chain: Chain, progress: Progress) -> None:
        self.scores: dict[str, Scores] = {}
        self._solutions: dict[str, Solution] = {}
        self._tokens: dict[str, TokenScores] = {}
        self._scoring: dict[str, JSON] = {}
        self._solving: dict[str, Cost | None] = {}
        self._seconds: dict[str, float] = {}
        self._checks: list[Finding] = []
        self._chain, self._progress = chain, progress
        self._started = time.perf_counter()

    @contextmanager
    def task(self, what: str, total: int | None, unit: str) -> Generator[Advance]:
        """A task of the wrapped progress, timed."""
        started = time.perf_counter()
        with self._progress.task(what, total, unit) as advance:
            yield advance
        self._seconds[what] = self._seconds.get(what, 0.0) + time.perf_counter() - started

    def record_checks(self, findings: Sequence[Finding]) -> None:
        self._checks += findings

    def record_scores(self, stage: str, scorer: AnyScorer, scores: Scores) -> None:
        self.scores[stage] = scores
        if isinstance(scorer, TokenScorer | RecordedTokenScorer):
            found = [scorer.found[number] for number in sorted(scorer.found)]
            self._tokens[stage] = join_tokens(stage, scores.n_examples, found)
        self._scoring[stage] = {"way": scorer.way, "because": scorer.why, "forward passes": scorer.forward_passes}

    def record_plan(self, responses: Mapping[str, Response]) -> None:
        self._solving = {stage: response.cost() for stage, response in responses.items()}

    def record_solution(self, stage: str, solution: Solution) -> None:
        self._solutions[stage] = solution

    def statistics(self) -> dict[str, JSON]:
        """Timings, work and findings, as plain values."""
        return {
            "seconds": {"in all": time.perf_counter() - self._started, **self._seconds},
            "processes": world().size,
            "threads": torch.get_num_threads(),
            "device": str(self._chain.last.trained.device),
            "coverage": {bound.name: to_json(Coverage.of(bound)) for bound in self._chain},
            "solving": {stage: self._work(stage, cost) for stage, cost in self._solving.items()},
            "scoring": self._scoring,
            "links": {bound.name: dict(bound.link_settings) for bound in self._chain if bound.anchored_to},
            "checks": to_json(self._checks),
            "notices": [
                *(said for bound in self._chain for said in (*notices_at(bound), *remarks(bound.stage))),
                *_halved(self._chain),
            ],
        }

    def _work(self, stage: str, cost: Cost | None) -> dict[str, JSON]:
        """How a stage was solved, and what it cost in forward passes over one example.

        A gradient is three forward passes. The least that the same number of products can cost is one gradient each.
        """
        solution = self._solutions.get(stage)
        if cost is None or solution is None:
            return {} if cost is None else {**cost.record()}
        least = 3 * (solution.products + solution.checks) * cost.examples
        passes = {"forward passes": least * cost.gradients_per_product, "forward passes at least": least}
        return {**cost.record(), **passes}

    def trace(self, description: Mapping[str, JSON]) -> Trace:
        """The result, stages in chain order."""
        return Trace(
            {name: self.scores[name] for name in self._chain.names if name in self.scores},
            {name: self._solutions[name] for name in self._chain.names if name in self._solutions},
            description,
            self.statistics(),
            tokens={name: self._tokens[name] for name in self._chain.names if name in self._tokens},
        )


def _halved(chain: Chain) -> list[str]:
    """Where memory ran out on a process, and what it did then."""
    mine = [text for bound in chain for text in halvings(bound.stage.examples)]
    several = world().size > 1
    return [
        f"{text} (process {rank})" if several else text
        for rank, said in enumerate(world().gather(mine))
        for text in said
    ]
