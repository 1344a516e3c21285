"""How much an example counts in its stage's mean: by weights of the user's, and by how many tokens it predicts."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from stagetrace.errors import refuse
from stagetrace.hf.ownloss import counted
from stagetrace.hf.task import Reduction, Task
from stagetrace.hf.texts import having
from stagetrace.hf.weights import PerToken
from stagetrace.objectives import Objective, Weights
from stagetrace.objectives.batches import in_short
from stagetrace.objectives.weights import as_weights
from stagetrace.stages.stage import Stage

__all__ = ["COUNTED", "DRAWN", "column_of", "drawn", "mean_tokens", "per_token", "weights_of"]

DRAWN = 1_000
"""Examples whose predicted tokens are counted while a stage is described."""

COUNTED = 50_000
"""The same of a Trainer's, whose loss is known to the last digit."""


def column_of(weights: object) -> str | None:
    """The column that weights or their sources are read from, where they name one."""
    named = weights.sources if isinstance(weights, Weights) else weights
    return named if isinstance(named, str) else None


def weights_of(given: Any, rows: Any, where: str) -> Weights | None:
    """Weights as `Stage` takes them, a column's name replaced by the column.

    Raises:
        DescriptionError: no such column, or no weights.
    """
    name = column_of(given)
    if name is None:
        return as_weights(given, where)
    if name not in rows[0]:
        refuse(f"{where}: weights are read from column '{name}', but there is none{having(rows[0])}")
    values = _column(rows, name, where)
    if isinstance(given, Weights):
        return replace(given, sources=values)
    odd = next((index for index, value in enumerate(values) if isinstance(value, (str, list, tuple, dict))), None)
    if odd is not None:
        refuse(
            f"{where}: weights={name!r} names a column that holds {in_short(values[odd])} for example {odd}, and a "
            "weight is a number of at least 0; name the column that holds it, or give each value of a column its own "
            f"by Weights({{value: weight, ...}}, sources={name!r})"
        )
    return Weights(values)


def _column(rows: Any, name: str, where: str) -> list[Any]:
    """A column's values in the order of the rows."""
    if type(rows).__module__.split(".")[0] == "datasets" and rows.format["type"] is None:
        values = list(rows.select_columns([name])[:][name])
    else:
        values = [rows[index].get(name) for index in range(len(rows))]
    missing = next((index for index, value in enumerate(values) if value is None), None)
    if missing is not None:
        refuse(f"{where}: example {missing} has no '{name}', from which weights are read; give every row one")
    return values


def per_token(
    stage: Stage, task: Task, loss: Callable[[Reduction], Objective], whose: str, most: int = DRAWN
) -> tuple[Objective, tuple[str, ...]]:
    """The loss in which every token of the data weighs the same, and what is to be said of it.

    Where all examples predict as many tokens, the mean over an example's tokens is the same loss.

    Args:
        stage: with any reduction of that loss.
        loss: reduction over an example's tokens -> the loss.
        whose: who weighs tokens like this, for the notice.
        most: examples whose tokens are counted; of more, as many are drawn. Their mean is no more than a unit: it
            scales all losses of the stage alike.
    """
    total = len(stage.examples)
    some = drawn(total, most)
    found = {index: count for index in some for count in _counts(stage, index, task)}
    counts, tokens = list(found.values()), mean_tokens(stage, list(found.values()), list(found))
    if not tokens or (len(set(counts)) == 1 and len(some) == total):  # that nothing is predicted is said on use
        return loss("mean"), ()
    of = "" if len(some) == total else f" in {most:,} drawn examples"
    return PerToken(loss("sum"), tokens), (
        f"{stage.where}: every token weighs the same, as in {whose}: a loss is the sum over an example's tokens "
        f"divided by {tokens:.4g}, the mean number{of}; reduction='mean' weighs every example the same instead",
    )


def drawn(total: int, most: int) -> Sequence[int]:
    """All examples, or as many drawn ones."""
    return range(total) if total <= most else sorted(random.Random(0).sample(range(total), most))


def mean_tokens(stage: Stage, counts: Sequence[int], indices: Sequence[int] | None = None) -> float:
    """`sum_i w_i T_i / sum_i w_i` of the tokens that these examples predict (all, by default), by the stage's weights:
    an example that counts twice is two copies in it.
    """
    weights = stage.example_weights
    weighed = [1.0] * len(counts) if weights is None else weights[slice(None) if indices is None else list(indices)]
    each = [float(weight) for weight in weighed]
    return sum(weight * count for weight, count in zip(each, counts, strict=True)) / (sum(each) or 1.0)


def _counts(stage: Stage, index: int, task: Task) -> list[int]:
    """How many tokens an example predicts; nothing of one that cannot be read, which is refused when it is used."""
    try:
        return counted(stage.examples.collate([stage.data[index]]), task).tolist()
    except Exception:
        return []
