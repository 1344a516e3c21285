"""Which columns are read, and what is said where they cannot be."""

from typing import Any

import datasets
import pytest

from stagetrace import hf
from stagetrace.errors import DataError, DescriptionError, StagetraceError
from tests.hf import tiny

CLASSIFIER, WORDS, MASKED, CAUSAL = (
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForMaskedLM",
    "GPT2LMHeadModel",
)


ORDER = {"no": 0, "yes": 1, "perhaps": 2}


def stage(name: str, data: Any, **settings: Any) -> Any:
    changes: dict[str, Any] = (
        {"label2id": ORDER, "id2label": dict(enumerate(ORDER))} if name in (CLASSIFIER, WORDS) else {}
    )
    return hf.stage("s", tiny.model(name, **changes), data, tokenizer=tiny.tokenizer(), **settings)


def one(**columns: Any) -> list[dict[str, Any]]:
    return [columns]


TEXT = tiny.tokenizer()("a dog ran")["input_ids"]
PAIR = tiny.tokenizer()("a dog", "ran")["input_ids"]


@pytest.mark.parametrize(
    ("name", "row", "settings", "ids", "labels"),
    [
        (CLASSIFIER, {"text": "a dog ran", "label": 2}, {}, TEXT, 2),
        (CLASSIFIER, {"sentence": "a dog ran", "label": True, "idx": 7}, {}, TEXT, 1),
        (CLASSIFIER, {"content": "a dog ran", "labels": "perhaps"}, {}, TEXT, 2),
        (CLASSIFIER, {"premise": "a dog", "hypothesis": "ran", "label": "yes"}, {}, PAIR, 1),
        (CLASSIFIER, {"text": "x", "b": "a dog ran", "good": 0}, {"text": "b", "label": "good"}, TEXT, 0),
        (CLASSIFIER, {"x": "a dog", "y": "ran", "label": 0}, {"text": ["x", "y"]}, PAIR, 0),
        (CLASSIFIER, {"input_ids": [2, 7], "label": "yes", "text": "left as it is"}, {}, [2, 7], 1),
        (CLASSIFIER, {"text": "a dog ran", "label": 2}, {"max_length": 3}, [TEXT[0], TEXT[1], TEXT[-1]], 2),
        (WORDS, {"tokens": ["a", "dog", "ran"], "ner_tags": ["no", 1, "yes"]}, {}, TEXT, [-100, 0, 1, 1, -100]),
        (WORDS, {"input_ids": [2, 7], "labels": ["no", -100]}, {}, [2, 7], [0, -100]),
        (CAUSAL, {"text": "a dog ran", "label": 1}, {}, TEXT, TEXT),
        (CAUSAL, {"input_ids": [2, 7], "attention_mask": [1, 0]}, {}, [2, 7], [2, -100]),
        (CAUSAL, {"input_ids": [2, 7], "labels": [-100, 7]}, {}, [2, 7], [-100, 7]),
    ],
)
def test_what_is_read(name: str, row: dict[str, Any], settings: dict[str, Any], ids: list[int], labels: Any):
    features = stage(name, [row], **settings).data[0]
    assert set(features) <= {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert (list(features["input_ids"]), features["labels"]) == (list(ids), labels)


def test_a_hugging_face_data_set_is_read_row_by_row():
    table = datasets.Dataset.from_list(tiny.rows(2)).cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    plain = stage(CLASSIFIER, tiny.rows(2))
    for data in (table, table.with_format("torch"), table.select(range(8))):
        read = stage(CLASSIFIER, data)
        assert list(read.data) == list(plain.data)


@pytest.mark.parametrize(
    ("name", "data", "settings", "says"),
    [
        (
            CLASSIFIER,
            one(body="a", label=1),
            {},
            "no column is known to hold the text; the columns are 'body', 'label'",
        ),
        (CLASSIFIER, one(text="a", sentence="b", label=1), {}, "several columns could hold the text.*by text="),
        (
            CLASSIFIER,
            one(text="a"),
            {},
            "no column is known to hold the label; the columns are 'text'; name it by label=",
        ),
        (CLASSIFIER, one(text="a", label=1, labels=2), {}, "several columns could hold the label"),
        (CLASSIFIER, one(text="a", label=1), {"text": "txt"}, "no column 'txt'; the columns are 'text', 'label'"),
        (CLASSIFIER, one(text="a", label=1), {"text": ["text"] * 3}, "one column, or two"),
        (CLASSIFIER, one(input_ids=[2], label=1), {"max_length": 3}, "tokenised already"),
        (CLASSIFIER, {"train": tiny.rows(2)}, {}, r"pass one split of it, e.g. data\['train'\]"),
        (CLASSIFIER, ["a dog"], {}, "dicts with named columns, got str"),
        (CLASSIFIER, iter(tiny.rows(2)), {}, "with a length and indices"),
        (CLASSIFIER, [], {}, "the data set is empty"),
    ],
)
def test_columns_that_are_not_clear_are_refused(name: str, data: Any, settings: dict[str, Any], says: str):
    with pytest.raises(StagetraceError, match=says) as caught:
        stage(name, data, **settings)
    assert "stage 's'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        (CLASSIFIER, {"text": "a", "label": 3}, "class 3 is not one of the model's 0 to 2"),
        (CLASSIFIER, {"text": "a", "label": -1}, "class -1 is not one of the model's 0 to 2"),
        (CLASSIFIER, {"text": "a", "label": 0.5}, "a whole number or a name, got 0.5"),
        (CLASSIFIER, {"text": "a", "label": "never"}, "config.label2id has no 'never'; it has"),
        (CLASSIFIER, {"text": None, "label": 1}, "'text' of example 1 must be a string, got NoneType"),
        (CLASSIFIER, {"text": "a"}, "example 1 has no column 'label'"),
        (WORDS, {"tokens": ["a"], "tags": [0, 1]}, "has 2 labels for 1 words"),
        (WORDS, {"tokens": "a", "tags": [0]}, "must be a list of words, got str"),
    ],
)
def test_an_example_that_cannot_be_read_is_named(name: str, row: dict[str, Any], says: str):
    fine = {"text": "a", "label": 1} if name == CLASSIFIER else {"tokens": ["a"], "tags": [1]}
    read = stage(name, [fine, row])
    assert read.data[0]["labels"] in (1, [-100, 1, -100])
    with pytest.raises(DataError, match=says) as caught:
        read.data[1]
    assert "example 1" in str(caught.value)


