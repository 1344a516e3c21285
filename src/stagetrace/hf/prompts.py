"""Soft prompts: trained vectors before the text, for which the model answers too."""

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from stagetrace.errors import DataError, refuse
from stagetrace.hf.adapters import settings_of
from stagetrace.objectives import Objective
from stagetrace.objectives.batches import targets_of

IN_FRONT = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
"""Kinds of adapters whose vectors stand in front of the embedded text."""

SUPPORTED = ("PROMPT_TUNING", "P_TUNING")


@final
@dataclass(frozen=True)
class AfterPrompt:
    """An objective of tokens for a model whose logits begin with those of a soft prompt, which predict nothing.

    objective: the loss of what follows the prompt.
    """

    objective: Objective

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        logits, length = self.objective.outputs(model, batch), targets_of(batch).shape[1]
        if logits.ndim != 3 or logits.shape[1] < length:
            raise DataError(f"a soft prompt needs logits [batch, prompt + length, classes], got {list(logits.shape)}")
        return logits[:, logits.shape[1] - length :]

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return self.objective.losses(outputs, batch)


def behind_prompt(objective: Objective, model: nn.Module, where: str, of_tokens: bool) -> Objective:
    """The objective, its outputs without those of a soft prompt if the model has one.

    Raises:
        DescriptionError: a kind of prompt whose loss is not known here.
    """
    settings = settings_of(model)
    kind = str(getattr(getattr(settings, "peft_type", ""), "value", ""))
    if kind not in IN_FRONT:
        return objective
    if kind not in SUPPORTED:
        refuse(f"{where}: there is no ready-made loss for prompts of kind {kind}; give objective=")
    return AfterPrompt(objective) if of_tokens else objective
