"""Scores of stages of images and sounds against dense float64 matrices and transformers' own loss of each row alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stagetrace import Chain, Hessian, hf, trace
from tests.hf import dense
from tests.hf import tiny as words
from tests.hf.modal import tiny

Case = tuple[Any, Any, list[dict[str, Any]], list[dict[str, Any]]]
"""The model, its processor, the rows as a user has them, the same as transformers takes them."""


def of_images() -> Case:
    processor, rows = tiny.pixels(), tiny.images()
    plain = [
        {"pixel_values": processor(row["image"])["pixel_values"][0].tolist(), "labels": row["label"]} for row in rows
    ]
    return tiny.vit(), processor, rows, plain


def of_sounds() -> Case:
    processor, rows = tiny.waves(), tiny.sounds(31, 44, 37)
    plain = list[dict[str, Any]]()
    for row in rows:
        array = row["audio"]["array"]
        normal = (array - array.mean()) / (array.var() + 1e-7) ** 0.5
        plain.append({"input_values": normal.tolist(), "labels": row["label"]})
    return tiny.wav2vec2(), processor, rows, plain


@pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning")
@pytest.mark.parametrize("case", [of_images, of_sounds], ids=lambda case: case.__name__)
def test_scores_are_those_of_the_training_loss(case: Callable[[], Case]):
    model, processor, rows, plain = case()
    model = model.double()
    stage = hf.stage("only", model, rows, processor=processor, weight_decay=1.0)
    query = hf.query(rows[:2], stage=stage)
    found = trace(Chain(stage), query, curvature=Hessian(), solver=words.INVERSE)["only"].values
    side = dense.Side(model, plain, 1.0, [name for name, _ in model.named_parameters()])
    torch.set_default_dtype(torch.float64)
    try:
        expected = dense.scores_of_one(side, plain[:2])
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
