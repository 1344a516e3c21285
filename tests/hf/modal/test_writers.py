"""Texts written of images and sounds: targets are tokenised as in the usual recipes, losses are the model's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from stagetrace import hf
from stagetrace.errors import DataError, DescriptionError
from stagetrace.objectives import Seq2Seq
from tests.hf import tiny as words
from tests.hf.modal import tiny

SAID = ("the cat sat", "a dog")
TOKENS = [[words.CLS, 5, 7, 9, words.SEP], [words.CLS, 6, 8, words.SEP]]
Row = dict[str, Any]
Case = tuple[Any, Any, list[Row], str, list[list[int]]]
"""The model, its processor, rows, what the model reads, the labels of a target."""


def spoken(lengths: tuple[int, int], column: str = "text") -> list[Row]:
    return [{"audio": row["audio"], column: said} for row, said in zip(tiny.sounds(*lengths), SAID, strict=True)]


def whisper() -> Case:
    without_start = [tokens[1:] for tokens in TOKENS]
    return tiny.whisper(), tiny.mels(), spoken((500, 700)), "input_features", without_start


def speech() -> Case:
    without_start = [tokens[1:] for tokens in TOKENS]
    return tiny.writer("Speech"), tiny.waves(), spoken((41, 30), "sentence"), "input_values", without_start


def captions() -> Case:
    rows = [{"image": row["image"], "caption": said} for row, said in zip(tiny.images(2), SAID, strict=True)]
    return tiny.writer("Vision"), tiny.pixels(), rows, "pixel_values", TOKENS


def features_of(row: Row, processor: Any) -> Any:
    if "image" in row:
        return processor(row["image"], return_tensors="pt")
    return processor(row["audio"]["array"], sampling_rate=tiny.RATE, return_tensors="pt")


@pytest.mark.parametrize("case", [whisper, speech, captions], ids=lambda case: case.__name__)
def test_a_loss_is_the_model_s_own_of_the_example_alone(case: Callable[[], Case], tmp_path: Path):
    model, processor, rows, reads, labels = case()
    words.saved(tmp_path, model, words.tokenizer())
    processor.save_pretrained(tmp_path)
    described = hf.stage("s", str(tmp_path), rows, reduction="mean")
    assert described.objective == Seq2Seq("mean")
    assert [described.data[index]["labels"] for index in (0, 1)] == labels
    asked = hf.query([{**rows[0], reads: described.data[0][reads]}], stage=described)
    assert asked.data[0]["labels"] == labels[0]
    expected = [
        model(**features_of(row, processor), labels=torch.tensor([target])).loss.detach()
        for row, target in zip(rows, labels, strict=True)
    ]
    for plan in ([[1, 0]], [[1], [0]]):
        batches = list(described.examples.read(plan))
        with torch.no_grad():
            found = [described.loss.losses(described.loss.outputs(model, b.content), b.content) for b in batches]
        torch.testing.assert_close(torch.cat(found), torch.stack(expected[::-1]), rtol=1e-5, atol=1e-5)


def test_targets_may_be_tokens_already_and_are_cut():
    rows = [
        {"audio": row["audio"], "labels": [tokens[0], -100, *tokens[2:]]}  # the loss is compared with the model's
        for row, tokens in zip(tiny.sounds(500, 700), TOKENS, strict=True)
    ]
    assert hf.stage("s", tiny.whisper(), rows, processor=tiny.mels()).data[0]["labels"][:3] == [words.CLS, -100, 7]
    processor = transformers.WhisperProcessor(tiny.mels(), words.tokenizer())
    cut = hf.stage("s", tiny.whisper(), spoken((500, 700), "said"), processor=processor, label="said", max_length=3)
    assert cut.data[0]["labels"] == [5, words.SEP]


@pytest.mark.parametrize(
    ("rows", "settings", "says"),
    [
        (spoken((500, 700)), {"text": "text"}, "name a text that is written from them by label="),
        (spoken((500, 700), "said"), {}, "no column is known to hold the label.*name it by label="),
        (
            spoken((500, 700)),
            {"max_length": 13},
            "max_length=13 is more than the 12 tokens that the model has",
        ),
        (spoken((500, 700)), {"tokenizer": None}, "the texts need a tokenizer, and a model in memory has none"),
    ],
)
def test_targets_that_are_not_known_are_refused(rows: Any, settings: Any, says: str):
    with pytest.raises(DescriptionError, match=says):
        hf.stage("s", tiny.whisper(), rows, **{"processor": tiny.mels(), "tokenizer": words.tokenizer(), **settings})


def test_a_target_that_is_no_text_is_named():
    rows = [*spoken((500, 700)), {"audio": tiny.sounds(500)[0]["audio"], "text": None}]
    described = hf.stage("s", tiny.whisper(), rows, processor=tiny.mels(), tokenizer=words.tokenizer())
    with pytest.raises(DataError, match="'text' of example 2"):
        described.data[2]
