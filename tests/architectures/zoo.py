"""Every architecture with its data, and its per-example gradients by plain autograd on the model as the user has it.

The oracle shares nothing with the library: one example at a time, without padding, the loss written out, and whatever
kernels PyTorch takes by itself.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import TensorDataset

from stagetrace import Stage
from stagetrace.objectives import Classification, MaskedToken, NextToken
from tests.architectures import layers
from tests.architectures.layers import Through
from tests.objectives import tiny

N = 5
EXACT, SINGLE_INSIDE = 1e-9, 1e-5
"""Allowed error in float64; some models of `transformers` compute parts in float32 whatever their parameters are."""


CLASSES = Classification()


@dataclass(frozen=True, eq=False)
class Case:
    """A model, its data and its loss.

    rows: the data set; loss: the loss of one row, by hand. second: whether it has second derivatives at all.
    way: how scores are computed for one adjoint; None where that depends on the version of PyTorch.
    family: of cases with the same weights, rows and function, which differ in their kernels only.
    """

    name: str
    make: Callable[[], nn.Module]
    rows: Any
    loss: Callable[[nn.Module, Any], Tensor]
    objective: Any = CLASSES
    collate: Any = None
    tolerance: float = EXACT
    second: bool = True
    way: str | None = "forward mode"
    family: str = ""

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = tiny.lively(self.make())
        return model.to(dtype).eval()

    def stage(self, model: nn.Module, **settings: Any) -> Stage:
        return Stage(
            settings.pop("name", "only"),
            model=model,
            objective=self.objective,
            data=self.rows,
            collate=self.collate,
            **settings,
        )

    def gradients(self, model: nn.Module | None = None) -> Tensor:
        """`[n, size]` in float64."""
        model = copy.deepcopy(model or self.model())
        parameters, found = list(model.parameters()), []
        for row in self.rows:
            model.zero_grad()
            self.loss(model, row).backward()  # not autograd.grad, which checkpoints with reentry refuse
            slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            found.append(torch.cat([(s.to_dense() if s.is_sparse else s).reshape(-1) for s in slopes]))
        return torch.stack(found)


def vectors(*shape: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    return TensorDataset(torch.randn(N, *shape, generator=generator), torch.tensor([0, 1, 1, 0, 1]))


def tokens() -> TensorDataset:
    rows = [[1, 2, 3, 5], [4, 1, 0, 0], [2, 5, 3, 0], [5, 4, 4, 1], [3, 0, 0, 0]]
    return TensorDataset(torch.tensor(rows), torch.tensor([0, 1, 1, 0, 1]))


def logits_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple):
        return output[0]
    return output["logits"] if isinstance(output, dict) else output.logits


def classified(model: nn.Module, row: Any) -> Tensor:
    x, y = row
    x = x.to(next(model.parameters()).dtype) if x.is_floating_point() else x
    return F.cross_entropy(logits_of(model(x.unsqueeze(0))), y.unsqueeze(0))


def sentence(model: nn.Module, row: Any, what: str) -> Tensor:
    ids = torch.tensor([row["tokens"]])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    if what == "class":
        return F.cross_entropy(logits, torch.tensor(row["label"]))
    return F.cross_entropy(logits[:-1], ids[0, 1:]) if what == "next" else F.cross_entropy(logits[::2], ids[0, ::2])


SENTENCES = [{"tokens": s, "label": y} for s, y in zip(tiny.SENTENCES, (0, 2, 1, 1, 0), strict=True)]
UNLABELLED = [{"tokens": s} for s in tiny.SENTENCES]


def language(name: str, make: Callable[[], nn.Module], what: str) -> Case:
    objective = {"class": Classification(), "next": NextToken(), "masked": MaskedToken()}[what]
    rows = SENTENCES if what == "class" else UNLABELLED
    collate = tiny.collate_masked if what == "masked" else tiny.collate
    return Case(name, make, rows, partial(sentence, what=what), objective, collate, SINGLE_INSIDE)


def configured(model: Any, config: Any, **settings: Any) -> Callable[[], nn.Module]:
    small = {"vocab_size": tiny.VOCABULARY, "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return lambda: model(config(**(small | settings)))


BERT: dict[str, Any] = {
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 5,
    "max_position_embeddings": 12,
}
GPT2: dict[str, Any] = {"n_embd": 4, "n_layer": 2, "n_head": 2, "n_inner": 5, "n_positions": 12}
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 1}
DISTIL: dict[str, Any] = {"dim": 4, "n_layers": 2, "n_heads": 2, "hidden_dim": 5, "max_position_embeddings": 12}
t = transformers


def attentions(name: str, model: Any, config: Any, settings: dict[str, Any], what: str) -> list[Case]:
    return [
        replace(
            language(f"{name}, {how}", configured(model, config, attn_implementation=how, **settings), what),
            family=name,
        )
        for how in ("sdpa", "eager")
    ]


LANGUAGE = [
    *attentions("bert masked", t.BertForMaskedLM, t.BertConfig, BERT, "masked"),
    *attentions("bert sentences", t.BertForSequenceClassification, t.BertConfig, BERT, "class"),
    *attentions("bert tokens", t.BertForTokenClassification, t.BertConfig, {**BERT, "num_labels": 11}, "masked"),
    *attentions("gpt2", t.GPT2LMHeadModel, t.GPT2Config, GPT2, "next"),
    *attentions("gpt2 sentences", t.GPT2ForSequenceClassification, t.GPT2Config, GPT2, "class"),
    *attentions("llama", t.LlamaForCausalLM, t.LlamaConfig, LLAMA, "next"),
    *attentions("llama sentences", t.LlamaForSequenceClassification, t.LlamaConfig, LLAMA, "class"),
    *attentions("distilbert", t.DistilBertForMaskedLM, t.DistilBertConfig, DISTIL, "masked"),
    *attentions("roberta", t.RobertaForMaskedLM, t.RobertaConfig, {**BERT, "max_position_embeddings": 16}, "masked"),
]

IMAGES = vectors(1, 8, 8)


def resnet() -> nn.Module:
    sizes: dict[str, Any] = {
        "num_channels": 1,
        "embedding_size": 4,
        "hidden_sizes": [4, 6],
        "depths": [1, 1],
        "num_labels": 2,
    }
    model = t.ResNetForImageClassification(t.ResNetConfig(**sizes, layer_type="basic"))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            layers.settled(module)
    return model


def vit() -> nn.Module:
    sizes: dict[str, Any] = {key: BERT[key] for key in list(BERT)[:4]} | {"num_labels": 2}
    return t.ViTForImageClassification(t.ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1))


def plain(name: str, make: Callable[[], nn.Module], rows: Any, **settings: Any) -> Case:
    return Case(name, make, rows, classified, **settings)


def recurrent(core: Callable[[], nn.RNNBase], width: int) -> Callable[[], nn.Module]:
    return lambda: layers.Recurrent(core(), width)


def compiled() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are global hooks")
        return torch.compile(model, backend="eager")  # pyright: ignore[reportReturnType]


def normed(parametrise: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(parametrise(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))


SINGLY, BY_LAYER = "one example at a time", "layer by layer"
STEPS, ROWS, TOKENS = vectors(4, 3), vectors(3), tokens()

LAYERS = [
    plain("lstm", recurrent(lambda: nn.LSTM(3, 3, batch_first=True), 3), STEPS),
    plain("lstm, two layers both ways", recurrent(lambda: nn.LSTM(3, 3, 2, bidirectional=True), 6), STEPS),
    plain("lstm, projected", recurrent(lambda: nn.LSTM(3, 4, proj_size=2, batch_first=True), 2), STEPS),
    plain("gru", recurrent(lambda: nn.GRU(3, 3), 3), STEPS),
    plain("gru, two layers both ways", recurrent(lambda: nn.GRU(3, 3, 2, bidirectional=True), 6), STEPS),
    plain("rnn", recurrent(lambda: nn.RNN(3, 3, batch_first=True), 3), STEPS),
    plain("lstm, packed", layers.Packed, TOKENS, way=SINGLY),
    plain("encoder", lambda: layers.Encoder(norm_first=False), TOKENS),
    plain("encoder, norm first", lambda: layers.Encoder(norm_first=True), TOKENS),
    plain("attention", lambda: layers.Attention(need_weights=False), STEPS),
    plain("attention with weights", lambda: layers.Attention(need_weights=True), STEPS),
    plain("resnet", layers.ResNet, IMAGES),
    plain("resnet of transformers", resnet, IMAGES),
    plain("vit", vit, IMAGES),
    plain("weight norm", normed(parametrizations.weight_norm), ROWS),
    plain("spectral norm", normed(parametrizations.spectral_norm), ROWS),
    plain("norms", layers.RMS, ROWS),
    plain("embedding bag, mean", lambda: layers.Bag(mode="mean"), TOKENS),
    plain("embedding bag, sum", lambda: layers.Bag(mode="sum", padding_idx=0, sparse=True), TOKENS),
    plain("embedding bag, mean of words", lambda: layers.Bag(mode="mean", padding_idx=0), TOKENS),
    plain("embedding bag, max", lambda: layers.Bag(mode="max"), TOKENS),
    plain("embedding bag by offsets", lambda: layers.Bag(flat=True, mode="mean", padding_idx=0), TOKENS),
    plain("embedding bag, weighted", layers.WeightedBag, TOKENS),
    plain("embedding, sparse", lambda: layers.Lookup(sparse=True), TOKENS),
    plain("embedding, padding", lambda: layers.Lookup(padding_idx=0), TOKENS),
    plain("embedding, max norm", lambda: layers.Lookup(max_norm=50.0), TOKENS),
    plain("in place", lambda: Through(layers.in_place), ROWS),
    plain("function, old style", lambda: Through(layers.Sine.apply), ROWS, way=BY_LAYER),
    plain("function with everything", lambda: Through(layers.FullSine.apply), ROWS),
    plain("function, once", lambda: Through(layers.OnceSine.apply), ROWS, second=False, way=BY_LAYER),
    plain("checkpoint", lambda: layers.Checkpointed(reentrant=False), ROWS, way=None),
    plain("checkpoint with reentry", lambda: layers.Checkpointed(reentrant=True), ROWS, way=None),
    plain("returns a tuple", lambda: layers.Returning(lambda z: (z, z.mean())), ROWS),
    plain("returns a dict", lambda: layers.Returning(lambda z: {"logits": z}), ROWS),
    plain("returns an object", lambda: layers.Returning(layers.Answer), ROWS),
    plain("compiled", compiled, ROWS),
]
