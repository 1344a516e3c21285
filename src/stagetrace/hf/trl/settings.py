"""Settings of TRL's trainers: which of them name a loss that is one of the library's, and which are refused."""

from typing import Any

from stagetrace.errors import refuse
from stagetrace.hf.trl.kinds import Kind
from stagetrace.objectives import DPO, Reward
from stagetrace.objectives.objective import Objective

GIVE = "give objective=, a function losses(model, batch) -> Tensor[batch] that returns this loss for each example"

PREFERENCES = ("sigmoid", "ipo", "hinge", "robust")
"""Values of `DPOConfig.loss_type` whose loss is one of a pair alone, with derivatives."""


def check_settings(trainer: Any, kind: Kind, where: str) -> None:
    """Refuse what no stage can describe, whatever its objective: pairs with images.

    Raises:
        DescriptionError: with what to type.
    """
    if sees(trainer) and kind is not Kind.SFT:
        refuse(
            f"{where}: the {kind} made pixels and tokens of its rows on the fly; describe the stage by "
            "Stage(name, model=trainer.model, objective=losses, data=rows, collate=trainer.data_collator)"
        )


def sees(trainer: Any) -> bool:
    """Whether a trainer reads images, of rows that it was given raw."""
    return bool(getattr(trainer, "_is_vision_dataset", False))


def check_loss_settings(trainer: Any, kind: Kind, where: str) -> None:
    """Refuse settings by which the loss is another one than the stage's.

    Raises:
        DescriptionError: with what to type.
    """
    args = trainer.args
    if getattr(args, "use_liger_kernel", False):
        refuse(
            f"{where}: use_liger_kernel=True put fused layers into the model, which have no second derivative; load "
            "the saved model without them, and type hf.stage(name, folder, trainer.train_dataset)"
        )
    if getattr(trainer, "aux_loss_enabled", False):
        refuse(
            f"{where}: the {kind} added a term for the experts' balance (router_aux_loss_coef = "
            f"{trainer.router_aux_loss_coef}), which is no sum over examples; {GIVE}"
        )
    if trainer.compute_loss_func is not None:
        refuse(f"{where}: the {kind} has a compute_loss_func of its own; {GIVE}")
    if kind is Kind.SFT and args.loss_type != "nll":
        refuse(
            f"{where}: loss_type={args.loss_type!r} weighs tokens by their probability and holds that weight fixed, so "
            f"its steps follow no loss; {GIVE}, or train with loss_type='nll'"
        )


def dpo_of(trainer: Any, reference: Any, where: str) -> DPO:
    """The loss of a `DPOTrainer`.

    Raises:
        DescriptionError: settings by which it is no loss of one pair at a time, or by which the reference moved.
    """
    args = trainer.args
    kinds = [args.loss_type] if isinstance(args.loss_type, str) else list(args.loss_type)
    if len(kinds) != 1 or kinds[0] not in PREFERENCES or (args.loss_weights or [1.0]) != [1.0]:
        refuse(
            f"{where}: loss_type={args.loss_type!r}{_weighed(args)} is none of {', '.join(map(repr, PREFERENCES))}; "
            f"{GIVE}"
        )
    others = {
        "use_weighting": bool(getattr(args, "use_weighting", False)),
        "ld_alpha": getattr(args, "ld_alpha", None) is not None,
        "f_divergence_type": str(getattr(args, "f_divergence_type", "reverse_kl")).rpartition(".")[2] != "reverse_kl",
        "sync_ref_model": bool(getattr(args, "sync_ref_model", False)),
    }
    for name, used in others.items():
        if used:
            moved = "moved the reference during training" if name == "sync_ref_model" else "changes the loss"
            refuse(f"{where}: {name}={getattr(args, name)!r} {moved}, for which there is no ready-made loss; {GIVE}")
    share = float(args.label_smoothing) if kinds[0] == "robust" else 0.0  # "sigmoid" of TRL does not smooth
    return DPO(float(args.beta), reference, kinds[0], share)


def _weighed(args: Any) -> str:
    return f" with loss_weights={args.loss_weights!r}" if args.loss_weights else ""


def reward_of(trainer: Any) -> Objective:
    """The loss of a `RewardTrainer`."""
    return Reward(float(trainer.args.center_rewards_coefficient or 0.0))
