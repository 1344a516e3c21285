"""Rows as people have them: what could be meant in two ways is refused, and what is not read is said."""

import re
from typing import Any

import datasets
import pytest
import torch
import transformers

from stagetrace import hf
from stagetrace.errors import DataError, StagetraceError
from stagetrace.objectives import Classification, MaskedToken
from tests.hf import tiny

Row = dict[str, Any]
CLASSES, WORDS, MASKS, NEXT = (
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForMaskedLM",
    "GPT2LMHeadModel",
)
BOTH = ["a dog", "ran"]
LONG = "a dog " * 10


def stage(kind: str, rows: Any, tokenizer: Any = None, **settings: Any) -> Any:
    changes: Row = {"num_labels": settings.pop("num_labels", 3)} if kind in (CLASSES, WORDS) else {}
    tokenizer = tokenizer or tiny.tokenizer(marks=kind != NEXT)
    return hf.stage("s", tiny.model(kind, **changes), rows, tokenizer=tokenizer, **settings)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
        ("question", "passage"), ("sentence_A", "sentence_B"), ("text1", "text2"), ("text_a", "text_b"),
    ],
)  # fmt: skip
def test_known_pairs_are_read_in_their_order(first: str, second: str):
    read = stage(CLASSES, [{second: BOTH[1], "label": 0, first: BOTH[0], "idx": 3}])
    assert read.data[0]["input_ids"] == tiny.tokenizer()(*BOTH)["input_ids"]
    assert read.data.notices == ()


@pytest.mark.parametrize(
    ("kind", "row", "types"),
    [
        (CLASSES, {"title": "a", "content": "b", "label": 1}, 'text=("title", "content")'),
        (CLASSES, {"text": "a", "title": "b", "label": 1}, 'text="text" or text="title"'),
        (CLASSES, {"question": "a", "sentence": "b", "text": "c", "label": 1}, 'text="question" or text="sentence"'),
        (
            CLASSES,
            {"premise": "a", "hypothesis": "b", "explanation": "c", "label": 1},
            'text=("premise", "hypothesis")',
        ),
        (CLASSES, {"prompt": "a", "completion": "b", "label": 1}, 'text="prompt" or text="completion"'),
        (CLASSES, {"review": "a", "label": 1}, 'text="review"'),
        (NEXT, {"title": "a", "text": "b", "id": "1", "url": "u"}, 'text="title" or text="text"'),
        (NEXT, {"premise": "a", "hypothesis": "b"}, 'text="premise" or text="hypothesis"'),
        (NEXT, {"instruction": "a", "input": "b", "output": "c"}, 'text="instruction" or text="input"'),
        (WORDS, {"tokens": ["a"], "words": ["b"], "tags": [1]}, 'text="tokens" or text="words"'),
        (WORDS, {"tokens": ["a"], "lemmas": ["b"], "tags": [1]}, 'text="tokens" or text="lemmas"'),
    ],
)
def test_the_choice_between_columns_is_the_user_s(kind: str, row: Row, types: str):
    with pytest.raises(StagetraceError, match=re.escape(types)) as caught:
        stage(kind, [row])
    assert all(f"'{name}'" in str(caught.value) for name in row)
    chosen = next(name for name in row if f'text="{name}"' in types or f'("{name}"' in types)
    assert len(stage(kind, [row], text=chosen).data[0]["input_ids"]) > 0


@pytest.mark.parametrize(
    ("kind", "row", "passed"),
    [
        (
            CLASSES,
            {"premise": "a", "hypothesis": "b", "genre": "c", "pairID": "d", "label": 1},
            "columns 'genre', 'pairID'",
        ),
        (NEXT, {"text": "a", "id": "b", "uid": "d", "url": "c"}, "columns 'uid', 'url'"),
        (NEXT, {"text": "a", "source": "b"}, "column 'source'"),
        (MASKS, {"text": "a", "doc_id": "b", "meta": "c"}, "columns 'doc_id', 'meta'"),
        (WORDS, {"tokens": ["a"], "langs": ["en"], "tags": [1]}, "column 'langs'"),
    ],
)
def test_where_a_text_comes_from_is_passed_over_and_said(kind: str, row: Row, passed: str):
    read = stage(kind, [row])
    assert [said for said in read.data.notices if f"{passed} " in said and "not read as text" in said]


def test_labels_by_name_are_no_texts():
    read = stage(CLASSES, [{"text": "a dog", "label": 1, "label_text": "yes", "labels_source": "hand"}])
    assert read.data.notices == ()


