"""Soft prompts: trained vectors before the text, for which the model answers too."""

from torch import nn

from stagetrace.errors import refuse
from stagetrace.hf.adapters import settings_of

IN_FRONT = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
"""Kinds of adapters whose vectors stand in front of the embedded text, so that the logits begin with theirs."""


def check_prompt(model: nn.Module, where: str) -> None:
    """Refuse a soft prompt before tokens that are to be predicted: there is no ready-made loss for it.

    Its logits begin with those of the prompt, and the last of these predicts the first token of the text, which no loss
    of the text alone has.

    Raises:
        DescriptionError: with what to type.
    """
    kind = str(getattr(getattr(settings_of(model), "peft_type", ""), "value", ""))
    if kind in IN_FRONT:
        refuse(
            f"{where}: there is no ready-made loss of tokens behind a soft prompt ({kind}): the logits begin with the "
            "prompt's own, and the last of these predicts the first token; type objective=losses, where "
            "losses(model, batch) -> Tensor[batch] takes model(**batch).logits[:, -length - 1:-1] against all labels"
        )
