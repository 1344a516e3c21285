"""Stages whose parameters lie in shards on the processes: what a trace takes of them, and how it scores examples.

Scores come by forward mode: a weight and its direction are put together where a layer uses them, and nothing is kept
for a backward pass. The first batch's are compared with its gradient by autograd.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from stagetrace.curvature import Auto, GaussNewton, Hessian
from stagetrace.curvature.choices import Curvature
from stagetrace.errors import DifferentiationError, StagetraceError, first_line, refuse
from stagetrace.parallel import world
from stagetrace.progress import KEPT, Progress
from stagetrace.results.parts import Part, part_size
from stagetrace.solvers import CG, Lanczos
from stagetrace.solvers.base import Solver
from stagetrace.stages.chain import Chain
from stagetrace.stages.data import Batch, positions
from stagetrace.stages.gradient import differentiated
from stagetrace.stages.in_step import in_step
from stagetrace.stages.links import Frozen, Proximal
from stagetrace.stages.risk import Risk, check_finite
from stagetrace.stages.shards import admitted, differentiating, whole_shapes
from stagetrace.stages.tangent import directional
from stagetrace.tracing.query import Query
from stagetrace.tracing.score import as_part

__all__ = ["ShardedScorer", "admit"]

APART = 1e-3
"""How far the sum of a batch's scores may be from its gradient's product with the adjoint, over the sizes of both; more
in half precision."""

TAKEN = (
    "a trace takes models in shards (DTensor) in all stages or in none, with curvature "
    "Hessian or GaussNewton, solver Lanczos or CG, links Frozen or Proximal(alpha=a number), and a query "
    "whose losses are reduced to their mean or sum; for all else give plain modules with the full state"
)


def admit(
    chain: Chain, query: Query, curvature: Mapping[str, Curvature], solver: Mapping[str, Solver]
) -> AbstractContextManager[None]:
    """In which the chain is traced: where its parameters lie in shards, one that admits their derivatives.

    Raises:
        DescriptionError: they do, and something else about the run is not made for that.
    """
    sharded = [bound.name for bound in chain if whole_shapes(bound.stage.model) is not None]
    if not sharded:
        return nullcontext()
    for bound in chain:
        where, link, solved = bound.stage.where, bound.stage.link, solver[bound.name]
        if bound.name not in sharded:
            refuse(f"{where} has whole parameters, and stage '{sharded[0]}' has shards: {TAKEN}")
        if bound.recording is not None or bound.stage.training is not None:
            refuse(f"{where} is followed through its training, and its parameters lie in shards: {TAKEN}")
        if link is not None and (type(link) not in (Frozen, Proximal) or getattr(link, "alpha", 0.0) == "auto"):
            refuse(f"{where}: link={link!r}: {TAKEN}")
        if type(curvature[bound.name]) not in (Auto, Hessian, GaussNewton):
            refuse(f"{where}: curvature {curvature[bound.name]!r}: {TAKEN}")
        if type(solved) not in (Lanczos, CG) or getattr(solved, "many", "auto") not in ("auto", "separate"):
            refuse(f"{where}: solver {solved!r}: {TAKEN}")
    if query.reduction == "none":
        refuse(f"the query: reduction='none': {TAKEN}")
    return admitted()


@final
@dataclass(frozen=True)
class ShardedScorer:
    """Scores of one stage, as `Scorer` has them; adjoints: this process's pieces, `[trained.size, k]`."""

    risk: Risk
    adjoints: Tensor
    parts: bool
    rows: int | None
    way: Literal["forward mode"] = "forward mode"
    why: str = "the parameters lie in shards"

    @property
    def forward_passes(self) -> float:
        """What scoring the stage costs, counted in forward passes over one example."""
        return (1.0 + 2 * self.adjoints.shape[1]) * len(self.risk.examples)

    def run(
        self, kept: Callable[[int], Part | None], keep: Callable[[int, Part], None], progress: Progress
    ) -> Iterator[Part]:
        """Every part of the stage, in order, as it is done: saved ones are read, the others are computed and saved.

        Raises:
            DataError: an example's loss is NaN or infinite.
            DifferentiationError: an operation has no forward mode, or a wrong one.
        """
        total, size, compared = len(self.risk.examples), part_size(self.rows), False
        with progress.task(f"scoring {self.risk.where}", total, "examples") as advance:
            for number, start in enumerate(range(0, total, size)):
                part = kept(number)
                if part is None:
                    indices = range(start, min(total, start + size))
                    part, compared = self._part(indices, advance, compared=compared), True
                    keep(number, part)
                else:
                    advance(part.stop - part.start, note=KEPT)
                yield part

    def _part(self, indices: range, advance: Callable[..., None], *, compared: bool) -> Part:
        scored = world().shard(indices)
        losses = self.adjoints.new_empty(len(scored))
        dots = self.adjoints.new_empty(len(scored), self.adjoints.shape[1])
        along = [self.risk.trained.unflatten(adjoint) for adjoint in self.adjoints.unbind(1)]
        with world().together(f"scoring {self.risk.where}"), differentiating():
            for here, batch in in_step(self.risk, indices):
                values, found = self._contracted(here, batch, along)
                if not compared:
                    self._compare(here, batch, found)
                    compared = True
                if here is self.risk:
                    places = positions([index - scored[0] for index in batch.indices])
                    losses[places], dots[places] = values, found
                    advance(min(len(batch) * world().size, len(indices)))
            check_finite(losses, scored, self.risk.where)
            check_finite(dots.sum(dim=1), scored, self.risk.where, "the score")
        dtype = torch.float64 if self.rows is None else torch.promote_types(dots.dtype, torch.float32)
        scores = -world().joined(dots).to("cpu", dtype).mT  # [k, examples of the part]
        return as_part(indices.start, scores, len(self.risk.examples), parts=self.parts, rows=self.rows)

    def _contracted(self, risk: Risk, batch: Batch, along: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Losses `[batch]`, and `[batch, k]` derivatives along each direction."""

        def losses_at(trained: dict[str, Tensor]) -> Tensor:
            return risk.losses(trained, risk.inherited_values, batch)

        try:
            with torch.no_grad():
                found = [directional(losses_at, risk.trained_values, direction) for direction in along]
        except StagetraceError:
            raise
        except (RuntimeError, NotImplementedError) as cause:
            raise DifferentiationError(
                f"{risk.where}: scores of a model in shards take forward mode, which an operation of the model or loss "
                f"lacks ({first_line(cause)}); replace that operation, or give the plain module with the full state"
            ) from cause
        return found[0][0], torch.stack([dots for _, dots in found], dim=1)

    def _compare(self, risk: Risk, batch: Batch, dots: Tensor) -> None:
        """Refuse a forward mode that is not the derivative that autograd takes, of all processes' first batches."""
        gradient = risk.trained.flatten(differentiated(risk, batch, inherited=False)[1]).double()
        expected = world().sum(gradient @ self.adjoints.double())
        sizes = world().sum(torch.stack([gradient.square().sum(), *self.adjoints.double().square().sum(dim=0)])).sqrt()
        apart = (world().sum(dots.double().sum(dim=0)) - expected).abs()
        allowed = max(APART, torch.finfo(dots.dtype).eps ** 0.5) * sizes[0] * sizes[1:]
        if bool((apart > allowed).any()):
            raise DifferentiationError(
                f"{risk.where}: forward mode gives another derivative than autograd, for an operation whose rule is "
                "wrong; write it out in plain PyTorch, or give the plain module with the full state"
            )