@pytest.mark.parametrize(
    ("kind", "row", "says"),
    [
        (NEXT, {"prompt": "a", "chosen": "b", "rejected": "c"}, "a loss of two texts"),
        (NEXT, {"messages": [{"role": "user", "content": "a"}]}, "apply_chat_template"),
        (NEXT, {"conversations": [{"from": "human", "value": "a"}]}, "apply_chat_template"),
        (
            NEXT,
            {"prompt": [{"role": "user"}], "completion": [{"role": "assistant"}]},
            "column 'prompt' holds a conversation",
        ),
        (NEXT, {"text": "a dog", "labels": [6, 8]}, "'labels' holds a label per token"),
        (NEXT, {"text": "a dog", "label_ids": [6, 8]}, "'label_ids' holds a label per token"),
        (MASKS, {"text": "a dog", "labels": torch.tensor([6, 8])}, "'labels' holds a label per token"),
        (NEXT, {"input_ids": [5, 6], "labels": [5, 6], "label": [5, 6]}, "several columns could hold the label"),
        (NEXT, {"input_ids": [5, 6], "loss_mask": [0, 1]}, "'loss_mask' changes which tokens count"),
        (NEXT, {"input_ids": [5, 6], "cu_seq_lens_q": [0, 1, 2]}, "only 'position_ids' that start again"),
        (MASKS, {"input_ids": [5, 6], "position_ids": [0, 0]}, "for causal language models only"),
        (CLASSES, {"input_ids": [5, 6], "seq_lengths": [1, 1], "label": 1}, "for causal language models only"),
        (WORDS, {"tokens": ["a"], "ner_tags": [1], "pos_tags": [2]}, 'label="ner_tags" or label="pos_tags"'),
    ],
)
def test_what_would_be_dropped_is_refused(kind: str, row: Row, says: str):
    with pytest.raises(StagetraceError, match=re.escape(says)):
        stage(kind, [row])


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        ({"completion_mask": [0, 1, 1]}, [-100, 6, 7]),
        ({"assistant_masks": [1, 0, 1]}, [5, -100, 7]),
        ({"completion_mask": [0, 1, 1], "assistant_masks": [1, 1, 0]}, [-100, 6, -100]),
        ({"completion_mask": [0, 1, 1], "labels": [5, -100, 7]}, [-100, -100, 7]),
        ({"label_ids": [-100, 6, -100]}, [-100, 6, -100]),
        ({"seq_lengths": [1, 2]}, [-100, -100, 7]),
        ({"position_ids": [0, 1, 0]}, [-100, 6, -100]),
        ({"position_ids": [0, 1, 2]}, [5, 6, 7]),
        ({"position_ids": [0, 1, 0], "labels": [5, 6, 7]}, [5, 6, 7]),
        ({"label": 2, "text": "left as it is"}, [5, 6, 7]),
        ({"labels": 2}, [5, 6, 7]),
    ],
)
def test_what_is_predicted(row: Row, labels: list[int]):
    read = stage(NEXT, [{"input_ids": [5, 6, 7], **row}])
    assert read.data[0]["labels"] == labels
    assert ("attention_mask" in read.data[0]) == (not {"position_ids", "seq_lengths"} & set(row))
    scalar = [name for name in ("label", "labels") if isinstance(row.get(name), int)]
    assert [n for n in read.data.notices if "is not used: what is predicted is the text" in n] != [] or not scalar


def test_a_mask_beside_positions_is_kept():
    rows = [{"input_ids": [5, 6, 7], "position_ids": [0, 1, 0], "attention_mask": [1, 1, 1]}]
    assert stage(NEXT, rows).data[0]["attention_mask"] == [1, 1, 1]


def test_the_cache_is_off_where_documents_are_packed_and_the_model_given_is_not_changed():
    model = tiny.model(NEXT, use_cache=True)
    packed: Any = hf.stage("s", model, [{"input_ids": [5, 6], "position_ids": [0, 0]}])
    assert (packed.model.config.use_cache, model.config.use_cache) == (False, True)
    assert all(one is other for one, other in zip(packed.model.parameters(), model.parameters(), strict=True))
    assert hf.stage("s", model, [{"input_ids": [5, 6]}]).model is model


TOKENS = {"input_ids": [5, 6]}


