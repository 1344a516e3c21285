"""The runs of `plans`: a configuration's networks, data, curvature and solver."""

from dataclasses import dataclass
from random import Random
from typing import Any, final

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import (
    CG,
    EKFAC,
    Chain,
    Direct,
    Frozen,
    GaussNewton,
    Hessian,
    Identity,
    Lanczos,
    Query,
    Shift,
    Stage,
)
from stagetrace.objectives import Classification, NextToken

IMAGES, TEXTS = ("linear", "MLP", "CNN"), ("BERT", "GPT-2", "Llama", "GPT-2, adapters")
CURVATURES = ("default", "Gauss-Newton", "Hessian", "EK-FAC", "identity")
SIDE, TOKENS, WORDS, CLASSES = 14, 12, 400, 5
STEPS, BATCH = 30, 32


@final
@dataclass(frozen=True)
class Configuration:
    """One run. queries: 0 stands for the mean over a hundred."""

    model: str
    width: int
    curvature: str
    solver: str
    queries: int
    stages: int
    dtype: str
    examples: int

    @staticmethod
    def drawn(random: Random) -> "Configuration":
        """One of the grid; only what takes about a minute at most is in it."""
        model = random.choice(IMAGES + TEXTS)
        text = model in TEXTS
        curvature = random.choice(CURVATURES)
        closed = curvature in ("EK-FAC", "identity")
        with_cg = ("Lanczos", "Lanczos", "CG") if curvature == "Gauss-Newton" else ("Lanczos",)
        return Configuration(
            model,
            random.choice((32, 64) if text else (32, 64, 128)),
            curvature,
            "direct" if closed else random.choice(with_cg),
            random.choice((0, 1, 10) if text else (0, 1, 10, 100)),
            random.choice((1, 1, 2)),
            random.choice(("float32", "float32", "float64")),
            random.choice((100, 300) if text else (1000, 5000, 20_000)),
        )

    @property
    def words(self) -> str:
        queries = "mean of 100" if not self.queries else f"{self.queries}"
        return f"{self.model} {self.width}, {self.curvature}, {self.solver}, queries: {queries}"

    def job(self) -> tuple[Chain, Query]:
        """The stages, trained for some steps, and the query."""
        torch.manual_seed(0)
        causal = self.model in TEXTS and self.model != "BERT"
        objective = NextToken() if causal else Classification()
        data, questions = (
            _examples(self.model, number, seed) for seed, number in enumerate((self.examples, self.queries or 100))
        )
        stages, earlier = list[Stage](), None
        for place in range(self.stages):
            model, body = _model(self.model, self.width)
            model = model.to(getattr(torch, self.dtype))
            shared = [name for name, p in model.named_parameters() if name.startswith(body) and p.requires_grad]
            if earlier is not None:  # the body of the stage before is kept, and the rest is trained anew
                for name in shared:
                    model.get_parameter(name).requires_grad_(False).copy_(earlier.get_parameter(name).detach())
            _train(model, data)
            link = None if earlier is None else Frozen({name: name for name in shared})
            stages.append(Stage(f"stage{place}", model=model.eval(), objective=objective, data=data, link=link))
            earlier = model
        return Chain(*stages), Query(questions, reduction="none" if self.queries else "mean")

    def settings(self) -> dict[str, Any]:
        """For `trace`: curvature and solver."""
        if self.curvature == "EK-FAC":
            return {"curvature": EKFAC(), "solver": Direct("auto", Shift)}
        if self.curvature == "identity":
            return {"curvature": Identity(), "solver": Direct()}
        if self.curvature == "default":
            return {}
        if self.curvature == "Hessian":
            return {"curvature": Hessian("auto"), "solver": Lanczos(0.1)}
        solver = CG(0.01, rtol=1e-3) if self.solver == "CG" else Lanczos(0.01, filter=Shift)
        return {"curvature": GaussNewton("auto"), "solver": solver}


def _examples(model: str, number: int, seed: int) -> TensorDataset:
    """Clusters of pixels, or sentences of counted tokens, with classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (number,), generator=draw)
    if model in IMAGES:
        centres = torch.randn(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(99))
        return TensorDataset(0.3 * centres[labels] + torch.randn(number, 1, SIDE, SIDE, generator=draw), labels)
    steps = torch.randint(1, 4, (number, TOKENS + 1), generator=draw).cumsum(1)
    tokens = (70 * labels.unsqueeze(1) + steps) % (WORDS - 1) + 1
    return TensorDataset(tokens[:, :-1], labels if model == "BERT" else tokens[:, 1:])


def _model(name: str, width: int) -> tuple[nn.Module, str]:
    """A new network, and what the names of its body's parameters begin with."""
    w = width
    if name == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, w), nn.Linear(w, CLASSES)), "1."
    if name == "MLP":
        body = nn.Sequential(nn.Linear(SIDE**2, w), nn.Tanh(), nn.Linear(w, w), nn.Tanh())
        return nn.Sequential(nn.Flatten(), body, nn.Linear(w, CLASSES)), "1."
    if name == "CNN":
        c = w // 16
        layers = [nn.Conv2d(1, c, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(c, 2 * c, 3), nn.Tanh(), nn.AvgPool2d(2)]
        return nn.Sequential(nn.Sequential(*layers, nn.Flatten()), nn.Linear(8 * c, CLASSES)), "0."
    return _language_model(name, w)


def _language_model(name: str, w: int) -> tuple[nn.Module, str]:
    common: dict[str, Any] = {"vocab_size": WORDS, "pad_token_id": 0, "attn_implementation": "eager"}
    layers: dict[str, Any] = {"hidden_size": w, "num_hidden_layers": 2, "num_attention_heads": 4}
    layers |= {"intermediate_size": 2 * w, "max_position_embeddings": TOKENS}
    if name == "BERT":
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": CLASSES}
        config = transformers.BertConfig(**layers, **none, **common)
        return Logits(transformers.BertForSequenceClassification(config)), "model.bert"
    if name == "Llama":
        config = transformers.LlamaConfig(**layers, num_key_value_heads=2, tie_word_embeddings=False, **common)
        return Logits(transformers.LlamaForCausalLM(config)), "model.model"
    shape = {"n_embd": w, "n_layer": 2, "n_head": 4, "n_positions": TOKENS, "tie_word_embeddings": False}
    shape |= {"bos_token_id": 1, "eos_token_id": 1}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model: Any = Logits(transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **none, **common)))
    if name == "GPT-2":
        return model, "model.transformer"
    model.requires_grad_(False)
    for block in model.model.transformer.h:
        block.mlp = nn.Sequential(block.mlp, Adapter(w))
    return model, "model.transformer.h.0"


@final
class Logits(nn.Module):
    """A model of transformers as a function from tokens to logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, return_dict=True).logits


@final
class Adapter(nn.Module):
    """A small network beside the identity, trained alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x).tanh())


def _train(model: nn.Module, data: TensorDataset) -> None:
    """A few steps, so that the curvature is that of a network that has learnt something."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    inputs, targets = data.tensors
    for step in range(STEPS):
        start = step * BATCH % (len(inputs) // BATCH * BATCH)
        here = slice(start, start + BATCH)
        x, y = inputs[here], targets[here]
        outputs = model(x.to(trained[0].dtype) if x.is_floating_point() else x)
        optimizer.zero_grad()
        F.cross_entropy(outputs.flatten(0, -2), y.flatten()).backward()
        optimizer.step()
