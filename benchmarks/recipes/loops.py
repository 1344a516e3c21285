"""Recipes that a loop of one's own trains, and chains of adapters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.recipes import tiny
from benchmarks.recipes.made import Made, moving
from benchmarks.recipes.trainers import Recipe
from benchmarks.recipes.trl_trainers import COMPLETED, in_double, lora, loss_of_all, sft
from stagetrace import Chain, Frozen, Stage, hf
from stagetrace.objectives import Classification, Contrastive


def _steps(model: nn.Module, loss: Any) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def plain(folder: Path) -> Made:
    """A network, then a new head on its kept body."""
    del folder
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    inputs = torch.randn(24, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (24,), generator=generator)
    first = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    _steps(first, lambda: F.cross_entropy(first(inputs), labels))
    second = nn.Sequential(tiny.apart(first[0]).requires_grad_(False), nn.Tanh(), nn.Linear(5, 2)).double()
    _steps(second, lambda: F.cross_entropy(second(inputs), labels % 2))
    before = Stage("body", model=first, objective=Classification(), data=TensorDataset(inputs, labels))
    link, data = Frozen("0"), TensorDataset(inputs, labels % 2)
    chain = Chain(before, Stage("head", model=second, objective=Classification(), data=data, link=link))
    held = {f"0.{name}": parameter for name, parameter in second[0].named_parameters()}
    return Made(chain, lambda: F.cross_entropy(second(inputs), labels % 2), second, moving(held))


def groups(folder: Path) -> Made:
    """Multiple negatives ranking over groups of four pairs that stay together."""
    del folder
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    one, other = (torch.randn(6, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()

    def loss() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for first, second in zip(one, other, strict=True):
            scores = 10 * F.cosine_similarity(model(first).unsqueeze(1), model(second).unsqueeze(0), dim=-1)
            total = total + F.cross_entropy(scores, torch.arange(4))
        return total / len(one)

    _steps(model, loss)
    stage = Stage("pairs", model=model, objective=Contrastive(0.1), data=TensorDataset(one, other))
    return Made(Chain(stage), loss, model)


def merged(folder: Path) -> Made:
    """SFT with adapters, merged into the base; then adapters on the merged model."""
    before = sft(folder / "one", COMPLETED, adapters=lora())
    first = hf.from_trainer(before, "sft")
    base = tiny.apart(before.model).merge_and_unload()
    after = sft(folder / "two", COMPLETED[::-1], model=base, adapters=lora())
    chain = Chain(first, hf.from_trainer(after, "further", after=first))
    layers = {name: layer for name, layer in before.model.named_modules() if isinstance(layer, LoraLayer)}
    move_adapters = moving(tiny.named(before.model))

    def move(direction: Mapping[str, Tensor], by: float) -> None:
        move_adapters(direction, by)
        for name, layer in layers.items():
            held: Any = layer
            weight = after.model.get_submodule(name).base_layer.weight
            weight.data = held.base_layer.weight + held.get_delta_weight("default").to(weight)

    return Made(chain, loss_of_all(after), after.model, move, in_double)


def merged_whole(folder: Path) -> Made:
    """SFT with adapters, merged into the base; then all parameters trained further."""
    before = sft(folder / "one", COMPLETED, adapters=lora())
    first = hf.from_trainer(before, "sft")
    base = tiny.apart(before.model).merge_and_unload().requires_grad_(requires_grad=True)
    after = sft(folder / "two", COMPLETED[::-1], model=base)
    chain = Chain(first, hf.from_trainer(after, "further", after=first, alpha=0.1))
    layers = [
        name.removeprefix("base_model.model.") for name, m in before.model.named_modules() if isinstance(m, LoraLayer)
    ]

    def started() -> dict[str, Tensor]:
        again = tiny.apart(before.model).merge_and_unload()
        return {f"{name}.weight": again.get_submodule(name).weight.detach() for name in layers}

    return Made(chain, loss_of_all(after), after.model, moving(tiny.named(before.model)), in_double, started)


def beside(folder: Path) -> Made:
    """SFT with adapters; then others that are trained beside them, the first still active."""
    before = sft(folder / "one", COMPLETED, adapters=lora())
    first = hf.from_trainer(before, "sft")
    model: Any = get_peft_model(tiny.gpt2(), lora())  # the trainer's own runs in the trainer's precision
    model.load_state_dict(before.model.state_dict())
    model.add_adapter("second", lora())
    model.base_model.set_adapter(["default", "second"])
    for name, parameter in model.double().eval().named_parameters():
        parameter.requires_grad_(".second." in name)
    rows = [{"input_ids": row, "labels": row} for row in ([5, 7, 9, 11], [8, 6, 12], [13, 5, 10, 14, 6])]

    def loss() -> Tensor:
        tokens = [torch.tensor([row["input_ids"]]) for row in rows]  # transformers takes its own mean in float32
        return torch.stack([F.cross_entropy(model(each).logits[0, :-1], each[0, 1:]) for each in tokens]).mean()

    _steps(model, loss)
    chain = Chain(first, hf.stage("beside", model, rows, after=first, reduction="mean"))
    held = {name: p for name, p in model.named_parameters() if ".second." not in name}
    return Made(chain, loss, model, moving(held))


RECIPES: dict[str, Recipe] = {
    "plain loop: a head on a kept body": plain,
    "plain loop: contrastive, fixed groups": groups,
    "LoRA merged, then LoRA": merged,
    "LoRA merged, then all parameters": merged_whole,
    "LoRA, then LoRA beside it": beside,
}