@pytest.mark.parametrize(
    ("kind", "first", "later", "says"),
    [
        (NEXT, TOKENS, {**TOKENS, "labels": [-100, 6]}, "has 'labels'"),
        (NEXT, {**TOKENS, "labels": [-100, 6]}, TOKENS, "has no column 'labels'"),
        (NEXT, {**TOKENS, "labels": [-100, 6]}, {**TOKENS, "labels": None}, "lacks 'labels'"),
        (NEXT, {**TOKENS, "labels": None}, {**TOKENS, "labels": [-100, 6]}, "has 'labels'"),
        (NEXT, TOKENS, {**TOKENS, "completion_mask": [0, 1]}, "has 'completion_mask'"),
        (NEXT, TOKENS, {**TOKENS, "position_ids": [0, 0]}, "has 'position_ids'"),
        (NEXT, {"text": "a dog"}, {"text": "a dog", "labels": [6, 8]}, "has 'labels'"),
        (NEXT, {"text": "a dog"}, {"input_ids": [5]}, "has no column 'text'"),
        (NEXT, TOKENS, {"input_ids": [5, 99]}, "has the token 99, the model's vocabulary is 0 to 18"),
        (NEXT, TOKENS, {"input_ids": [5, -1]}, "has the token -1"),
        (NEXT, {**TOKENS, "labels": [5, 6]}, {**TOKENS, "labels": [5, 99]}, "the label 99 is no token"),
        (NEXT, {**TOKENS, "labels": [5, 6]}, {**TOKENS, "labels": [5.0, 6.5]}, "must be a whole number, got 5.0"),
        (NEXT, {**TOKENS, "attention_mask": [1, 1]}, {**TOKENS, "attention_mask": [1]}, "1 entries in 'attention"),
        (NEXT, TOKENS, "a dog", "must be a dict with named columns, got str"),
        (WORDS, {**TOKENS, "labels": [0, 1]}, {**TOKENS, "labels": [0.0, 1.0]}, "a whole number or a name, got 0.0"),
        (WORDS, {**TOKENS, "labels": [0, 1]}, {**TOKENS, "labels": 1}, "a list with a label per token, got 1"),
        (CLASSES, {**TOKENS, "label": 1}, {"input_ids": [], "label": 1}, "has no tokens"),
        (CLASSES, {**TOKENS, "label": 1}, {**TOKENS, "label": None}, "is None; leave out"),
        (CLASSES, {**TOKENS, "label": 1}, {**TOKENS, "label": -1}, "-1 stands for no label"),
        (CLASSES, {**TOKENS, "label": 1}, {**TOKENS, "label": -100}, "-100 stands for no label"),
        (CLASSES, {**TOKENS, "label": 1}, {**TOKENS, "label": [0, 1]}, "problem_type = 'multi_label_classification'"),
        (CLASSES, {**TOKENS, "label": [0.0, 1.0, 0.0]}, {**TOKENS, "label": [0.0, 3.0, 0.0]}, "must be 0 or 1"),
    ],
)  # fmt: skip
def test_a_row_unlike_the_first_is_named(kind: str, first: Row, later: Any, says: str):
    read = stage(kind, [first] * 3 + [later])
    assert read.data[2]["input_ids"]
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        read.data[3]
    assert "example 3" in str(caught.value)


def test_columns_that_datasets_fills_with_none_are_seen():
    table = datasets.Dataset.from_list([{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [5, 6], "labels": None}])
    with pytest.raises(DataError, match="example 1 lacks 'labels'"):
        stage(NEXT, table).data[1]


def test_a_row_without_tokens_predicts_nothing_and_costs_nothing():
    read = stage(NEXT, [{"text": text} for text in ("", "a dog", "cat")])
    (batch,) = read.examples.read([[0, 1, 2]])
    losses = read.loss.losses(read.loss.outputs(read.evaluated, batch.content), batch.content)
    assert (losses == 0).tolist() == [True, False, True]
    assert batch.content["input_ids"].dtype == torch.int64
    alone = read.loss.losses(read.loss.outputs(read.evaluated, b := read.collate([read.data[0]])), b)
    assert alone.tolist() == [0.0]


@pytest.mark.parametrize("pack", [list, datasets.Dataset.from_list], ids=["list", "datasets"])
@pytest.mark.parametrize(
    ("kind", "rows", "settings", "said"),
    [
        (NEXT, [{"text": ""}, {"text": " "}, {"text": "a"}], {}, "2 of the first 3 rows have an empty 'text'"),
        (NEXT, [{"text": "a"}, {"text": LONG}], {}, "texts are cut after 16 tokens; example 1 has 20"),
        (CLASSES, [{"text": LONG, "label": 1}], {"max_length": 4}, "texts are cut after 4 tokens; example 0 has 22"),
        (NEXT, [{"input_ids": [5]}, {"input_ids": [5, 6]}], {}, "1 of the first 2 rows have no next token"),
        (NEXT, [{"input_ids": [5, 6], "weight": 0.5}], {}, "'weight' is not used: every example weighs alike"),
        (NEXT, [{"input_ids": [5, 6], "rank": [1, 2]}], {}, "'rank' is not used: the model does not take it"),
        (NEXT, [{"input_ids": [5, 6], "completion_mask": [0, 1]}], {}, "at which 'completion_mask' is 0"),
        (NEXT, [{"prompt": "a", "completion": " dog"}], {}, "no end of text is added"),
        (NEXT, [{"text": "a dog", "label": 1}], {}, "'label' is not used: what is predicted is the text"),
        (CLASSES, [{"text": "a", "label": 0}, {"text": "b", "label": 1}], {"num_labels": 1}, "one logit"),
    ],
)  # fmt: skip
def test_what_was_decided_is_said_in_a_sentence(kind: str, rows: Any, settings: Row, said: str, pack: Any):
    (notice,) = stage(kind, pack(rows), **settings).data.notices
    assert said in notice
    assert notice.startswith("stage 's': ")


