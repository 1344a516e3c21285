"""Where derivatives are checked: directions in the parameters, and weights of a batch's losses."""

import torch
from torch import Tensor, nn

from stagetrace.stages.data import Batch
from stagetrace.stages.space import Params


def weights_of(batch: Batch) -> Tensor:
    """Weights `[batch]` between 0.5 and 1.5, all different.

    At an exact optimum the gradient of the plain sum is zero, and a correct loss would look like one without a
    gradient.
    """
    return 0.5 + torch.rand(len(batch), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def direction_of(values: Params) -> Params:
    """Standard normal in each parameter, times the size of its entries: small ones change little."""
    generator = torch.Generator().manual_seed(0)
    sizes = {name: float(v.double().square().mean().sqrt()) if v.numel() else 0.0 for name, v in values.items()}
    usual = max(sizes.values(), default=0.0) or 1.0
    return {
        name: (sizes[name] or usual) * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        for name, value in values.items()
    }


def beside_padding(direction: Params, model: nn.Module) -> Params:
    """The direction without the rows of `padding_idx`: PyTorch treats these as constants, whatever depends on them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        name = names.get(id(getattr(module, "weight", None)))
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None and name in direction:
            direction[name][module.padding_idx] = 0.0
    return direction
