"""A prompt and a completion, and conversations, as what a causal language model is asked."""

from typing import Any

import pytest
import torch

from stagetrace import hf
from stagetrace.errors import StagetraceError
from stagetrace.hf.answers import continued
from stagetrace.hf.asking import without_bos
from tests.hf import tiny

WORDS = "{% for m in messages %}{{ 'a' if m.role == 'user' else 'the' }} {{ m.content }} on {% endfor %}"
BEGINS = "{% if add_generation_prompt %}the {% endif %}"
MARKED = (
    "{% for m in messages %}{% if m.role == 'user' %}a {{ m.content }} on {% else %}the "
    "{% generation %}{{ m.content }} on{% endgeneration %} {% endif %}{% endfor %}"
)
LOOKS_BACK = "{{ 'big' if messages | length > 1 else 'red' }}{% for m in messages %} {{ m.content }}{% endfor %}"
ASKED, SAID = {"role": "user", "content": "cat"}, {"role": "assistant", "content": "sat"}


def chatting(template: str | None) -> Any:
    tokenizer = tiny.tokenizer(marks=False)
    tokenizer.chat_template = template
    return hf.stage("s", tiny.model("LlamaForCausalLM"), tiny.rows(), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    return {
        "plain": chatting(None),
        "chat": chatting(WORDS + BEGINS),
        "marked": chatting(MARKED),
        "looks back": chatting(LOOKS_BACK),
        "refuses": chatting("{{ raise_exception('no user') }}"),
        "masks": hf.stage("s", tiny.model("BertForMaskedLM"), tiny.rows(), tokenizer=tiny.tokenizer()),
        "tokens": hf.stage("s", tiny.model("GPT2LMHeadModel"), [{"input_ids": [5, 6, 7]}]),
    }


@pytest.mark.parametrize(("prompt", "completion"), [("the cat", " sat on"), ("the cat ", "sat on"), ("a", " dog ran")])
def test_what_is_asked_is_what_the_completion_adds_to_the_prompt_s_tokens(prompt: str, completion: str, stages: Any):
    tokenizer = stages["plain"].data.reader.tokenizer
    before, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + completion))
    asked = hf.query(prompt=prompt, completion=completion, stage=stages["plain"])
    assert asked.data[0]["input_ids"] == whole
    assert asked.data[0]["labels"] == [-100] * len(before) + whole[len(before) :]
    assert asked.data[0] == hf.query([{"prompt": prompt, "completion": completion}], stage=stages["plain"]).data[0]


def test_a_string_is_another_completion_to_contrast_with(stages: Any):
    asked = hf.query(prompt="the cat", completion=" sat", contrast=" ran on", stage=stages["plain"])
    assert (asked.data[0]["labels"], asked.contrast[0]["labels"]) == ([-100, -100, 9], [-100, -100, 10, 11])
    with pytest.raises(StagetraceError, match="contrast after prompt=: the completion is empty"):
        hf.query(prompt="the cat", completion=" sat", contrast=" ", stage=stages["plain"])


@pytest.mark.parametrize("kind", ["chat", "marked"])
@pytest.mark.parametrize(
    "asked",
    [
        {"data": [{"messages": [ASKED, SAID, ASKED, SAID]}]},
        {"data": [{"prompt": [ASKED, SAID, ASKED], "completion": [SAID]}]},
        {"prompt": [ASKED, SAID, ASKED], "completion": "sat"},
    ],
    ids=["messages", "rows", "prompt"],
)
def test_of_a_conversation_the_last_turn_is_asked_for(kind: str, asked: Any, stages: Any):
    found = hf.query(**asked, stage=stages[kind]).data[0]
    assert found["input_ids"] == [6, 7, 11, 5, 9, 11, 6, 7, 11, 5, 9, 11]  # 'a cat on the sat on', twice
    assert found["labels"] == [-100] * 10 + [9, 11]


