"""What is asked of a stage: strings, completions, labels of a query's own, and what its rows lack."""

from typing import Any

import pytest
import torch
import transformers

from stagetrace import Query, hf
from stagetrace.errors import DataError, DescriptionError, StagetraceError, StagetraceWarning
from tests.hf import tiny

PLAIN = tiny.tokenizer(marks=False)
PROMPTED = {"input_ids": [5, 7, 9, 11], "labels": [-100, -100, 9, 11]}
"""'the cat sat on', of which 'sat on' is asked for."""


def causal(data: Any, tokenizer: Any = PLAIN) -> Any:
    return hf.stage("s", tiny.model("GPT2LMHeadModel"), data, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    return {
        "texts": causal(tiny.rows()),
        "tokens": causal([{"input_ids": [5, 6, 7]}], tokenizer=None),
        "labelled": causal([PROMPTED], tokenizer=None),
        "completions": causal([{"prompt": "a", "completion": " dog"}]),
        "tokens with a tokenizer": causal([{"input_ids": [5, 6, 7]}]),
        "masks": hf.stage("s", tiny.model("BertForMaskedLM"), tiny.rows(), tokenizer=tiny.tokenizer()),
        "classes": hf.stage("s", tiny.model("BertForSequenceClassification"), tiny.rows(2), tokenizer=tiny.tokenizer()),
    }


@pytest.mark.parametrize("kind", ["texts", "tokens", "labelled", "completions"])
@pytest.mark.parametrize(
    ("row", "labels"),
    [
        (PROMPTED, [-100, -100, 9, 11]),
        ({**PROMPTED, "text": "the cat sat on"}, [-100, -100, 9, 11]),
        ({"input_ids": [5, 7, 9, 11], "completion_mask": [0, 0, 0, 1]}, [-100, -100, -100, 11]),
        ({"input_ids": [5, 7, 9, 11], "assistant_masks": [0, 1, 1, 0]}, [-100, 7, 9, -100]),
        ({"input_ids": [5, 7, 9, 11], "labels": torch.tensor([-100, -100, -100, 11])}, [-100, -100, -100, 11]),
        ({"input_ids": [5, 7, 9, 11]}, [5, 7, 9, 11]),
    ],
)
def test_labels_of_the_query_s_own_are_used(kind: str, row: Any, labels: Any, stages: dict[str, Any]):
    asked = hf.query([row], stage=stages[kind])
    assert asked.data[0]["labels"] == labels
    assert asked.data[0]["attention_mask"] == [1] * 4


@pytest.mark.parametrize("kind", ["texts", "completions", "tokens with a tokenizer"])
@pytest.mark.parametrize(
    ("data", "labels"),
    [
        ("the cat sat on", [5, 7, 9, 11]),
        (["the cat sat on", "a dog"], [5, 7, 9, 11]),
        ([{"text": "the cat sat on"}], [5, 7, 9, 11]),
        ([{"prompt": "the cat", "completion": " sat on"}], [-100, -100, 9, 11]),
        ([{"prompt": "the cat ", "completion": "sat on"}], [-100, -100, 9, 11]),
        ([{"prompt": "", "completion": "the cat"}], [5, 7]),
    ],
)
def test_a_line_asks(kind: str, data: Any, labels: list[int], stages: dict[str, Any]):
    if kind == "completions" and not (isinstance(data, list) and isinstance(data[0], dict)):
        data = [{"text": text} for text in ([data] if isinstance(data, str) else data)]
    asked = hf.query(data, stage=stages[kind])
    assert asked.data[0]["labels"] == labels
    assert len(asked.data) == len(data if isinstance(data, list) else [data])


def test_a_string_of_a_masked_model_is_masked_as_its_stage_is(stages: dict[str, Any]):
    text = tiny.TEXTS[0]
    assert hf.query(text, stage=stages["masks"]).data[0] == stages["masks"].data[0]


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        ("classes", "a dog", "text without labels"),
        ("classes", [{"text": "a dog"}], "no column is known to hold the label"),
        ("classes", [{"sentence": "a", "title": "b", "label": 1}], "several columns could hold the text"),
        ("tokens", "a dog", "it has no tokenizer"),
        ("tokens", [{"prompt": "a", "completion": " dog"}], "it has no tokenizer"),
        ("tokens", [{"input_ids": [5], "position_ids": [0], "seq_lengths": [1]}], "pack several documents"),
        ("texts", [{"sentence": "a", "title": "b"}], "several columns could hold the text"),
        ("texts", [{"prompt": "a d", "completion": "og"}], "one token holds the end of the prompt"),
        ("texts", "dog", "no token that is predicted"),
        ("texts", "", "no token that is predicted"),
        ("texts", [{"prompt": "a dog", "completion": ""}], "no token that is predicted"),
        ("texts", [{"input_ids": [5, 6], "labels": [-100, -100]}], "no token that is predicted"),
        ("texts", [{"input_ids": [5, 6], "labels": [5, -100]}], "no token that is predicted"),
        ("texts", [{"input_ids": [5, 6], "labels": [6]}], "has 1 labels for 2 tokens"),
        ("texts", [{"input_ids": [5, 6], "completion_mask": [1]}], "has 1 entries for 2 tokens"),
        ("texts", [{"messages": [{"role": "user", "content": "a"}]}], "the last message is of the role"),
    ],
)
def test_a_query_that_asks_for_nothing_or_for_too_much_is_refused(kind: str, data: Any, says: str, stages: Any):
    with pytest.raises(StagetraceError, match=says) as caught:
        hf.query(data, stage=stages[kind]).data[0]
    assert str(caught.value).startswith("the query")


def test_a_feature_that_the_stage_s_rows_have_is_missed():
    rows = [{"input_ids": [2, 7, 3], "token_type_ids": [0, 1, 1], "label": 1}]
    stage = hf.stage("s", tiny.model("BertForSequenceClassification"), rows)
    with pytest.raises(DescriptionError, match="the rows lack 'token_type_ids'"):
        hf.query([{"input_ids": [2, 7, 3], "label": 1}], stage=stage)


def test_what_is_passed_over_is_said_when_the_columns_are_other_ones(stages: dict[str, Any]):
    with pytest.warns(StagetraceWarning, match="column 'url' is not read as text"):
        hf.query([{"sentence": "a dog", "url": "x", "label": 0}], stage=stages["classes"])


def test_rows_with_texts_in_a_query_by_hand_are_told_of_hf_query(stages: dict[str, Any]):
    stage = stages["classes"]
    read = Query(tiny.rows(2), collate=stage.collate)
    with pytest.raises(DataError, match=r"'text' holds text.*hf.query\(rows, stage=...\)"):
        stage.collate([read.data[0]])


def test_labels_that_a_trainer_s_collator_overwrites_are_used(tmp_path: Any):
    collator = transformers.DataCollatorForLanguageModeling(PLAIN, mlm=False)
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    rows: Any = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}] * 2
    trainer = transformers.Trainer(tiny.model("GPT2LMHeadModel"), arguments, collator, rows)
    stage = hf.from_trainer(trainer, "s")
    asked = hf.query([PROMPTED], stage=stage)
    assert asked.collate is not None
    assert asked.collate([asked.data[0]])["labels"].tolist() == [PROMPTED["labels"]]
    assert hf.query("the cat", stage=stage).data[0]["labels"] == [5, 7]
    assert hf.query(rows, stage=stage).collate is collator
