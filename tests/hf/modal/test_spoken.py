"""Texts that are spoken, by a model with a token or a blank in each frame: losses are the model's own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stagetrace import Chain, Lanczos, hf, trace
from stagetrace.errors import DataError, DescriptionError
from stagetrace.objectives import CTC
from tests.hf import tiny as words
from tests.hf.modal import tiny

SAID = ("the cat sat", "a dog")


def spoken() -> list[dict[str, Any]]:
    return [{"audio": row["audio"], "text": said} for row, said in zip(tiny.sounds(200, 140), SAID, strict=True)]


def model(**settings: Any) -> Any:
    made = tiny.wav2vec2_config()
    made.update({"vocab_size": words.SIZE, "pad_token_id": words.PAD, **settings})
    return tiny.made("Wav2Vec2ForCTC", made)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_loss_is_the_model_s_own_of_the_example_alone_whatever_it_is_batched_with(reduction: Any, tmp_path: Path):
    whole = model(ctc_loss_reduction=reduction)
    words.saved(tmp_path, whole, words.tokenizer())
    tiny.waves().save_pretrained(tmp_path)
    described = hf.stage("s", str(tmp_path), spoken())
    assert described.objective == CTC(words.PAD, reduction)
    expected = list[torch.Tensor]()
    for row, said in zip(spoken(), SAID, strict=True):
        features = tiny.waves()(row["audio"]["array"], sampling_rate=tiny.RATE, return_tensors="pt")
        labels = torch.tensor([words.tokenizer()(said)["input_ids"]])
        with torch.no_grad():
            expected.append(whole(**features, labels=labels).loss)
    for plan in ([[1, 0]], [[1], [0]]):
        with torch.no_grad():
            found = [
                described.loss.losses(described.loss.outputs(described.evaluated, batch.content), batch.content)
                for batch in described.examples.read(plan)
            ]
        torch.testing.assert_close(torch.cat(found), torch.stack(expected[::-1]), rtol=1e-5, atol=1e-5)


def stage(rows: Any = None, **settings: Any) -> Any:
    given = {"processor": tiny.waves(), "tokenizer": words.tokenizer(), **settings}
    return hf.stage("s", model(), rows or spoken(), **given)


def test_what_would_be_another_loss_is_refused_or_said():
    with pytest.raises(DescriptionError, match="reduction='mean' is not read of a loss by CTC"):
        stage(reduction="mean")
    first, second = spoken()
    with pytest.raises(DataError, match="example 0: a text holds the token 0, which is the blank"):
        stage([{**first, "text": [5, words.PAD, 7]}, {**second, "text": [6]}], label="text")
    shouted = [{**first, "text": "the CAT sat"}, second]
    assert any("are unknown to the tokenizer, first in example 0" in notice for notice in stage(shouted).data.notices)
    cut = stage(max_length=3).data.notices
    assert any("target texts are cut after 3 tokens; example 0 has 5" in notice for notice in cut)
    assert not stage().data.notices
    with pytest.raises(DataError, match="'audio' of example 1 has 4 samples, too few for one frame"):
        stage([first, {**second, "audio": tiny.sounds(4)[0]["audio"]}]).data[1]


def test_a_text_that_is_too_long_for_its_sound_is_named_whatever_it_is_batched_with():
    heard = [row["audio"] for row in tiny.sounds(200, 20)]
    rows = [{"audio": heard[0], "text": "the cat"}, {"audio": heard[1], "text": "the cat sat on"}]
    described = stage(rows)
    with pytest.raises(DataError, match="the loss of example 1 is inf"):
        trace(Chain(described), hf.query(rows[:1], stage=described))


@pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")
def test_it_is_traced():
    described = hf.stage("s", model(), spoken(), processor=tiny.waves(), tokenizer=words.tokenizer())
    found = trace(Chain(described), hf.query(spoken()[:1], stage=described), solver=Lanczos(damping=1.0))
    assert float(found["s"].values[0]) < 0, "the query's own text is helpful to it"
