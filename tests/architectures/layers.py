"""Small networks around one kind of layer each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint


class Recurrent(nn.Module):
    """The last step of a recurrent layer."""

    def __init__(self, core: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.core, self.head = core, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.core(x if self.core.batch_first else x.transpose(0, 1))[0]
        return self.head(out[:, -1] if self.core.batch_first else out[-1])


class Packed(nn.Module):
    """Sentences of different lengths, packed: the token 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.core = nn.Embedding(6, 3, padding_idx=0), nn.LSTM(3, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = (tokens != 0).sum(dim=1).clamp_min(1).cpu()  # where packing takes them
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.core(packed)[1][0][-1])


class Encoder(nn.Module):
    """`nn.TransformerEncoder` with a padding mask: nested tensors and a fused fast path, if they were let."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 5, activation="gelu", batch_first=True, norm_first=norm_first)
        self.embedding = nn.Embedding(6, 4)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        first_is_kept = torch.arange(tokens.shape[1], device=tokens.device) > 0
        padding = (tokens == 0) & first_is_kept
        hidden = self.body(self.embedding(tokens), src_key_padding_mask=padding)
        return self.head(hidden[:, 0])


class Attention(nn.Module):
    """`nn.MultiheadAttention` over a sequence with another as keys."""

    def __init__(self, *, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.attention, self.head = nn.MultiheadAttention(4, 2, kdim=3, vdim=3, batch_first=True), nn.Linear(4, 2)
        self.query = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.query(x), x, x, need_weights=self.need_weights)[0].mean(dim=1))


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList([settled(nn.BatchNorm2d(channels)), settled(nn.BatchNorm2d(channels))])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.norms[0](self.first(x)))
        return self.relu(self.norms[1](self.second(hidden)) + x)


class ResNet(nn.Module):
    """Convolutions, batch norms, skips, pooling; activations in place as in the usual definitions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), settled(nn.BatchNorm2d(4)), nn.ReLU(inplace=True))
        self.blocks, self.head = nn.Sequential(Block(4), nn.MaxPool2d(2), Block(4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


def settled(norm: Any) -> Any:
    """A batch norm with running statistics that matter."""
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return norm


class Bag(nn.Module):
    def __init__(self, *, flat: bool = False, **settings: Any) -> None:
        super().__init__()
        self.flat = flat
        self.bag, self.head = nn.EmbeddingBag(6, 4, **settings), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.flat:
            return self.head(self.bag(tokens))
        return self.head(
            self.bag(tokens.reshape(-1), torch.arange(len(tokens), device=tokens.device) * tokens.shape[1])
        )


class FunctionalBag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(F.embedding_bag(tokens, self.table, mode="mean"))


class WeightedBag(nn.Module):
    """A bag whose weights depend on parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.weigh, self.head = nn.EmbeddingBag(6, 4, mode="sum"), nn.Embedding(6, 1), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.bag(tokens, per_sample_weights=self.weigh(tokens).squeeze(-1)).tanh())


class Lookup(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4, **settings), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens).mean(dim=1).tanh())


class Through(nn.Module):
    """A network with some operation in its middle."""

    def __init__(self, operation: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.operation, self.last = nn.Linear(3, 4), operation, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.operation(self.first(x).tanh()))


class Checkpointed(nn.Module):
    """Its body is computed anew in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.body, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        hidden = checkpoint(lambda h: self.body(h).tanh(), self.first(x), use_reentrant=self.reentrant)
        return self.last(hidden)


class Returning(nn.Module):
    """A network that returns its logits inside something."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap, self.body = wrap, nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.body(x))


@dataclass
class Answer:
    logits: Tensor
    hidden: None = None


def in_place(x: Tensor) -> Tensor:
    """Works in place on a slice of its own copy."""
    y = x.clone()
    y[:, 1:] *= x[:, :1]
    return y.add_(1).sigmoid_()


class Sine(torch.autograd.Function):
    """The sine as functions were written before `setup_context`; neither forward mode nor batching."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


class FullSine(torch.autograd.Function):
    """The sine with everything: forward mode, batching, and a backward that can be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * ctx.saved_tensors[0].cos()


class WrongSine(FullSine):
    """A forward-mode rule with a mistake in it."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return -tangent * ctx.saved_tensors[0].cos()


class OnceSine(Sine):
    """The sine, differentiable once."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


class RMS(nn.Module):
    """Norms in a row: groups, layer, root mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.norms = nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.RMSNorm(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norms(self.first(x)).sigmoid())