def test_labels_for_each_token_are_counted():
    read = stage(WORDS, [{"input_ids": [2, 7], "labels": [0]}])
    with pytest.raises(DataError, match="has 1 labels for 2 tokens"):
        read.data[0]


def test_numbers_are_counted():
    model = tiny.model(CLASSIFIER, num_labels=1)
    read = hf.stage("s", model, [{"text": "a", "label": [1.0, 2.0]}], tokenizer=tiny.tokenizer())
    with pytest.raises(DataError, match=r"the model predicts 1 number\(s\), got the label \[1.0, 2.0\]"):
        read.data[0]


def test_classes_that_the_model_numbers_otherwise_are_refused():
    names = datasets.ClassLabel(names=["yes", "no", "perhaps"])
    table = datasets.Dataset.from_list(tiny.rows(2)).cast_column("label", names)
    with pytest.raises(DescriptionError, match="align_labels_with_mapping") as caught:
        stage(CLASSIFIER, table)
    assert "['yes', 'no', 'perhaps'], the model ['no', 'yes', 'perhaps']" in str(caught.value)
    assert stage(CLASSIFIER, table.align_labels_with_mapping(ORDER, "label")).name == "s"


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["no", "yes"], ""),
        (["No", "YES", "perhaps"], ""),
        (["LABEL_0", "LABEL_1"], ""),
        (["yes", "no"], "align_labels_with_mapping"),
        (["no", "perhaps"], "align_labels_with_mapping"),
        (["No", "Perhaps", "Yes"], "align_labels_with_mapping"),
        (["no", "maybe", "perhaps"], "the model has no 'maybe': set model.config.label2id"),
    ],
)
def test_each_name_of_a_column_of_classes_must_have_the_model_s_number(names: list[str], refused: str):
    labels = datasets.ClassLabel(names=names)
    table = datasets.Dataset.from_list(tiny.rows(2)).cast_column("label", labels)
    words = [{"tokens": ["a", "dog"], "ner_tags": [0, 1]}]
    listed: Any = datasets.Sequence(labels)
    tags = datasets.Dataset.from_list(words).cast_column("ner_tags", listed)
    for kind, data in ((CLASSIFIER, table), (WORDS, tags)):
        if refused:
            with pytest.raises(DescriptionError, match=f"numbers its classes .*{refused}"):
                stage(kind, data)
        else:
            stage(kind, data)


def test_a_query_needs_a_stage_of_its_kind():
    from stagetrace import Stage
    from stagetrace.objectives import Classification

    plain = Stage("s", model=tiny.model(CLASSIFIER), objective=Classification(), data=tiny.rows(2))
    with pytest.raises(DescriptionError, match=r"made by hf.stage or hf.from_trainer; for others write Query"):
        hf.query(tiny.rows(2), stage=plain)
    with pytest.raises(DataError, match="the query: the data set is empty"):
        hf.query([], stage=stage(CLASSIFIER, tiny.rows(2)))
