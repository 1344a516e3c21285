"""Translations, answers in a text, and choices: an example's loss is transformers' own of it alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from stagetrace import Chain, GaussNewton, Lanczos, Stage, hf, trace
from stagetrace.errors import StagetraceError
from stagetrace.objectives import Classification, Seq2Seq, SpanAnswer
from stagetrace.objectives.weights import Weights
from tests.hf import tiny

TARGETS = [
    {"input_ids": [5, 6, 7], "labels": [8, 9, 3]},
    {"input_ids": [9], "labels": [5, 12, 6, 7, 3]},
    {"input_ids": [5, 6], "labels": [-100, 8]},
]
ANSWERS = [
    {"input_ids": [2, 5, 6, 3, 9, 10, 3], "start_positions": 4, "end_positions": 5},
    {"input_ids": [2, 7, 3, 8, 3], "start_positions": 0, "end_positions": 0},
    {"input_ids": [2, 7, 3, 8, 9, 11, 12, 3, 0], "start_positions": 3, "end_positions": 8},
]
CHOICES = [
    {"input_ids": [[5, 6], [7, 8]], "attention_mask": [[1, 1], [1, 1]], "label": 1},
    {"input_ids": [[5, 6, 7], [9, 8, 0]], "attention_mask": [[1, 1, 1], [1, 1, 0]], "label": 0},
    {"input_ids": [[6, 7], [11, 12]], "attention_mask": [[1, 1], [1, 1]], "label": 1},
]


def bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=tiny.SIZE, d_model=4, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=4, decoder_ffn_dim=4, max_position_embeddings=12, dropout=0.0,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3,
    )  # fmt: skip
    return stirred(transformers.BartForConditionalGeneration(config))


def t5() -> Any:
    kind: Any = transformers.T5Config
    config = kind(
        vocab_size=tiny.SIZE, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2, dropout_rate=0.0, pad_token_id=0,
        eos_token_id=3, decoder_start_token_id=0,
    )  # fmt: skip
    return stirred(transformers.T5ForConditionalGeneration(config))


def stirred(model: Any) -> Any:
    tiny.stir(model, 0.4)
    return model.eval()


def bert(kind: str) -> Any:
    torch.manual_seed(0)
    return stirred(getattr(transformers, f"BertFor{kind}")(tiny.config("bert")))


MAKE = {
    "bart": (bart, TARGETS, Seq2Seq()),
    "t5": (t5, TARGETS, Seq2Seq()),
    "answers": (lambda: bert("QuestionAnswering"), ANSWERS, SpanAnswer()),
    "choices": (lambda: bert("MultipleChoice"), CHOICES, Classification()),
}


def losses_of(stage: Stage, plan: list[list[int]]) -> Tensor:
    batches = stage.examples.read(plan)
    with torch.no_grad():
        found = [stage.loss.losses(stage.loss.outputs(stage.evaluated, b.content), b.content) for b in batches]
    return torch.cat(found)


def alone(model: Any, row: dict[str, Any]) -> Tensor:
    given = {"labels" if name == "label" else name: torch.tensor([value]) for name, value in row.items()}
    with torch.no_grad():
        return model(**given).loss


@pytest.mark.parametrize("case", MAKE)
def test_the_loss_of_an_example_is_transformers_own(case: str):
    make, rows, objective = MAKE[case]
    stage = hf.stage("s", make(), rows, reduction="mean")
    assert stage.objective == objective
    expected = torch.stack([alone(stage.model, row) for row in rows])
    for plan in ([[0, 1, 2]], [[2, 0], [1]], [[0], [1], [2]]):
        order = [index for batch in plan for index in batch]
        torch.testing.assert_close(losses_of(stage, plan), expected[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "case", ["answers", "choices", *(pytest.param(k, marks=pytest.mark.slow) for k in ("bart", "t5"))]
)
def test_a_trace_runs(case: str):
    make, rows, _ = MAKE[case]
    described = hf.stage("s", make(), rows, weights=Weights([1, 2, 0]))
    query = hf.query(rows[:1], stage=described)
    scores = trace(Chain(described), query, curvature=GaussNewton(), solver=Lanczos(damping=0.5))["s"].values
    assert bool((scores[:2] != 0).all())
    assert float(scores[2]) == 0


@pytest.mark.parametrize("make", [bart, t5])
def test_the_mean_over_targets_is_that_of_all_their_tokens(make: Any):
    stage = hf.stage("s", make(), TARGETS)
    (batch,) = stage.examples.read([[0, 1, 2]])
    with torch.no_grad():
        theirs = stage.model(**batch.content).loss
    torch.testing.assert_close(losses_of(stage, [[0, 1, 2]]).mean(), theirs, rtol=1e-5, atol=1e-6)


def test_a_target_may_be_a_text():
    tokenizer, model = tiny.tokenizer(), bart()
    rows = [{"document": "the cat sat", "summary": "a cat"}, {"document": "a dog", "summary": "the big dog ran"}]
    stage = hf.stage("s", model, rows, tokenizer=tokenizer, text="document", label="summary")
    assert stage.data[1]["labels"] == tokenizer("the big dog ran")["input_ids"]
    with pytest.raises(StagetraceError, match='text="document" or text="summary"'):
        hf.stage("s", model, rows, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("case", "row", "said"),
    [
        ("answers", {"input_ids": [2, 5, 3], "start_positions": 1}, "there is no column 'end_positions'"),
        ("answers", {"question": "a", "context": "b"}, "question answering is read from tokenised rows"),
        ("choices", {"sent1": "a", "ending0": "b", "label": 0}, "a list of tokens for each choice"),
        ("choices", {"input_ids": [[5], [6]], "label": 2}, "label"),
        ("bart", {"input_ids": [5]}, "no column is known to hold the label"),
        ("bart", {"input_ids": [5], "labels": "a cat"}, "the texts need a tokenizer"),
        ("t5", {"input_ids": [5], "labels": [99]}, "the label 99 is no token"),
    ],
)
def test_rows_that_do_not_fit_are_refused(case: str, row: dict[str, Any], said: str):
    make, _, _ = MAKE[case]

    def used() -> None:
        stage = hf.stage("s", make(), [row, row])
        trace(Chain(stage), hf.query([row], stage=stage))

    with pytest.raises(StagetraceError, match=said):
        used()


def test_a_decoder_alone_that_is_called_so_has_no_ready_made_loss():
    class TalksForConditionalGeneration(transformers.LlamaForCausalLM):
        pass

    with pytest.raises(
        StagetraceError, match=r"no ready-made loss for Talks.*ForConditionalGeneration .with an encoder."
    ):
        hf.stage("s", TalksForConditionalGeneration(tiny.config("llama")), [{"input_ids": [5, 6]}])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_seq2seq_trainer_is_taken_over(smoothing: float, tmp_path: Path):
    rows: Any = TARGETS
    made: Any = transformers.Seq2SeqTrainer(
        model := t5(),
        transformers.Seq2SeqTrainingArguments(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=3,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            label_smoothing_factor=smoothing,
            save_strategy="no",
            learning_rate=0.0,
        ),
        train_dataset=rows,
        data_collator=transformers.DataCollatorForSeq2Seq(tiny.tokenizer(), model=model),
    )
    made.train()
    stage = hf.from_trainer(made, "s")
    (batch,) = stage.examples.read([[0, 1, 2]])
    made.model.eval()
    with torch.no_grad():
        theirs = made.compute_loss(made.model, dict(batch.content))
    torch.testing.assert_close(losses_of(stage, [[0, 1, 2]]).mean(), theirs, rtol=1e-5, atol=1e-6)
