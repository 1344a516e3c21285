"""Texts that are spoken, by a model with a token or a blank in each frame: losses are the model's own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stagetrace import Chain, Lanczos, hf, trace
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


@pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")
def test_it_is_traced():
    described = hf.stage("s", model(), spoken(), processor=tiny.waves(), tokenizer=words.tokenizer())
    found = trace(Chain(described), hf.query(spoken()[:1], stage=described), solver=Lanczos(damping=1.0))
    assert float(found["s"].values[0]) < 0, "the query's own text is helpful to it"