def test_tokens_of_a_row_s_own_win_over_its_conversation(stages: Any):
    row = {"messages": [ASKED, SAID], "input_ids": [5, 7, 9], "labels": [-100, 7, -100]}
    assert hf.query([row], stage=stages["chat"]).data[0]["labels"] == [-100, 7, -100]


@pytest.mark.parametrize(
    ("kind", "asked", "says"),
    [
        ("plain", {}, "give rows of data, or prompt= and completion=: one of the two"),
        ("plain", {"data": "a dog", "prompt": "a"}, "one of the two"),
        ("plain", {"data": "a dog", "completion": " ran"}, "completion= goes with prompt="),
        ("plain", {"prompt": "a dog"}, r"a completion is missing.*why\.ask"),
        ("plain", {"prompt": "a dog", "completion": " \n"}, "the completion is empty"),
        ("plain", {"prompt": "a dog", "completion": 3}, "must be a string, got int"),
        ("plain", {"prompt": 3, "completion": " ran"}, "must be a string or a list of messages, got int"),
        ("plain", {"prompt": "", "completion": "ran on"}, "the prompt has no token.*nothing predicts the completion's"),
        (
            "chat",
            {"prompt": [["user", "cat"]], "completion": " ran"},
            "prompt: message 0 must be .*got \\['user'",
        ),
        ("plain", {"prompt": "a dog " * 40, "completion": " ran"}, "are 81 tokens.*cut after 16"),
        ("masks", {"prompt": "a", "completion": " dog"}, "is one of masked"),
        ("tokens", {"prompt": "a", "completion": " dog"}, "has no tokenizer to read a text with"),
        ("plain", {"data": [{"messages": [ASKED, SAID]}]}, "example 0 is a conversation.*no chat template"),
        ("chat", {"data": [{"messages": [ASKED]}]}, "the last message is of the role 'user'"),
        ("chat", {"data": [{"messages": [ASKED, SAID]}, {"text": "a"}]}, "example 1 is no conversation"),
        ("chat", {"data": [{"messages": [{"role": "user"}, SAID]}]}, "message 0 must be .*got {'role': 'user'}"),
        ("chat", {"data": [{"messages": [SAID]}]}, "the conversation is the assistant's turn alone.*before it"),
        ("chat", {"data": [{"messages": "cat sat"}]}, "'messages': a conversation must be a list of .*got 'cat sat'"),
        ("chat", {"data": [{"messages": [[ASKED, SAID]]}]}, "message 0 must be .*conversations are given one in a row"),
        ("looks back", {"data": [{"messages": [ASKED, SAID]}]}, "does not begin with what its prompt alone gives"),
        ("refuses", {"data": [{"messages": [ASKED, SAID]}]}, "refuses these messages .no user"),
    ],
)
def test_what_cannot_be_asked_is_refused(kind: str, asked: Any, says: str, stages: Any):
    with pytest.raises(StagetraceError, match=says):
        hf.query(**asked, stage=stages[kind])


def test_a_beginning_of_text_is_not_doubled():
    tokenizer = tiny.tokenizer()  # adds [CLS] in front
    tokenizer.bos_token = "[CLS]"
    assert without_bos(tokenizer, "[CLS] the cat") == " the cat"
    assert without_bos(tokenizer, "the [CLS] cat") == "the [CLS] cat"
    plain = tiny.tokenizer(marks=False)  # adds none
    plain.bos_token = "the"
    assert without_bos(plain, "the cat") == "the cat"


def test_a_model_writes_what_transformers_generates(stages: Any):
    stage = stages["plain"]
    whole = stage.model.generate(torch.tensor([[5, 7]]), do_sample=False, max_new_tokens=6, pad_token_id=0)[0].tolist()
    written, ended = continued(stage, [5, 7], 6, "why")
    assert written
    assert [5, 7, *written, *([tiny.SEP] if ended else [])] == whole  # which ends with [SEP], the end of a text here
    assert continued(stage, [5, 7], 1, "why") == (written[:1], False)
    with pytest.raises(StagetraceError, match="leaves no room for an answer"):
        continued(stage, [5] * 16, 6, "why")
