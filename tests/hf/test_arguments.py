"""Settings and rows of a wrong kind get one error that says what to type; lengths are those that the model can read."""

from typing import Any

import pytest
import torch
import transformers

from stagetrace import hf
from stagetrace.errors import DataError, DescriptionError, StagetraceWarning
from tests.hf import tiny

CLASSES, MASKS, NEXT, WORDS = (
    "BertForSequenceClassification",
    "BertForMaskedLM",
    "GPT2LMHeadModel",
    "BertForTokenClassification",
)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"masking": 0.3}, r"masking must be a Masking, got 0.3; type Masking\(0.3\)"),
        *(
            ({"max_length": n}, "max_length must be a whole number of tokens above 0, got")
            for n in (-1, 0, "5", 2.5, True)
        ),
        ({"max_length": 1}, "max_length=1 leaves no token of a text, as the tokenizer adds 2 .*at least 3"),
        ({"max_length": 40}, "max_length=40 is more than the 16 tokens that the model has positions for"),
        ({"text": 5}, "text must name a column.*got 5"),
        ({"label": ["label"]}, "label must name one column"),
        ({"tokenizer": 5}, "tokenizer must be a tokenizer or the folder of one, got 5"),
        (
            {"tokenizer": transformers.PreTrainedTokenizerFast},
            "tokenizer must be .* got the class",
        ),
        ({"collate": "x"}, "collate must be a function"),
        ({"reduction": None}, "reduction must be 'tokens', 'mean', 'sum' or 'auto', got None"),
    ],
)
def test_settings_of_another_kind_are_refused(settings: dict[str, Any], says: str):
    given = {"tokenizer": tiny.tokenizer(), **settings}
    with pytest.raises(DescriptionError, match=f"stage 's': {says}"):
        hf.stage("s", tiny.model(MASKS), tiny.rows(), **given)


def test_other_misplaced_things_are_refused():
    anything: Any = tiny.model(CLASSES)
    with pytest.raises(DescriptionError, match="the stage's name comes first and must be a string"):
        hf.stage(anything, "s", tiny.rows(2))
    folder: Any = "models/a"
    with pytest.raises(DescriptionError, match=r"hf\.shared takes two models or stages, got 'models/a'"):
        hf.shared(folder, folder)
    anything.config.problem_type = None
    object.__setattr__(anything.config, "problem_type", "regresion")
    with pytest.raises(DescriptionError, match="problem_type is 'regresion'; it must be one of 'regression'"):
        hf.stage("s", anything, tiny.rows(2), tokenizer=tiny.tokenizer())


TOKENS = ["input_ids", "position_ids", "attention_mask", "completion_mask"]
WRONG: list[Any] = ["5 6", [[5, 6]], torch.tensor([[5, 6]]), 5]


@pytest.mark.parametrize(
    ("column", "wrong"),
    [*((column, wrong) for column in TOKENS for wrong in WRONG), *((column, [5.0, 6.0]) for column in TOKENS[:2])],
)
def test_columns_of_tokens_must_be_flat(column: str, wrong: Any):
    good = {"input_ids": [5, 6], column: [1, 1]}
    bad = {**good, column: wrong}
    says = f"example {{}}: '{column}' must be a list with a whole number per token"
    with pytest.raises(DataError, match=says.format(0)):
        hf.stage("s", tiny.model(NEXT), [bad])
    with pytest.raises(DataError, match=says.format(1)):
        list(hf.stage("s", tiny.model(NEXT), [good, bad]).data)


def roberta() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4}
    config = transformers.RobertaConfig(vocab_size=tiny.SIZE, max_position_embeddings=12, pad_token_id=1, **sizes)
    return transformers.RobertaForMaskedLM(config).eval()


def test_texts_are_cut_to_the_positions_that_the_model_has():
    model, rows = roberta(), [{"text": "a dog " * 20}]
    read = hf.stage("s", model, rows, tokenizer=tiny.tokenizer())
    features = read.data[0]
    assert len(features["input_ids"]) == 10
    with torch.no_grad():
        model(**{name: torch.tensor([value]) for name, value in features.items()})
    with pytest.raises(DescriptionError, match="max_length=11 is more than the 10 tokens"):
        hf.stage("s", model, rows, tokenizer=tiny.tokenizer(), max_length=11)


def test_a_model_without_a_longest_text_cuts_none():
    config = transformers.XLNetConfig(vocab_size=tiny.SIZE, d_model=4, n_layer=1, n_head=2, d_inner=4, pad_token_id=0)
    model = transformers.XLNetForSequenceClassification(config)
    read = hf.stage("s", model.eval(), [{"text": "a dog " * 20, "label": 1}], tokenizer=tiny.tokenizer())
    assert len(read.data[0]["input_ids"]) == 42


LONG = "a dog " * 10


@pytest.mark.parametrize(
    ("kind", "row", "size"),
    [
        (CLASSES, {"text": LONG, "label": 1}, 22),
        (CLASSES, {"sentence1": "a", "sentence2": LONG, "label": 1}, 24),
        (CLASSES, {"sentence1": "a dog " * 5, "sentence2": "a cat " * 5, "label": 1}, 23),
        (NEXT, {"prompt": "a", "completion": " " + LONG}, 21),
        (WORDS, {"tokens": LONG.split(), "tags": [1] * 20}, 22),
    ],
)
def test_texts_that_are_cut_are_said_of_stages_and_queries(kind: str, row: dict[str, Any], size: int):
    short = {name: value[:1] if isinstance(value, (str, list)) else value for name, value in row.items()}
    short |= {"completion": " dog"} if "completion" in row else {}
    said = f"texts are cut after 16 tokens; example 0 has {size}"
    tokenizer = tiny.tokenizer(marks=kind != NEXT)
    long: Any = hf.stage("s", tiny.model(kind), [row], tokenizer=tokenizer)
    assert any(said in notice for notice in long.data.notices)
    stage: Any = hf.stage("s", tiny.model(kind), [short], tokenizer=tokenizer)
    assert not any("cut" in notice for notice in stage.data.notices)
    with pytest.warns(StagetraceWarning, match=f"the query: {said}"):
        hf.query([row], stage=stage)


def test_a_completion_of_which_nothing_is_left_is_refused():
    rows = [{"prompt": "a", "completion": " dog"}, {"prompt": LONG, "completion": "cat"}]
    stage = hf.stage("s", tiny.model(NEXT), rows, tokenizer=tiny.tokenizer(marks=False))
    with pytest.raises(DataError, match="example 1: nothing of the completion is left"):
        list(stage.data)


def test_tags_by_their_names_are_no_text():
    model = tiny.model(WORDS)
    model.config.label2id = {"out": 0, "in": 1}
    rows = [{"tokens": [], "ner_tags": []}, {"tokens": ["a", "dog"], "ner_tags": ["in", "out"]}]
    for some in (rows, rows[1:]):
        read = hf.stage("s", model, some, tokenizer=tiny.tokenizer())
        assert read.data[len(some) - 1]["labels"] == [-100, 1, 0, -100]
