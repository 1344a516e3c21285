"""Learning from a teacher: its logits stand in the batch, or a frozen teacher computes them."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from stagetrace.errors import BatchError, refuse
from stagetrace.objectives.batches import as_labels, in_short
from stagetrace.objectives.forward import call
from stagetrace.objectives.labels import check_finite_labels
from stagetrace.objectives.objective import Checks, Objective
from stagetrace.objectives.supervised import Classification
from stagetrace.objectives.tokens import MaskedToken, NextToken

__all__ = ["Distillation"]

TEACHER_LOGITS = "teacher_logits"


@final
@dataclass(frozen=True, eq=False)
class Distillation:
    """The divergence of the student's distribution from the teacher's, softened by a temperature (Hinton et al. 2015).

        loss_i = (1 - labels) T^2 KL(softmax(teacher / T) || softmax(student / T))  +  labels loss_of_labels

    Of outputs `[batch, classes]` one divergence per example; of tokens, `[batch, length, classes]`, its mean over the
    positions that `of` predicts. Unit: nats. The Gauss-Newton matrix is that of a cross-entropy, since the teacher's
    part is constant.

    Args:
        of: what the student predicts: `Classification()`, `MaskedToken()` or `NextToken()`. It says which positions
            count, and is the loss of the labels.
        teacher: a frozen teacher, a module that takes the same batches; a copy is kept, in eval mode, without
            gradients, and it must be on the student's device. None takes the batch's `teacher_logits`, in the shape of
            the student's.
        temperature: T, above 0.
        labels: the share of the labels' own loss, from 0 to below 1.

    Raises:
        DescriptionError: settings of another kind.
        BatchError: (from a batch) no teacher's logits, or in another shape than the student's.

    Example:
        >>> import torch
        >>> batch = {"labels": torch.tensor([0]), "teacher_logits": torch.zeros(1, 2)}
        >>> Distillation(Classification()).losses(torch.tensor([[0.0, 1.0]]), batch)
        tensor([0.1201])
    """

    of: Objective
    teacher: nn.Module | None = field(default=None, repr=False)
    temperature: float = 1.0
    labels: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.of, (Classification, MaskedToken, NextToken)):
            refuse(
                "Distillation: of= must be Classification(), MaskedToken() or NextToken(), which says what the student "
                f"predicts, got {self.of!r}"
            )
        if not (isinstance(self.temperature, (int, float)) and 0 < self.temperature < math.inf):
            refuse(f"Distillation(temperature=...) must be a number above 0, got {self.temperature!r}")
        if not (isinstance(self.labels, (int, float)) and 0 <= self.labels < 1):
            refuse(f"Distillation(labels=...) must be a share from 0 to below 1, got {self.labels!r}")
        if self.teacher is None:
            return
        if not isinstance(self.teacher, nn.Module):
            refuse(f"Distillation(teacher=...) must be a module, or None, got {type(self.teacher).__name__}")
        object.__setattr__(self, "teacher", copy.deepcopy(self.teacher).eval().requires_grad_(False))

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return self.of.outputs(model, self._student_s(batch))

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        given = self._teacher_s(batch, outputs)
        T = self.temperature
        student, teacher = (outputs / T).log_softmax(-1), (given / T).log_softmax(-1)
        divergence = T**2 * (teacher.exp() * (teacher - student)).sum(-1)
        if outputs.ndim == 3:
            counted = self._counted(outputs, batch)
            counts = counted.sum(1).clamp_min(1) if getattr(self.of, "reduction", "mean") == "mean" else 1
            divergence = (divergence * counted).sum(1) / counts
        if not self.labels:
            return divergence
        return (1 - self.labels) * divergence + self.labels * self.of.losses(outputs, self._student_s(batch))

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse a teacher's logits that are not finite, and labels that the student's loss refuses."""
        if self.teacher is None:
            check_finite_labels(self._column(batch))
        has_labels = self.labels or not isinstance(self.of, Classification)
        if has_labels and isinstance(self.of, Checks):
            self.of.check(self._student_s(batch), shape)

    def _student_s(self, batch: Any) -> Any:
        """The batch without the teacher's logits."""
        if not isinstance(batch, Mapping):
            if self.teacher is not None:
                return batch
            self._column(batch)
        return {key: value for key, value in batch.items() if key != TEACHER_LOGITS}

    def _column(self, batch: Any) -> Tensor:
        if not isinstance(batch, Mapping) or TEACHER_LOGITS not in batch:
            raise BatchError(
                f"Distillation needs a dict with '{TEACHER_LOGITS}', got {in_short(batch)}; add them in the data set "
                "or by collate=, or give teacher="
            )
        return as_labels(batch[TEACHER_LOGITS], "Distillation")

    def _teacher_s(self, batch: Any, outputs: Tensor) -> Tensor:
        if self.teacher is None:
            found = self._column(batch)
        else:
            with torch.no_grad():
                found = call(self.teacher, self._student_s(batch))
        if found.shape != outputs.shape:
            raise BatchError(
                f"Distillation: the teacher's logits are {list(found.shape)}, the student's {list(outputs.shape)}; "
                "they must be of the same classes and tokens"
            )
        return found.to(outputs)

    def _counted(self, outputs: Tensor, batch: Any) -> Tensor:
        """The positions `[batch, length]` whose prediction counts, as `of` has it, 1 or 0."""
        held: Any = self.of
        return held.counted(self._student_s(batch)).to(outputs)
