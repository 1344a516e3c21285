"""A chain before its recorded training, the queries that are asked of it, and the table of all chains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from benchmarks.two_stage.protocol import MEAN
from stagetrace import Chain, Query
from stagetrace.objectives.objective import Objective
from stagetrace.stages.data import Examples
from stagetrace.stages.fingerprint import fingerprint_stage
from stagetrace.stages.stage import Stage
from stagetrace.tracing.ensemble import trained
from stagetrace.validation.fits import Steps

PRETRAIN, FINETUNE = "pretrain", "finetune"


@final
@dataclass(frozen=True, eq=False)
class Start:
    """A chain as both of its recorded trainings begin.

    chain: both stages at their start, linked by `Unrolled(shared, Steps(...))`: the library trains them.
    query: a row for each of `queries`. tests: the test examples, one question each, of the mean query.
    single: places in `tests` of the single queries.
    embedding, text: of the controls by similarity; `text` is None where examples have none.
    facts: what was held fixed, as plain values.
    """

    name: str
    seed: int
    chain: Chain
    query: Query
    tests: Query
    single: tuple[int, ...]
    embedding: Any
    text: str | None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def queries(self) -> tuple[str, ...]:
        """Names: the mean test loss, and the single test examples by their place."""
        return (MEAN, *(f"test {place}" for place in self.single))

    @property
    def examples(self) -> int:
        """Of pretraining."""
        return len(self.chain[PRETRAIN].stage.examples)

    def steps(self, stage: str) -> Steps:
        """How a stage is trained."""
        fit = self.chain[stage].recording
        assert isinstance(fit, Steps)
        return fit

    def recorded(self, folder: Path, order: int) -> Chain:
        """Both stages trained in one order of their batches, and recorded in `folder`: what is traced."""
        return trained(self.chain, folder, order)

    def fingerprint(self) -> list[dict[str, Any]]:
        """Digests of both stages at their start: models, data, losses, steps."""
        return [fingerprint_stage(bound) for bound in self.chain.bound_stages]


def start_of(
    name: str, seed: int, chain: Chain, tests: Query, singles: int, embedding: Any, text: str | None, facts: Any
) -> Start:
    """The start with its queries, the single ones drawn by the seed."""
    order = torch.randperm(len(tests.data), generator=torch.Generator().manual_seed(seed))
    single = tuple(sorted(order[:singles].tolist()))
    query = query_of_means(chain.stages[-1], tests, [range(len(tests.data)), *([place] for place in single)])
    return Start(name, seed, chain, query, tests, single, embedding, text, facts)


def query_of_means(last: Stage, tests: Query, groups: Sequence[Sequence[int]]) -> Query:
    """A query with a row for each group of test examples, the mean of their losses; rows share one backward pass."""
    examples = Examples(tests.data, 1, tests.collate or last.collate, 0, "the query")
    contents = [batch.content for batch in examples.read(groups)]
    return Query(contents, objective=Means(last.loss), reduction="none", collate=list, batch_size=len(contents))


@final
@dataclass(frozen=True)
class Means:
    """The mean loss of each of several batches; a batch of batches is a list."""

    inner: Objective

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return torch.stack([self.inner.losses(self.inner.outputs(model, each), each).mean() for each in batch])

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        del batch
        return outputs


@final
@dataclass(frozen=True)
class Asked:
    """data: the folder of the data sets. work: where checkpoints and retrainings are kept, and found again.

    quick: tiny stages, to see that it runs.
    """

    data: Path
    work: Path
    quick: bool = False


Family = Callable[[Asked, int, int], Sequence[Start]]
"""`family(asked, seed, singles)`: the chains of a seed that share their pretraining."""


def families() -> dict[str, Family]:
    """By name; the names of chains are those of their starts."""
    from benchmarks.two_stage import images, texts  # they need data sets' packages, which `score` does not

    return {"cifar": images.starts, "bert": texts.bert, "gpt": texts.gpt}


CHAINS = {"cifar": "cifar", "bert": "bert", "bert-lora": "bert", "gpt": "gpt"}
"""Chain -> its family."""
