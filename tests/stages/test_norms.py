"""Batch norms of the library's own copy: PyTorch's layer, with a derivative in its running statistics."""

import copy

import pytest
import torch
from torch import Tensor, nn

from stagetrace.stages.differentiable_norms import replace_norms, running_statistics

LAYERS = {
    "1d": (nn.BatchNorm1d(3), (5, 3)),
    "1d-sequence": (nn.BatchNorm1d(3, affine=False), (5, 3, 2)),
    "2d-cumulative": (nn.BatchNorm2d(3, momentum=None), (4, 3, 2, 2)),
    "3d": (nn.BatchNorm3d(3, momentum=0.3, eps=0.1), (2, 3, 2, 1, 2)),
}


def layer_of(name: str) -> tuple[nn.Module, list[Tensor]]:
    """A layer whose statistics and weights matter, and three batches."""
    layer, shape = LAYERS[name]
    layer, generator = copy.deepcopy(layer).double(), torch.Generator().manual_seed(1)
    for value in (*layer.parameters(), *running_statistics(layer).values()):
        value.data.uniform_(0.5, 2.0, generator=generator)
    return layer, [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("name", LAYERS)
def test_it_computes_what_the_layer_does_and_leaves_what_it_leaves(name: str):
    layer, inputs = layer_of(name)
    copied = replace_norms(copy.deepcopy(layer))
    assert torch.equal(copied.eval()(inputs[0]), layer.eval()(inputs[0]))
    for module in (layer, copied):
        module.train()
    assert all(torch.equal(copied(x), layer(x)) for x in inputs)
    for (_, ours), (_, theirs) in zip(copied.named_buffers(), layer.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_it_has_a_derivative_in_its_running_statistics(name: str):
    layer, (x, *_) = layer_of(name)
    copied = replace_norms(copy.deepcopy(layer)).eval()

    def at(mean: Tensor, variance: Tensor) -> Tensor:
        copied.running_mean, copied.running_var = mean, variance
        return copied(x)

    point = tuple(value.clone().requires_grad_() for value in running_statistics(layer).values())
    torch.testing.assert_close(at(*point), layer.eval()(x), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(at, point)


def test_only_layers_that_are_known_are_taken():
    class Own(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    layers = nn.BatchNorm1d(2), Own(2), nn.SyncBatchNorm(2), nn.InstanceNorm1d(2, track_running_stats=True)
    model = nn.Sequential(*layers, nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2))
    assert list(running_statistics(model)) == ["0.running_mean", "0.running_var"]
    assert list(running_statistics(replace_norms(model))) == ["0.running_mean", "0.running_var"]
    assert [name for name, module in model.named_modules() if "forward" in vars(module)] == ["0"]


def test_inputs_of_another_shape_are_refused_as_the_layer_does():
    layer = replace_norms(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="expected 4D input"):
        layer.train()(torch.ones(2, 3))
