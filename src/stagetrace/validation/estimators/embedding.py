"""Similarity of embeddings: examples that the model embeds like the query are assumed to help it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import StagetraceError, refuse
from stagetrace.parallel import world
from stagetrace.progress import Progress, Silent
from stagetrace.stages.chain import Chain
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk, check_finite
from stagetrace.tracing.query import Query
from stagetrace.validation.estimators.estimator import check_name
from stagetrace.validation.estimators.submodule import check_submodule, output_of

Embed = Callable[[nn.Module, Any], Tensor]
"""`embed(model, batch) -> [batch, d]`."""


@final
@dataclass(frozen=True)
class EmbeddingSimilarity:
    """The cosine similarity of an example's embedding to the query examples', under the last stage's model.

        removal effect_i = + cos(e(x_i), e(x_q)),  reduced over the query examples q as their losses are

    Similar examples are assumed to help: removing one is predicted to raise the query loss. An embedding of zero is
    similar to none. Sign: negative = removing it helps. Unit: none, only the ranking means something.

    Args:
        embed: `embed(model, batch) -> [batch, d]`, given the last stage's model in eval mode; or the name of one of its
            submodules, whose (first) output is flattened to `[batch, d]` (of a tuple or dict, its first entry). The
            model is then called as the stage's objective calls it, no further than that submodule: an earlier stage's
            examples need not fit the last stage's head.
        name: for tables.

    Raises:
        DescriptionError: neither a function nor a name.

    Source: the similarity baselines of Hanawa et al. (2021).

    Example:
        >>> EmbeddingSimilarity("embedding").name, EmbeddingSimilarity("embedding").unit is None
        ('embedding similarity', True)
    """

    embed: Embed | str
    name: str = "embedding similarity"

    def __post_init__(self) -> None:
        check_name("EmbeddingSimilarity", self.name)
        if isinstance(self.embed, (type, nn.Module)) or not (isinstance(self.embed, str) or callable(self.embed)):
            refuse(
                f"EmbeddingSimilarity(embed=...) must be a submodule's name or a function embed(model, batch), got "
                f"{self.embed!r}"
            )

    @property
    def unit(self) -> str | None:
        return None

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        """As `Estimator` says.

        Raises:
            DescriptionError: also where the model has no such submodule, or the embedding is not `[batch, d]`.
        """
        chain.check_names([stage], self.name)
        last, its, bars = chain.last, chain[stage].stage, progress or Silent()
        if isinstance(self.embed, str):
            check_submodule(last.stage.model, self.embed, f"{self.name}: the model of {last.stage.where}")
        # the mean of cosines is the product with the mean of unit vectors
        rows, *contrast = (
            query.reduce(torch.cat(list(self._embeddings(asked, asked.examples.batch_indices(), bars))))
            for asked in query.risks(last)
        )
        rows = rows - contrast[0] if contrast else rows
        risk = last.risk_of(its.where, its.loss, its.examples)
        blocks: list[Tensor] = []
        for embeddings in self._embeddings(risk, world().shard(risk.examples.batch_indices()), bars):
            _check_width(embeddings, rows.shape[-1], f"{self.name}: {its.where}", "the query's")
            blocks.append(rows @ embeddings.mT)
        return torch.cat([block for rank in world().gather(blocks) for block in rank], dim=-1)

    def _embeddings(self, risk: Risk, plan: Sequence[Sequence[int]], progress: Progress) -> Iterator[Tensor]:
        """Unit vectors `[batch, d]`, float64 on the CPU, batch by batch."""
        where, width = f"{self.name}: {risk.where}", None
        with progress.task(f"embedding {risk.where}", sum(map(len, plan)), "examples") as advance, torch.no_grad():
            for batch in risk.read_inputs(plan):
                embeddings = _flat(self._evaluate(risk, batch, where), batch, where).cpu().double()
                check_finite(embeddings.sum(dim=1), batch.indices, where, "the embedding")
                width = width or embeddings.shape[1]
                _check_width(embeddings, width, where, "another batch's")
                yield F.normalize(embeddings, dim=1)
                advance(len(batch))

    def _evaluate(self, risk: Risk, batch: Batch, where: str) -> Any:
        """What `embed`, or the named submodule, returns for a batch."""
        embed = self.embed
        try:
            if callable(embed):
                return risk.evaluation({}, embed, batch.content)
            outputs = risk.objective.outputs
            return risk.evaluation(
                {}, lambda model, b: output_of(model, embed, lambda: outputs(model, b)), batch.content
            )
        except StagetraceError:
            raise
        except Exception as cause:
            refuse(
                f"{where}: the last stage's model cannot embed examples {batch.indices[0]}..{batch.indices[-1]} "
                f"({type(cause).__name__}: {cause}); give embed=, a function embed(model, batch) -> [batch, d]"
            )


def _flat(output: Any, batch: Batch, where: str) -> Tensor:
    """`[batch, d]` from a tensor, or from the first entry of what a submodule returned."""
    if isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(batch):
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        refuse(
            f"{where}: an embedding must be [batch, d], here [{len(batch)}, d], got {got}; name another submodule, or "
            "give embed=, a function embed(model, batch) -> [batch, d]"
        )
    return output.flatten(start_dim=1)


def _check_width(embeddings: Tensor, width: int, where: str, whose: str) -> None:
    if embeddings.shape[1] != width:
        refuse(
            f"{where}: the embedding has {embeddings.shape[1]} numbers, {whose} {width} (texts of different lengths?); "
            "give embed=, a function that pools to [batch, d] of one d, e.g. the mean over tokens"
        )
