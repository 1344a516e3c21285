"""Scores of stages whose rows need care, against dense float64 matrices and transformers' own loss of each row alone.

The features that transformers is given are written by hand here: nothing of the library reads, pads or labels them.
"""

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from stagetrace import Chain, Hessian, hf, trace
from stagetrace.objectives import Classification, MaskedToken
from tests.cases import slow_but
from tests.hf import dense, tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore::stagetrace.errors.CurvatureWarning", "ignore::stagetrace.errors.StagetraceWarning"
)

Rows = list[dict[str, Any]]
Case = tuple[Any, Rows, Rows, dict[str, Any]]
"""The model, the rows as a user has them, the same as transformers takes them, what `hf.stage` is told."""

LEFT_OUT = -100
PACKED: Rows = [
    {"input_ids": [5, 7, 9, 6, 8], "position_ids": [0, 1, 2, 0, 1], "labels": [-100, 7, 9, -100, 8]},
    {
        "input_ids": [9, 5, 12, 4, 6, 8, 11],
        "position_ids": [0, 1, 0, 1, 2, 0, 1],
        "labels": [-100, 5, -100, 4, 6, -100, 8],
    },
    {"input_ids": [4, 7], "position_ids": [0, 1], "labels": [-100, 7]},
]


def without(rows: Rows, *names: str) -> Rows:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def next_token_loss(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
    return nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=LEFT_OUT)


def gpt2() -> Any:
    return tiny.model("GPT2LMHeadModel", n_inner=4, n_positions=8)


def packed() -> Case:
    return gpt2(), PACKED, PACKED, {}


def packed_without_labels() -> Case:
    firsts = [[t if p else LEFT_OUT for t, p in zip(r["input_ids"], r["position_ids"], strict=True)] for r in PACKED]
    labelled = [{**row, "labels": labels} for row, labels in zip(PACKED, firsts, strict=True)]
    return gpt2(), without(PACKED, "labels"), labelled, {}


def packed_by_lengths() -> Case:
    lengths = ([3, 2], [2, 3, 2], [2])
    rows = [{**row, "seq_lengths": some} for row, some in zip(without(PACKED, "position_ids"), lengths, strict=True)]
    return gpt2(), rows, PACKED, {}


def completion_masks() -> Case:
    tokens, masks = ([5, 7, 9, 6], [8, 9, 5]), ([0, 0, 1, 1], [0, 1, 1])
    rows = [{"input_ids": t, "completion_mask": m} for t, m in zip(tokens, masks, strict=True)]
    labels = ([-100, -100, 9, 6], [-100, 9, 5])
    return gpt2(), rows, [{"input_ids": t, "labels": n} for t, n in zip(tokens, labels, strict=True)], {}


def completions() -> Case:
    rows = [{"prompt": "the cat", "completion": " sat on"}, {"prompt": "a", "completion": " big redish dog"}]
    plain = [
        {"input_ids": [5, 7, 9, 11], "labels": [-100, -100, 9, 11]},
        {"input_ids": [6, 13, 14, 18, 8], "labels": [-100, 13, 14, 18, 8]},
    ]
    return gpt2(), rows, plain, {"tokenizer": tiny.tokenizer(marks=False)}


def questions() -> Case:
    rows = [
        {"question": "the cat", "sentence": "sat", "label": 1, "idx": 0},
        {"question": "a", "sentence": "dog ran on", "label": 0, "idx": 1},
    ]
    plain = [
        {"input_ids": [2, 5, 7, 3, 9, 3], "token_type_ids": [0, 0, 0, 0, 1, 1], "labels": 1},
        {"input_ids": [2, 6, 3, 8, 10, 11, 3], "token_type_ids": [0, 0, 0, 1, 1, 1, 1], "labels": 0},
    ]
    return tiny.model("BertForSequenceClassification"), rows, plain, {"tokenizer": tiny.tokenizer()}


def several_labels_by_their_kind() -> Case:
    """Floats and no `problem_type`: transformers takes a cross-entropy for each of them."""
    rows = [{"input_ids": [2, 7, 3], "labels": [1.0, 0.0, 1.0]}, {"input_ids": [2, 3], "labels": [0.0, 0.0, 1.0]}]
    return tiny.model("BertForSequenceClassification", num_labels=3), rows, rows, {}


def images() -> Case:
    kind: Any = transformers.ViTConfig
    config = kind(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4, image_size=4, patch_size=2,
        num_channels=1, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config)
    tiny.stir(model, 0.4)
    rows = [{"pixel_values": torch.randn(1, 4, 4).double().tolist(), "labels": i % 2} for i in range(4)]
    return model.eval(), rows, rows, {"objective": Classification()}


def choices() -> Case:
    torch.manual_seed(0)
    model = transformers.BertForMultipleChoice(tiny.config("bert"))
    tiny.stir(model, 0.4)
    rows = [
        {"input_ids": [[5, 6], [7, 8]], "attention_mask": [[1, 1], [1, 1]], "labels": 1},
        {"input_ids": [[5, 6, 7], [9, 8, 0]], "attention_mask": [[1, 1, 1], [1, 1, 0]], "labels": 0},
    ]
    return model.eval(), rows, rows, {"objective": Classification()}


def translations() -> Case:
    config = transformers.BartConfig(
        vocab_size=tiny.SIZE, d_model=4, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=4, decoder_ffn_dim=4, max_position_embeddings=8, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(config)
    tiny.stir(model, 0.4)
    plain = [{"input_ids": [5, 6, 7], "labels": [8, 9]}, {"input_ids": [9], "labels": [5, 12, 6]}]
    rows = [{**row, "decoder_input_ids": [2, *row["labels"][:-1]]} for row in plain]
    return model.eval(), rows, plain, {"objective": MaskedToken()}


CASES = [
    packed,
    packed_without_labels,
    packed_by_lengths,
    completion_masks,
    completions,
    questions,
    several_labels_by_their_kind,
    images,
    choices,
    translations,
]


@cache
def error(case: Any) -> float:
    """Of all scores together, over their size."""
    model, rows, plain, settings = case()
    model = model.double()
    stage = hf.stage("only", model, rows, weight_decay=1.0, reduction="mean", **settings)
    found = trace(Chain(stage), hf.query(rows[:2], stage=stage), curvature=Hessian(), solver=tiny.INVERSE)[
        "only"
    ].values
    model.config.use_cache = False
    if type(model).__name__ == "GPT2LMHeadModel":
        model.loss_function = next_token_loss  # its own rounds to float32 first
    side = dense.Side(model, plain, 1.0, [name for name, _ in model.named_parameters()])
    torch.set_default_dtype(torch.float64)
    try:
        expected = dense.scores_of_one(side, plain[:2])
    finally:
        torch.set_default_dtype(torch.float32)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "case", slow_but(CASES, packed, completions, questions, images, translations), ids=lambda case: case.__name__
)
def test_scores_are_those_of_the_training_loss(case: Any):
    assert error(case) < 1e-6
