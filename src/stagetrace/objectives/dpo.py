"""Direct preference optimisation: of two completions of a prompt one was chosen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import BatchError, refuse
from stagetrace.objectives.arguments import check_between
from stagetrace.objectives.labels import IGNORED, check_finite_labels
from stagetrace.objectives.pairs import (
    COMPLETION,
    REFERENCE_LOGPS,
    Side,
    answered,
    chosen_rows,
    of_both,
    sides_of,
    single_rows,
)
from stagetrace.objectives.reference import Remembered, bytes_of, is_differentiated, is_wrapped, reference_in
from stagetrace.objectives.tokens import cross_entropies, following

Preference = Literal["sigmoid", "ipo", "hinge", "robust"]

APART = 1e-3
"""How far precomputed log-probabilities of the reference may be from its own, per unit of these."""


@final
@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation: how much likelier than under a reference the chosen completion has become, and
    how much likelier the rejected one.

    With `m = (log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))`, sums over the tokens of
    each completion, an example's loss is

    - `"sigmoid"`: `-(1 - s) log sigmoid(beta m) - s log sigmoid(-beta m)`, `s = label_smoothing` (with s > 0: cDPO);
    - `"ipo"`: `(m' - 1 / (2 beta))^2`, in m' each sum divided by its completion's number of tokens;
    - `"hinge"`: `max(0, 1 - beta m)`. It is linear by pieces, so that its Gauss-Newton matrix is zero;
    - `"robust"`: `(-(1 - s) log sigmoid(beta m) + s log sigmoid(-beta m)) / (1 - 2 s)`.

    Outputs `[batch, 2]`: the log-ratio of the chosen completion, and of the rejected one. Unit: nats ("ipo": squared).

    **The reference is a part of the derivative.** Where `reference=` is the stage before in the chain (its `Stage`, or
    a module with its names and values), another stage before would have been another reference, too: the gradient that
    is passed back has a term through it, `-(d2F / d reference dTheta) adjoint`. It is no correction: a DPO model moves
    along with its reference. Any other reference, and log-probabilities that stand in the rows with none given, are
    held fixed, and a notice says so.

    Its log-probabilities are computed once for each example and remembered, or taken from the rows
    (`ref_chosen_logps`, `ref_rejected_logps`, as TRL precomputes them); inside a derivative they are computed only
    where it is one in the reference.

    Batches are dicts of `chosen_input_ids`, `chosen_attention_mask`, `chosen_completion_mask` and the same of
    `rejected`, `[batch, length]` each, or what TRL's `DataCollatorForPreference` gives.

    Args:
        beta: how strongly the reference holds, above 0.
        reference: the frozen model: a `Stage`, a module, or None where the rows have its log-probabilities.
        loss_type: see above.
        label_smoothing: the share of preferences that are taken for flipped, of "sigmoid" and "robust"; below 0.5.

    Raises:
        DescriptionError: an argument is none of these.
        BatchError: (from a batch) no pairs; no reference, neither given nor in the rows.

    Example:
        >>> import torch
        >>> pairs = {"chosen_input_ids": torch.ones(1, 2, dtype=int), "rejected_input_ids": torch.ones(1, 2, dtype=int)}
        >>> DPO(beta=0.5).losses(torch.tensor([[3.0, 3.0]]), pairs).exp().round(decimals=4)  # no preference: log 2
        tensor([2.])

    Source: Rafailov et al. (2023), eq. 7; Mitchell (2023) for cDPO; Azar et al. (2023), eq. 17;
    Chowdhury et al. (2024) for "robust".
    """

    beta: float = 0.1
    reference: Any = None
    loss_type: Preference = "sigmoid"
    label_smoothing: float = 0.0
    _remembered: Remembered = field(default_factory=Remembered, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_between("DPO(beta=...)", self.beta, 0.0, math.inf, "0.1 is usual")
        if self.loss_type not in get_args(Preference):
            refuse(
                f"DPO(loss_type=...) must be one of {', '.join(map(repr, get_args(Preference)))}, got "
                f"{self.loss_type!r}; for another write a function losses(model, batch) -> Tensor[batch]"
            )
        if self.label_smoothing:
            check_between("DPO(label_smoothing=...)", self.label_smoothing, 0.0, 0.5, "0.1 is usual")
            if self.loss_type not in ("sigmoid", "robust"):
                refuse(
                    f"DPO(label_smoothing=...) is of 'sigmoid' and 'robust', not of {self.loss_type!r}; leave it out"
                )

    def beside(self, words: str) -> "DPO":
        """The same loss for a model that has the reference within."""
        return replace(self, reference=words)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        sides = sides_of(batch, "DPO")
        found = logps_of(model, sides)
        return found - self._reference(model, sides, batch).to(found)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        chosen, rejected = outputs.unbind(dim=1)
        margin, share = self.beta * (chosen - rejected), self.label_smoothing
        match self.loss_type:
            case "ipo":
                lengths = of_both(sides_of(batch, "DPO"), _length).to(outputs).clamp_min(1)
                away = chosen / lengths[:, 0] - rejected / lengths[:, 1]
                return (away - 1 / (2 * self.beta)).square()
            case "hinge":
                return F.relu(1 - margin)
            case "robust":
                return (share * F.logsigmoid(-margin) - (1 - share) * F.logsigmoid(margin)) / (1 - 2 * share)
            case _:
                straight = -F.logsigmoid(margin)
                return straight if not share else (1 - share) * straight - share * F.logsigmoid(-margin)

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse pairs without completions, and reference log-probabilities that are not finite."""
        del shape
        for side in sides_of(batch, "DPO"):
            _completion(side)
        for name in REFERENCE_LOGPS:
            if name in batch:
                check_finite_labels(torch.as_tensor(batch[name]))

    def labelled(self, batch: Any) -> int:
        """How many tokens of completions are predicted."""
        return int(sum(_completion(side)[:, 1:].sum() for side in sides_of(batch, "DPO")))

    def _reference(self, model: nn.Module, sides: Sequence[Side], batch: Any) -> Tensor:
        """`[batch, 2]`: the log-probabilities under the reference."""
        given = _precomputed(batch)
        reference = reference_in(model)
        if reference is None:
            if given is None:
                raise BatchError(
                    f"DPO has no reference: the batch has no {' and '.join(map(repr, REFERENCE_LOGPS))}, and "
                    "reference= names no model; give DPO(beta, reference=stage), the stage or model that it was"
                )
            return given
        if is_differentiated(reference):
            return logps_of(reference, sides)
        if any(is_wrapped(value) for side in sides for value in side.values()):
            return logps_of(reference, sides) if given is None else given

        def keys() -> list[bytes]:
            return [bytes_of(row) for row in single_rows(sides)]

        def compute(places: Sequence[int]) -> Tensor:
            return logps_of(reference, chosen_rows(sides, places))

        found = self._remembered(reference, keys, compute)
        if given is not None:
            _check_same(given, found)
        return found


def _precomputed(batch: Any) -> Tensor | None:
    columns = [batch[name] for name in REFERENCE_LOGPS if name in batch]
    return torch.stack(columns, dim=1) if len(columns) == 2 else None


def _check_same(given: Tensor, found: Tensor) -> None:
    """Refuse precomputed log-probabilities of another reference than the one that is given."""
    away = (given.detach().double().cpu() - found).abs()
    if bool((away > APART * found.abs().clamp_min(1)).any()):
        place = int(away.max(dim=1).values.argmax())
        theirs, ours = ([round(value, 4) for value in each[place].tolist()] for each in (given, found))
        raise BatchError(
            f"{' and '.join(REFERENCE_LOGPS)} are {theirs}, but under reference= these log-probabilities are {ours}; "
            "give the reference that they are of, or leave these columns out",
            place,
        )


def logps_of(model: nn.Module, sides: Sequence[Side]) -> Tensor:
    """`[batch, 2]`: the summed log-probability of each completion, given its prompt."""
    return of_both(sides, lambda side: _logp(model, side))


def _logp(model: nn.Module, side: Side) -> Tensor:
    logits, tokens = answered(model, side), side["input_ids"]
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        raise BatchError(
            f"DPO needs a causal language model with logits [rows, length, vocabulary], got {list(logits.shape)} for "
            f"tokens {list(tokens.shape)}; use Reward() for a model with one number a text"
        )
    labels = tokens.masked_fill(_completion(side) == 0, IGNORED)
    return -cross_entropies(logits, following(labels)).sum(dim=1)


def _completion(side: Side) -> Tensor:
    mask = side.get(COMPLETION)
    if mask is None or mask.shape != side["input_ids"].shape:
        raise BatchError(
            f"DPO needs '{COMPLETION}' of the shape of the tokens, 1 where the completion is, got features "
            f"{', '.join(map(repr, side))}; make it in the data set or by collate="
        )
    return mask


def _length(side: Side) -> Tensor:
    return _completion(side).sum(dim=1)
