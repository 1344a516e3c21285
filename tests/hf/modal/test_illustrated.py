"""Vision-language models: what is predicted, losses that are the model's own alone, dense scores, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from stagetrace import Chain, Frozen, Hessian, hf, trace
from stagetrace.errors import DataError, StagetraceError
from stagetrace.objectives import NextToken
from tests.hf import dense, tiny
from tests.hf.modal import seeing

pytestmark = [
    pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:stage 's'.*are predicted:stagetrace.errors.StagetraceWarning"),
]
Row = dict[str, Any]


def stage(rows: Any, kind: str = "llava", **settings: Any) -> Any:
    settings = {"processor": seeing.processor(kind), "reduction": "mean", **settings}
    return hf.stage("s", settings.pop("model", None) or seeing.made(kind), rows, **settings)


def plain(row: Row, kind: str = "llava") -> Row:
    """What transformers makes of a row, batch of one, with the labels of the completion."""
    images = row.get("images") or ([row["image"]] if "image" in row else None)
    text = row["prompt"] + row["completion"]
    found = dict(seeing.processor(kind)(images=images, text=[text], return_tensors="pt"))
    labels = found["input_ids"].clone()
    labels[:, : -len(row["completion"].split())] = -100
    return {**found, "labels": labels}


def losses(described: Any, plan: list[list[int]]) -> torch.Tensor:
    found = dict[int, torch.Tensor]()
    for batch in described.examples.read(plan):
        with torch.no_grad():
            each = described.loss.losses(described.loss.outputs(described.evaluated, batch.content), batch.content)
        found |= dict(zip(batch.indices, each, strict=True))
    return torch.stack([found[index] for index in sorted(found)])


@pytest.mark.parametrize("kind", seeing.PLACE)
def test_a_loss_is_the_model_s_own_of_the_example_alone(kind: str):
    """Whatever it is batched with: other texts, more images, none."""
    rows, described = seeing.rows(kind), stage(seeing.rows(kind), kind)
    assert described.objective == NextToken("mean")
    alone = torch.stack([described.evaluated(**plain(row, kind)).loss.detach() for row in rows])
    for plan in ([[0, 1, 2, 3]], [[2, 0], [3, 1]], [[3], [2], [1], [0]]):
        torch.testing.assert_close(losses(described, plan), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_scores_of_a_chain_are_those_of_dense_matrices():
    """All parameters, then LoRA in the language model: Phi, as Llama's norms are computed in single precision."""
    first_rows, second_rows = seeing.rows()[:2], [seeing.rows()[1], seeing.rows()[0] | {"completion": " ran"}]
    before, base = seeing.made("phi").double(), seeing.made("phi").double()
    targets = r".*language_model.*(q_proj|v_proj)"
    after = peft.get_peft_model(base, peft.LoraConfig(r=1, target_modules=targets)).double()
    tiny.stir(after, 0.3, only="lora_")
    first = stage(first_rows, model=before, weight_decay=2.0)
    second = stage(second_rows, model=after, after=first, weight_decay=1.0)
    assert isinstance(second.link, Frozen)
    query = hf.query(first_rows[:1], stage=second)
    found = trace(Chain(first, replace(second, name="second")), query, curvature=Hessian(), solver=tiny.INVERSE)

    def without_lora(name: str) -> str:
        return name.removeprefix("base_model.model.").replace(".base_layer", "")

    kept = {name: without_lora(name) for name, _ in after.named_parameters() if "lora_" not in name}
    adapters = [name for name, _ in after.named_parameters() if "lora_" in name]
    rows = [[{key: value[0].tolist() for key, value in plain(row).items()} for row in some]
            for some in (first_rows, second_rows)]  # fmt: skip
    torch.set_default_dtype(torch.float64)
    try:
        expected = dense.scores(
            dense.Side(before, rows[0], 2.0, [name for name, _ in before.named_parameters()]),
            dense.Side(after, rows[1], 1.0, adapters),
            rows[0][:1], kept, {}, 0.0,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)
    for name, values in zip(("s", "second"), expected, strict=True):
        torch.testing.assert_close(found[name].values, values, rtol=1e-5, atol=1e-5 * float(values.abs().max()))


def counted(described: Any, index: int = 0) -> list[str]:
    """The words that an example predicts."""
    return [seeing.WORDS[label] for label in described.data[index]["labels"] if label != -100]


ONE, TWO, _ = seeing.images()
TOLD = seeing.said(ONE, "the cat", "a dog", "red", "big mat")
PLAIN = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]


@pytest.mark.parametrize(
    ("row", "template", "predicts", "asks"),
    [
        ({"image": ONE, "text": "<image> the cat sat"}, None, "the cat sat", "the cat sat"),
        ({"image": ONE, "prompt": "<image> the", "completion": " cat sat"}, None, "cat sat", "cat sat"),
        (TOLD, seeing.TEMPLATE, "a dog [SEP] big mat [SEP]", "big mat [SEP]"),
        (TOLD, seeing.MARKED, "a dog big mat", "big mat"),
        (
            {"image": ONE, "prompt": TOLD["messages"][:3], "completion": TOLD["messages"][3:]},
            seeing.TEMPLATE, "big mat [SEP]", "big mat [SEP]",
        ),
        (
            {"image": ONE, "messages": PLAIN},
            seeing.TEMPLATE, "sat [SEP]", "sat [SEP]",
        ),
        ({"image": ONE, "text": "<image> a", "labels": [-100] * 4 + [9]}, None, "the", "the"),
    ],
    ids=["text", "completion", "turns", "marked turns", "completed messages", "plain messages", "labels"],
)  # fmt: skip
def test_what_is_predicted(row: Row, template: str | None, predicts: str, asks: str, tmp_path: Path):
    """And said; a query asks for a conversation's last turn. Model and processor come from a folder."""
    if template == seeing.TEMPLATE:
        seeing.made("llava").save_pretrained(tmp_path)
        seeing.processor(template=template).save_pretrained(tmp_path)
        described = hf.stage("captions", str(tmp_path), [row])
    else:
        described = stage([row], processor=seeing.processor(template=template))
    words = predicts.replace("the", seeing.WORDS[9]).split() if "labels" in row else predicts.split()
    assert counted(described) == words
    assert described.data[0]["labels"][0] == -100
    (said,) = [notice for notice in described.data.notices if "predicted" in notice]
    assert said.startswith(f"{described.where}: ")
    assert counted(hf.query([row], stage=described)) == asks.split()


