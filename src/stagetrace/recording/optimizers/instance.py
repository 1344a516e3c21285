"""The rule of an optimiser at hand, with all of its groups and parameters checked."""

from collections.abc import Mapping
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stagetrace.errors import refuse
from stagetrace.recording.optimizers.named import RULES, name_of, rule_of
from stagetrace.recording.optimizers.rule import Rule, require_dense


def class_of(optimizer: Optimizer) -> str:
    """The qualified name of the class whose step an optimiser makes: what `rule_of` takes.

    A subclass that adds other things than a step of its own steps as its parent.

    Raises:
        DescriptionError: a subclass of one of PyTorch's optimisers with a step of its own.
    """
    kind = type(optimizer)
    parent = next((base for base in kind.__mro__ if base in RULES), None)
    if parent is None or parent is kind:
        return name_of(kind)
    # PyTorch wraps a class's step when it is first used, so the functions themselves are compared.
    for method in ("step", "_init_group"):
        if unwrap(getattr(kind, method)) is not unwrap(getattr(parent, method)):
            refuse(
                f"optimizer: {name_of(kind)} overrides {method} of torch.optim.{parent.__name__}, so that the adjoint "
                f"of torch.optim.{parent.__name__} is not its own; train with torch.optim.{parent.__name__} instead"
            )
    return name_of(parent)


def rule_for(optimizer: Optimizer) -> Rule:
    """The rule that runs the steps of this optimiser backwards.

    Raises:
        DescriptionError: an optimiser without a rule, a setting or a parameter that its rule does not follow.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> rule_for(torch.optim.Adam(model.parameters())).slots
        ('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq')
    """
    rule = rule_of(class_of(optimizer), "optimizer")
    for number, group in enumerate(optimizer.param_groups):
        where = f"optimizer, parameter group {number}"
        rule.check(group, where)
        _check_settings(group, where)
        for place, parameter in enumerate(group["params"]):
            require_dense(parameter, f"{where}: parameter {place}, of shape {list(parameter.shape)},")
            if parameter.grad is not None:
                require_dense(
                    parameter.grad, f"{where}: the gradient of parameter {place}, of shape {list(parameter.shape)},"
                )
    return rule


def _check_settings(group: Mapping[str, Any], where: str) -> None:
    """Refuse a setting in a tensor of a coarser type than the parameters: steps are then rounded to that."""
    finest = min((torch.finfo(p.dtype).eps for p in group["params"] if p.is_floating_point()), default=1.0)
    for name, value in group.items():
        for each in value if isinstance(value, tuple | list) and name != "params" else [value]:
            if isinstance(each, Tensor) and each.is_floating_point() and torch.finfo(each.dtype).eps > finest:
                refuse(
                    f"{where}: {name} is a tensor of {each.dtype}, coarser than the parameters, so that every step is "
                    f"rounded to it; give a number, {name}={each.item():g}"
                )
