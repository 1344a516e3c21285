"""Which of TRL's trainers one is, and whether it is it without changes."""

from enum import StrEnum
from typing import Any, final

from stagetrace.errors import refuse
from stagetrace.hf.trained import ROWS, STEPS

HOMES = ("trl", "transformers")

OWN = (*STEPS, *ROWS, "_compute_loss", "compute_ref_log_probs", "_prepare_dataset")
"""Methods that decide what is minimised, over which examples, and what the model reads of them."""


@final
class Kind(StrEnum):
    """A trainer of TRL whose loss has one number an example."""

    SFT = "SFTTrainer"
    DPO = "DPOTrainer"
    REWARD = "RewardTrainer"


def kind_of(trainer: object) -> Kind | None:
    """The kind of a trainer of TRL, or of one that inherits from it; None for any other."""
    names = [cls.__name__ for cls in type(trainer).__mro__ if _home(cls) == "trl"]
    return next((kind for kind in Kind if kind.value in names), None)


def check_unchanged(trainer: Any, where: str) -> None:
    """Refuse a trainer with a step of its own, be it of the user's class or set on the trainer.

    Raises:
        DescriptionError: with what to type.
    """
    for name in OWN:
        owner = next((cls for cls in type(trainer).__mro__ if name in vars(cls)), None)
        if name in vars(trainer) or (owner is not None and _home(owner) not in HOMES):
            refuse(
                f"{where}: {type(trainer).__name__} has a {name} of its own, so its loss is not known from its "
                "settings; type Stage(name, model=trainer.model, objective=losses, data=trainer.train_dataset, "
                "collate=trainer.data_collator), where losses(model, batch) -> Tensor[batch] is the loss of each "
                "example"
            )


def _home(cls: type) -> str:
    return cls.__module__.partition(".")[0]