def test_nothing_is_said_where_nothing_was_decided():
    assert stage(NEXT, [{"text": "a dog"}, {"text": "the cat sat"}]).data.notices == ()
    assert stage(CLASSES, [{"text": "a", "label": 0.5}], num_labels=1).data.notices == ()
    assert stage(CLASSES, tiny.rows(2)).data.notices == ()


@pytest.mark.parametrize(("kind", "hangs"), [("GPT2LMHeadModel", True), ("LlamaForCausalLM", False)])
def test_padding_on_the_left_is_said_where_positions_count_it(kind: str, hangs: bool):
    tokenizer = tiny.tokenizer(marks=False)
    tokenizer.padding_side = "left"
    read = hf.stage("s", tiny.model(kind), tiny.rows(), tokenizer=tokenizer)
    assert any("pads on the left" in said for said in read.data.notices) == hangs


class Broken(list[Row]):
    def __getitem__(self, index: Any) -> Any:
        raise OSError("no such file")


def test_data_of_another_kind_say_what_to_type():
    pandas = pytest.importorskip("pandas")
    rows: Any = tiny.rows(2)
    table: Any = datasets.Dataset.from_list(rows)
    splits: Any = datasets.DatasetDict
    kinds: list[tuple[Any, str]] = [
        ("imdb", "datasets.load_dataset('imdb', split='train')"),
        (pandas.DataFrame(rows), "datasets.Dataset.from_pandas(frame)"),
        (table.data.table, "pyarrow"),
        (table.to_iterable_dataset(), "stagetrace.corpora.Stream(data, length=n"),
        (torch.utils.data.DataLoader(rows), "of a loader give its dataset"),
        (splits(train=table), "data['train']"),
        ({"text": ["a"], "label": [1]}, "datasets.Dataset.from_dict(data)"),
        ([("a", 1)], "dicts with named columns, got tuple"),
        (Broken(rows), "example 0 cannot be read (OSError: no such file)"),
    ]
    for data, says in kinds:
        with pytest.raises(StagetraceError, match=re.escape(says)) as caught:
            stage(CLASSES, data)
        assert str(caught.value).startswith("stage 's': ")


def vision() -> Any:
    kind: Any = transformers.ViTConfig
    config = kind(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4, image_size=4, patch_size=2,
        num_channels=1, num_labels=2,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).eval()


def translator() -> Any:
    config = transformers.BartConfig(
        vocab_size=tiny.SIZE, d_model=4, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=4, decoder_ffn_dim=4, max_position_embeddings=8,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config).eval()


class Needy(transformers.BertForSequenceClassification):
    def forward(self, input_ids: Any, hints: Any, labels: Any = None) -> Any:  # pyright: ignore
        return super().forward(input_ids=input_ids + hints)


@pytest.mark.parametrize(
    ("model", "row", "says"),
    [
        (vision, {"image": "a.png", "label": 1}, "the images need the model's image processor, and a model in"),
        (vision, {"text": "a dog", "label": 1}, "reads 'pixel_values', which no column holds"),
        (vision, {"pixel_values": torch.ones(1, 6, 6), "label": 1}, "does not run on the first example"),
        (translator, {"input_ids": [5], "labels": [5, 6]}, "prepare_decoder_input_ids_from_labels"),
        (lambda: Needy(tiny.config("bert")), {"input_ids": [5], "label": 1}, "Needy needs 'hints', and the exam"),
    ],
)  # fmt: skip
def test_a_model_that_lacks_something_is_refused_before_anything_runs(model: Any, row: Row, says: str):
    objective = MaskedToken() if model is translator else Classification()
    with pytest.raises(StagetraceError, match=says):
        hf.stage("s", model(), [row], objective=objective)


def test_classes_are_checked_by_an_objective_of_classes_too():
    rows = [{"pixel_values": torch.ones(1, 4, 4), "label": label} for label in (1, 2)]
    read = hf.stage("s", vision(), rows, objective=Classification())
    with pytest.raises(DataError, match="example 1: class 2 is not one of the model's 0 to 1"):
        read.data[1]
