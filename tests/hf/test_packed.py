"""Rows that pack several documents, in models that keep these apart and in models that do not."""

from typing import Any

import peft
import pytest
import torch
import transformers

from stagetrace import hf
from stagetrace.errors import DescriptionError
from tests.hf import tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PACKED = [{"input_ids": [5, 6, 7, 8, 9], "position_ids": [0, 1, 2, 0, 1]}]
ONE = [{"input_ids": [5, 6, 7], "position_ids": [0, 1, 2]}]
LATER = [*ONE, *PACKED]
SEEN = r".*lets documents of a packed row see each other in this model .*write one document a row"


def made(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config: Any = getattr(transformers, f"{name}Config")(vocab_size=tiny.SIZE, pad_token_id=0, **settings)
    heads = {"OpenAIGPT": "OpenAIGPTLMHeadModel", "Bert": "BertLMHeadModel"}
    model = getattr(transformers, heads.get(name, f"{name}ForCausalLM"))(config)
    tiny.stir(model, 0.4)
    return model.eval()


def prefixed() -> Any:
    settings = peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(tiny.model("GPT2LMHeadModel"), settings)
    return model.eval()


MIXING = {
    "Bloom": lambda: made("Bloom", hidden_size=4, n_layer=1, n_head=2),
    "Mamba": lambda: made("Mamba", hidden_size=4, state_size=2, num_hidden_layers=1, expand=1, time_step_rank=1),
    "OpenAIGPT": lambda: made("OpenAIGPT", n_positions=12, n_embd=4, n_layer=1, n_head=2),
    "prefix": prefixed,
}


@pytest.mark.parametrize("name", MIXING)
def test_documents_that_see_each_other_are_refused(name: str):
    model = MIXING[name]()
    for rows in (PACKED, LATER):
        with pytest.raises(DescriptionError, match=f"stage 's': {SEEN}"):
            hf.stage("s", model, rows)
    if name == "prefix":
        return
    stage = hf.stage("s", model, ONE)
    if not getattr(model.config, "use_cache", False):
        with pytest.raises(DescriptionError, match=f"query: {SEEN}"):
            hf.query(PACKED, stage=stage)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_documents_that_are_kept_apart_are_read(name: str):
    stage: Any = hf.stage("s", tiny.model(name), LATER)
    assert ["packed document" in said for said in stage.data.notices] == [True]


def test_positions_of_one_document_are_not_called_packed():
    stage: Any = hf.stage("s", tiny.model("GPT2LMHeadModel"), ONE)
    assert stage.data.notices == ()
