"""Is it the same twice: the examples when they are read again, and their losses when they are evaluated again."""

import random
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stagetrace.checks.rounding import Rounding
from stagetrace.curvature.subset import seeded_subset
from stagetrace.errors import DataError
from stagetrace.stages.data import Batch
from stagetrace.stages.fingerprint import digest
from stagetrace.stages.risk import Risk

READ_TWICE = 256
"""Examples, drawn by a seed, that are read twice beside those of the lookout."""


def examples_repeat(risk: Risk, indices: tuple[int, ...]) -> str:
    """Refuse examples that differ between two reads.

    indices: the examples of the lookout; others drawn by a seed are read too, since only some items may be augmented.

    Raises:
        DataError: with the first such example.
    """
    some = list(dict.fromkeys([*indices, *seeded_subset(len(risk.examples), READ_TWICE, seed=0)]))
    for company in (some[start : start + len(indices)] for start in range(0, len(some), len(indices))):
        first, second = (next(iter(risk.examples.read([company]))) for _ in range(2))
        if digest(first.content) != digest(second.content):
            _refuse_changing(risk, company)
    return f"{len(some)} examples read twice are the same"


def _refuse_changing(risk: Risk, indices: Sequence[int]) -> NoReturn:
    for index in indices:
        one, other = (next(iter(risk.examples.read([[index]]))) for _ in range(2))
        if digest(one.content) != digest(other.content):
            break
    else:
        index = indices[0]
    raise DataError(
        f"{risk.where}: example {index} differs between two reads of the data set (random augmentation or masking?); "
        "return the same item for the same index: transform without randomness, or draw with a seed per index "
        "(a recorded stage needs its batches no more: give it the data set without the transformation)"
    )


def losses_repeat(risk: Risk, batch: Batch, rounding: Rounding) -> str:
    """Refuse losses that differ between two evaluations of the same examples at the same parameters.

    Raises:
        DataError: with the first such example, and what was drawn from.
    """
    before, versions = _sources(), _versions(batch)
    first = _losses(risk, batch)
    if _versions(batch) != versions:
        raise DataError(
            f"{risk.where}: the model or the loss changes its batch in place, so that the next evaluation sees other "
            "examples; work on a copy: x = x.clone()"
        )
    drawn = [name for name, state in _sources().items() if state != before[name]]
    second = _losses(risk, batch)
    gap = (first - second).abs()
    worst = int(gap.argmax())
    allowed = torch.zeros_like(gap) if drawn else rounding.of(first)
    if bool((gap > allowed).any()):
        cause = f"it draws random numbers from {' and '.join(drawn)}" if drawn else "it keeps a state, or draws"
        raise DataError(
            f"{risk.where}: the loss is random: two evaluations of example {batch.indices[worst]} with the same "
            f"parameters gave {float(first[worst]):.6g} and {float(second[worst]):.6g} ({cause}); the derivative of "
            "one draw is not that of the next: draw the noise from a generator seeded by the example, as a part of the "
            "data set, or switch it off (functional dropout: training=self.training)"
        )
    with torch.enable_grad():
        recorded = risk.losses(risk.trained_values, risk.inherited_values, batch).detach()
    apart = (first - recorded).abs()
    if bool((apart > rounding.of(first)).any()):
        worst = int(apart.argmax())
        raise DataError(
            f"{risk.where}: the loss of example {batch.indices[worst]} is {float(first[worst]):.6g} under no_grad() "
            f"and {float(recorded[worst]):.6g} where gradients are recorded: the model or the loss asks "
            "torch.is_grad_enabled(), or was changed by the call; it must be one function of the parameters"
        )
    if float(gap.max()):
        return f"the same losses twice, to {float(gap.max()):.1e}"
    return "the same losses twice"


def _versions(batch: Batch) -> list[int]:
    """How often each tensor of the batch was written into."""
    return [leaf._version for leaf in tree_leaves(batch.content) if isinstance(leaf, Tensor)]  # pyright: ignore[reportPrivateUsage]


def _losses(risk: Risk, batch: Batch) -> Tensor:
    with torch.no_grad():
        return risk.losses(risk.trained_values, risk.inherited_values, batch)


def _sources() -> dict[str, object]:
    """The states of the global generators, from which a loss can draw without being handed one."""
    states: dict[str, object] = {
        "torch": bytes(torch.get_rng_state().numpy()),
        "NumPy": np.random.get_state(legacy=False)["state"]["key"].tobytes()
        + str(np.random.get_state(legacy=False)["state"]["pos"]).encode(),
        "Python's random": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["torch.cuda"] = tuple(bytes(state.numpy()) for state in torch.cuda.get_rng_state_all())
    return states
