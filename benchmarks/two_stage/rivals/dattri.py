"""dattri 0.3.0 (TRAK, Park et al. 2023) on the fine-tuned model with both heads.

    python -m venv rival && rival/bin/pip install -c constraints.txt -e ".[experiments]" dattri==0.3.0
    rival/bin/python -m benchmarks.two_stage.rivals.dattri --data DIR --work runs/two-stage

One checkpoint (the fine-tuned model), 512 random projections. The model output is the margin `log(p / (1 - p))` with
`p = exp(-loss)`, of the pretraining's loss for its examples; the target is minus the query loss. A positive score
helps, so leaving it out raises the query loss; the size has no unit.
"""

# The other library is in an environment of its own.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

import warnings
from typing import Any

import torch
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.two_stage.rivals.both import Single, command

NAME, FILE, PROJECTIONS = "dattri, TRAK", "dattri-trak", 512


def effects(single: Single) -> Tensor:
    """Removal effects of the pretraining examples for each test example, without a unit: `[tests, n]`."""
    for model in (single.model.first, single.model.last):
        if hasattr(model, "set_attn_implementation"):  # another one looks at the mask's values, which vmap refuses
            model.set_attn_implementation("eager")  # pyright: ignore[reportCallIssue]
    names, train = _tensors(single, "first", len(single.train))
    others, tests = _tensors(single, "last", len(single.tests))

    def loss(params: Any, data: Any, kind: str, keys: Any) -> Tensor:
        batch = [part.unsqueeze(0) for part in data]
        content = tuple(batch) if keys is None else dict(zip(keys, batch, strict=True))
        inner = _Called(single, params, kind)
        return single.losses[kind].losses(single.losses[kind].outputs(inner, content), content)[0]

    def margin(params: Any, data: Any) -> Tensor:
        each = loss(params, data, "first", names)
        return -each - torch.log(-torch.expm1(-each))

    def correct(params: Any, data: Any) -> Tensor:
        return torch.exp(-loss(params, data, "first", names))

    def target(params: Any, data: Any) -> Tensor:
        return -loss(params, data, "last", others)

    checkpoint = {name: value.clone() for name, value in single.model.state_dict().items()}
    task = AttributionTask(loss_func=margin, target_func=target, model=single.model, checkpoints=checkpoint)
    attributor = TRAKAttributor(
        task,
        correct_probability_func=correct,
        projector_kwargs={"proj_dim": PROJECTIONS, "device": "cpu", "proj_seed": single.start.seed},
        device="cpu",
    )
    attributor.cache(DataLoader(train, batch_size=64))
    found = attributor.attribute(DataLoader(tests, batch_size=64)).detach()  # [n, tests]
    return found.mT.double().contiguous()


class _Called(torch.nn.Module):
    """One of both models, at other parameters."""

    def __init__(self, single: Single, params: Any, kind: str) -> None:
        super().__init__()
        self.whole, self.params, self.kind = [single.model], params, kind

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inside = {n.removeprefix(f"{self.kind}."): p for n, p in self.params.items() if n.startswith(f"{self.kind}.")}
        model = getattr(self.whole[0], self.kind)
        if self.kind == "last":  # parameters of the trunk go by the names of the first
            known = {id(p): n for n, p in self.whole[0].named_parameters()}
            inside = {n: self.params[known[id(p)]] for n, p in model.named_parameters()}
        return functional_call(model, inside, args, kwargs)


def _tensors(single: Single, kind: str, count: int) -> tuple[tuple[str, ...] | None, TensorDataset]:
    """All examples as tensors with one row each, padded to one length; and the features' names, if they have any."""
    content = single.batch(kind, range(count))
    if isinstance(content, dict):
        return tuple(content), TensorDataset(*content.values())
    return None, TensorDataset(*content)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    command(NAME, FILE, "none", effects)
