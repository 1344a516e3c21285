"""How answers are shown whose characters take several tokens, as accents and emoji of byte-level tokenizers do."""

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from stagetrace import Chain, hf
from stagetrace.why.asked import question_of
from tests.hf import tiny


def bytewise() -> Any:
    """One token for each byte."""
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


def test_an_answer_is_shown_as_it_was_typed():
    model = tiny.model("GPT2LMHeadModel", vocab_size=256, bos_token_id=0, eos_token_id=0, n_positions=32)
    tokenizer = bytewise()
    chain = Chain(hf.stage("lm", model, [{"text": "caf\u00e9 \u65e5\u672c"}], tokenizer=tokenizer))
    found = question_of(chain, "na\u00ef", "\u00e9 \u65e5\ufffdx", None, "ve \u00ef", 8)
    assert found.answer == "\u00e9 \u65e5\ufffdx"
    assert found.contrast is not None
    assert found.contrast.answer == "ve \u00ef"
    unfinished = "\ufffd"
    shown = [token.text for token in found.tokens]
    assert shown[:6] == [unfinished, "\u00e9", " ", unfinished, unfinished, "\u65e5"]
    assert shown[-1] == "x"
    ids = torch.tensor([tokenizer("na\u00ef\u00e9 \u65e5\ufffdx")["input_ids"]])
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    assert abs(found.loss + float(logs[3:-1].gather(1, ids[0, 4:, None]).sum())) < 1e-5
