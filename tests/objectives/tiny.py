"""Language models of a few hundred parameters from `transformers` configurations, and sentences for them."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 11
SENTENCES = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7], [2, 7, 1], [8, 2, 8, 4, 5, 9])
PAD = 0


def gpt2(*, tied: bool = True, attention: str = "sdpa") -> nn.Module:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "n_positions": 12,
        "n_embd": 4,
        "n_layer": 1,
        "n_head": 2,
        "n_inner": 5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": tied,
        "attn_implementation": attention,
    }
    return lively(transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)))


def llama(*, attention: str = "sdpa") -> nn.Module:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 4,
        "intermediate_size": 5,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 16,
        "attn_implementation": attention,
    }
    return lively(transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)))


def bert(*, attention: str = "sdpa") -> nn.Module:
    return lively(transformers.BertForMaskedLM(bert_config(attention)))


def bert_classifier() -> nn.Module:
    return lively(transformers.BertForSequenceClassification(bert_config("sdpa")))


def bert_config(attention: str) -> transformers.BertConfig:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 5,
        "max_position_embeddings": 12,
        "type_vocab_size": 1,
        "num_labels": 3,
        "attn_implementation": attention,
    }
    return transformers.BertConfig(**settings)


def lively(model: nn.Module) -> nn.Module:
    """Weights large enough that every layer matters: the usual 0.02 leaves a tiny model almost constant."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    return model


def padded(sentences: Sequence[Sequence[int]], *, left: bool = False, extra: int = 0) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of sentences, padded to the longest and by `extra` more."""
    length = max(map(len, sentences)) + extra
    tokens = torch.full((len(sentences), length), PAD)
    mask = torch.zeros_like(tokens)
    for row, sentence in enumerate(sentences):
        where = slice(length - len(sentence), None) if left else slice(len(sentence))
        tokens[row, where] = torch.tensor(sentence)
        mask[row, where] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def labelled(batch: dict[str, Tensor], every: int = 1) -> dict[str, Tensor]:
    """The batch with its tokens as labels, every so many of them; the others and the padding -100."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    skipped = torch.arange(labels.shape[1]) % every != 0
    return {**batch, "labels": labels.masked_fill(skipped, -100)}


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Sentences `{"tokens": [...], "label": ...}` as a padded batch; `label` may be missing."""
    batch = padded([example["tokens"] for example in examples])
    if "label" in examples[0]:
        batch["labels"] = torch.tensor([example["label"] for example in examples])
    return batch


def collate_masked(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The same with every other token as a label."""
    return labelled(padded([example["tokens"] for example in examples]), every=2)
