"""The steps of PyTorch's optimisers written once more, as pure functions of parameter, slots and gradient.

Each takes the parameter, its slots by name, the gradient, a parameter group and the number of the step, from 1, and
returns the new parameter and the new slots. Nothing here comes from the library.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, optim

Slots = Mapping[str, Tensor]
Update = Callable[[Tensor, Slots, Tensor, Mapping[str, Any], int], tuple[Tensor, dict[str, Tensor]]]


def seen(x: Tensor, g: Tensor, group: Mapping[str, Any]) -> Tensor:
    g = -g if group["maximize"] else g
    return g if group.get("decoupled_weight_decay") else g + group["weight_decay"] * x


def shrunk(x: Tensor, group: Mapping[str, Any]) -> Tensor:
    return x * (1 - group["lr"] * group["weight_decay"]) if group.get("decoupled_weight_decay") else x


def moments(slots: Slots, g: Tensor, group: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    first, second = group["betas"]
    return first * slots["exp_avg"] + (1 - first) * g, second * slots["exp_avg_sq"] + (1 - second) * g * g


def adam(x: Tensor, slots: Slots, g: Tensor, group: Mapping[str, Any], t: int) -> tuple[Tensor, dict[str, Tensor]]:
    first, second = group["betas"]
    m, v = moments(slots, seen(x, g, group), group)
    after = {"exp_avg": m, "exp_avg_sq": v}
    if group["amsgrad"]:
        v = after["max_exp_avg_sq"] = torch.maximum(slots["max_exp_avg_sq"], v)
    corrected = m / (1 - first**t) / (torch.sqrt(v / (1 - second**t)) + group["eps"])
    return shrunk(x, group) - group["lr"] * corrected, after


def sgd(x: Tensor, slots: Slots, g: Tensor, group: Mapping[str, Any], t: int) -> tuple[Tensor, dict[str, Tensor]]:
    g = seen(x, g, group)
    if not group["momentum"]:
        return x - group["lr"] * g, {}
    buffer = group["momentum"] * slots["momentum_buffer"] + (1 - group["dampening"]) * g
    direction = g + group["momentum"] * buffer if group["nesterov"] else buffer
    return x - group["lr"] * direction, {"momentum_buffer": buffer}


def rmsprop(x: Tensor, slots: Slots, g: Tensor, group: Mapping[str, Any], t: int) -> tuple[Tensor, dict[str, Tensor]]:
    g, alpha = seen(x, g, group), group["alpha"]
    after = {"square_avg": alpha * slots["square_avg"] + (1 - alpha) * g * g}
    variance = after["square_avg"]
    if group["centered"]:
        after["grad_avg"] = alpha * slots["grad_avg"] + (1 - alpha) * g
        variance = variance - after["grad_avg"] ** 2
    direction = g / (torch.sqrt(variance) + group["eps"])
    if group["momentum"]:
        direction = after["momentum_buffer"] = group["momentum"] * slots["momentum_buffer"] + direction
    return x - group["lr"] * direction, after


def adagrad(x: Tensor, slots: Slots, g: Tensor, group: Mapping[str, Any], t: int) -> tuple[Tensor, dict[str, Tensor]]:
    g = seen(x, g, group)
    total = slots["sum"] + g * g
    return x - group["lr"] / (1 + (t - 1) * group["lr_decay"]) * g / (torch.sqrt(total) + group["eps"]), {"sum": total}


def nadam(x: Tensor, slots: Slots, g: Tensor, group: Mapping[str, Any], t: int) -> tuple[Tensor, dict[str, Tensor]]:
    first, second = group["betas"]
    g = seen(x, g, group)
    m, v = moments(slots, g, group)
    rates = [first * (1 - 0.5 * 0.96 ** (s * group["momentum_decay"])) for s in range(1, t + 2)]
    product = torch.tensor(rates[:-1], dtype=torch.float64).prod()
    mean = (1 - rates[-2]) / (1 - product) * g + rates[-1] / (1 - product * rates[-1]) * m
    direction = mean / (torch.sqrt(v / (1 - second**t)) + group["eps"])
    return shrunk(x, group) - group["lr"] * direction, {"exp_avg": m, "exp_avg_sq": v}


def radam(x: Tensor, slots: Slots, g: Tensor, group: Mapping[str, Any], t: int) -> tuple[Tensor, dict[str, Tensor]]:
    first, second = group["betas"]
    m, v = moments(slots, seen(x, g, group), group)
    longest = 2 / (1 - second) - 1
    length = longest - 2 * t * second**t / (1 - second**t)
    direction = m / (1 - first**t)
    if length > 5:
        ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        direction = direction * (ratio * (1 - second**t)) ** 0.5 / (torch.sqrt(v) + group["eps"])
    return shrunk(x, group) - group["lr"] * direction, {"exp_avg": m, "exp_avg_sq": v}


def adamax(x: Tensor, slots: Slots, g: Tensor, group: Mapping[str, Any], t: int) -> tuple[Tensor, dict[str, Tensor]]:
    first, second = group["betas"]
    g = seen(x, g, group)
    m = first * slots["exp_avg"] + (1 - first) * g
    norm = torch.maximum(second * slots["exp_inf"], g.abs() + group["eps"])
    return x - group["lr"] / (1 - first**t) * m / norm, {"exp_avg": m, "exp_inf": norm}


def adadelta(x: Tensor, slots: Slots, g: Tensor, group: Mapping[str, Any], t: int) -> tuple[Tensor, dict[str, Tensor]]:
    g, rho, eps = seen(x, g, group), group["rho"], group["eps"]
    square = rho * slots["square_avg"] + (1 - rho) * g * g
    delta = torch.sqrt(slots["acc_delta"] + eps) / torch.sqrt(square + eps) * g
    return x - group["lr"] * delta, {"square_avg": square, "acc_delta": rho * slots["acc_delta"] + (1 - rho) * delta**2}


def asgd(x: Tensor, slots: Slots, g: Tensor, group: Mapping[str, Any], t: int) -> tuple[Tensor, dict[str, Tensor]]:
    def rate(step: int) -> float:
        return group["lr"] / (1 + group["lambd"] * group["lr"] * step) ** group["alpha"]

    eta = rate(t - 1) if t > 1 else group["lr"]
    x_after = x - eta * (seen(x, g, group) + group["lambd"] * x)
    return x_after, {"ax": slots["ax"] + (x_after - slots["ax"]) / max(1, t - 1 - group["t0"])}


UPDATES: dict[type[optim.Optimizer], Update] = {
    optim.Adam: adam,
    optim.AdamW: adam,
    optim.SGD: sgd,
    optim.RMSprop: rmsprop,
    optim.Adagrad: adagrad,
    optim.NAdam: nadam,
    optim.RAdam: radam,
    optim.Adamax: adamax,
    optim.Adadelta: adadelta,
    optim.ASGD: asgd,
}
