"""What sets Adam, NAdam and RAdam apart: the numbers of `Moments` at each step."""

from collections.abc import Mapping
from typing import Any

from stagetrace.recording.optimizers.moments import Weights
from stagetrace.recording.optimizers.rule import State
from stagetrace.recording.optimizers.settings import betas, number, step_number


def adam(state: State, group: Mapping[str, Any]) -> Weights:
    """Both means corrected for their start at 0.

    Source: Kingma & Ba (2015), algorithm 1.
    """
    (beta1, beta2), step = betas(group), step_number(state)
    return Weights(
        mean=number(group, "lr") / (1 - beta1**step), root=(1 - beta2**step) ** -0.5, eps=number(group, "eps")
    )


def nadam(state: State, group: Mapping[str, Any]) -> Weights:
    """The mean as it will be after the next gradient, with this gradient in the next one's place.

    Source: Dozat (2016), algorithm 2, with the momentum's schedule of its section 3.
    """
    (beta1, beta2), step = betas(group), step_number(state)
    rate, decay = number(group, "lr"), number(group, "momentum_decay")
    momentum, upcoming = (beta1 * (1 - 0.5 * 0.96 ** (at * decay)) for at in (step, step + 1))
    product = float(state.slots.get("mu_product", 1.0) * momentum)
    return Weights(
        gradient=rate * (1 - momentum) / (1 - product),
        mean=rate * upcoming / (1 - product * upcoming),
        root=(1 - beta2**step) ** -0.5,
        eps=number(group, "eps"),
    )


def radam(state: State, group: Mapping[str, Any]) -> Weights:
    """Adam's step times how far the root is to be trusted; the bare mean in the first steps, where it is not at all.

    Source: Liu et al. (2020), algorithm 2.
    """
    (beta1, beta2), step = betas(group), step_number(state)
    mean, correction = number(group, "lr") / (1 - beta1**step), 1 - beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / correction
    if length <= 5:
        return Weights(mean=mean, root=0.0, eps=1.0)
    trust = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return Weights(mean=mean * (trust * correction) ** 0.5, root=1.0, eps=number(group, "eps"))