def test_queries_of_texts_alone_and_of_other_columns():
    described = stage(seeing.rows()[:2], processor=seeing.processor(template=seeing.TEMPLATE))
    asked = hf.query(prompt="the cat", completion=" sat", stage=described)
    assert counted(asked) == ["sat"]
    assert "pixel_values" not in asked.data[0]
    chat = [{"role": "user", "content": "the cat"}]
    assert counted(hf.query(prompt=chat, completion="sat", stage=described)) == ["sat", "[SEP]"]
    assert counted(hf.query([TOLD], stage=described)) == ["big", "mat", "[SEP]"]
    features = described.data[0]
    given = hf.stage("given", seeing.made("llava"), [features, described.data[1]], reduction="mean")
    torch.testing.assert_close(losses(given, [[0, 1]]), losses(described, [[0], [1]]))


def test_texts_are_cut_but_not_images():
    rows = [{"image": ONE, "text": "<image> the cat sat"}, {"image": TWO, "text": "the cat <image>"}]
    described = stage(rows, max_length=5)
    assert described.data[0]["input_ids"] == [seeing.SEEN] * 4 + [seeing.WORDS.index("the")]
    with pytest.raises(DataError, match="example 1: cut after 5 of its 6 tokens it would lose a part of an image"):
        described.data[1]


REFUSED: list[tuple[Row, str]] = [
    ({"image": ONE, "text": "the cat"}, "example 1 is not read by LlavaProcessor .*each image needs its place"),
    ({"image": None, "text": "<image> the cat"}, "example 1 is not read by LlavaProcessor .*no images were passed"),
    ({"image": 4.0, "text": "<image> the"}, "example 1: 'image' is no image but float"),
    ({"image": ONE, "images": [TWO], "text": "<image> the"}, "example 1 has images in 'image' and 'images'"),
    (
        {"input_ids": [5, 9], "attention_mask": [1, 1], "labels": [1, 9]},
        "example 1 has a place for an image .*no image",
    ),
    ({"text": "the", "video": ONE}, "example 1 has a video, which is not read"),
    ({"image": ONE, "text": 4}, "example 1: 'text' must be a string"),
    ({"image": ONE, "prompt": "<image> the"}, "example 1 has no 'text'"),
    ({"image": ONE, "text": "<image> the", "labels": [1]}, "1 labels for 5 tokens|unlike example 0"),
]


@pytest.mark.parametrize(("row", "says"), REFUSED, ids=[says[:30] for _, says in REFUSED])
def test_a_row_that_cannot_be_read_is_named(row: Row, says: str):
    described = stage([{"image": ONE, "text": "<image> the cat"}, row])
    with pytest.raises(DataError, match=f"stage 's': .*({says})"):
        described.data[1]


@pytest.mark.parametrize(
    ("messages", "images", "says"),
    [
        (TOLD["messages"], [ONE, TWO], "have 1 places for images .*the row has 2 images"),
        (TOLD["messages"][:1], [ONE], "no message is of the role 'assistant'"),
        ([{"role": "user", "content": [{"type": "audio"}]}], [], "message 0: a part must be"),
        ([{"role": "user", "content": 4}], [], "message 0: content must be a string or a list of parts"),
        ([{"role": "user", "content": [{"type": "image", "url": "http://a"}]}], [], "a local 'path'"),
    ],
)  # fmt: skip
def test_a_conversation_that_cannot_be_read_is_named(messages: Any, images: Any, says: str):
    described = stage([TOLD, {"messages": messages, "images": images}],
                      processor=seeing.processor(template=seeing.TEMPLATE))  # fmt: skip
    with pytest.raises(DataError, match=f"stage 's': example 1.*{says}"):
        described.data[1]


@pytest.mark.parametrize(
    ("rows", "settings", "says"),
    [
        (seeing.rows(), {"processor": None}, "need the model's processor, and a model in memory has none"),
        (seeing.rows(), {"processor": seeing.processor().image_processor}, "one of transformers with a processor"),
        ([{"image": ONE, "words": "<image> the"}], {}, "no column is known to hold the text.*type text="),
        ([TOLD], {}, "LlavaProcessor has no chat template"),
    ],
)
def test_a_stage_that_does_not_know_how_to_read_is_refused(rows: Any, settings: Any, says: str):
    with pytest.raises(StagetraceError, match=says):
        stage(rows, **settings)
    assert counted(stage([{"image": ONE, "words": "<image> the"}], text="words")) == ["the"]


def test_images_of_unequal_size_make_no_batch_of_a_model_that_is_not_told():
    described = stage(seeing.rows()[:2])
    first, second = described.data[0], dict(described.data[1])
    second["pixel_values"] = torch.zeros(1, 3, 8, 8)
    with pytest.raises(DataError, match=r"'pixel_values' has another size in some examples .*not told"):
        described.collate([first, second])
