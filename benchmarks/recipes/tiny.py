"""Models of a few hundred parameters, a tokenizer of a few words, and rows: nothing is downloaded."""

import copy
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "mat", "big", "red", "good", "bad", "happy")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZE = len(WORDS) + len(SPECIAL)
TEXTS = (
    "the cat sat on the mat", "a dog ran", "the good dog sat", "bad cat", "a big red mat on the cat ran", "happy dog",
    "the red dog ran on", "good dog sat",
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + ' [SEP]' }}"
    "{% endgeneration %}{% else %}{{ m['content'] + ' [MASK] ' }}{% endif %}{% endfor %}"
)


def tokenizer() -> Any:
    inner = Tokenizer(models.WordPiece({word: i for i, word in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names: dict[str, Any] = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]", "eos_token": "[SEP]"}
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, **names, model_input_names=["input_ids", "attention_mask"]
    )
    made.chat_template = TEMPLATE
    return made


def gpt2(cls: str = "GPT2LMHeadModel", **settings: Any) -> Any:
    sizes: dict[str, Any] = {
        "n_positions": 32,
        "n_embd": 4,
        "n_layer": 1,
        "n_head": 2,
        "n_inner": 5,
        "vocab_size": SIZE,
    }
    still: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    special: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return made(cls, transformers.GPT2Config(**sizes, **still, **special, **settings))


def bert(cls: str, **settings: Any) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 5}
    still: dict[str, Any] = {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 32,
    }
    return made(cls, transformers.BertConfig(vocab_size=SIZE, pad_token_id=0, **sizes, **still, **settings))


def bart() -> Any:
    sizes: dict[str, Any] = {
        "d_model": 4,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 5,
        "decoder_ffn_dim": 5,
    }
    heads: dict[str, Any] = {
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "vocab_size": SIZE,
        "dropout": 0.0,
    }
    special: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    return made(
        "BartForConditionalGeneration", transformers.BartConfig(**sizes, **heads, **special, max_position_embeddings=32)
    )


def config(kind: str, **settings: Any) -> Any:
    """A configuration, whose classes do not declare all that they take."""
    return getattr(transformers, f"{kind}Config")(**settings)


def made(cls: str, config: Any) -> Any:
    """In float64, with weights large enough that every layer matters."""
    torch.manual_seed(0)
    model = getattr(transformers, cls)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    return model.double()


def apart(model: Any) -> Any:
    """A copy with memory of its own."""
    return copy.deepcopy(model)


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def rows(*columns: str) -> Any:
    """The texts, tokenised, with these columns beside."""
    tokens = tokenizer()
    every = [
        {"text": text, **tokens(text), **_labels(place, tokens(text)["input_ids"])} for place, text in enumerate(TEXTS)
    ]
    return datasets.Dataset.from_list([{n: r[n] for n in ("input_ids", "attention_mask", *columns)} for r in every])


def _labels(place: int, tokens: list[int]) -> dict[str, Any]:
    end = min(place % 3 + 1, len(tokens) - 1)
    return {
        "label": (3 * place + 1) % 3,
        "value": 0.5 * place - 1,
        "several": [float(place % 2), float(place % 3 == 0), 1.0],
        "tags": [(place + token) % 3 for token in tokens],
        "start_positions": end - 1,
        "end_positions": end,
        "labels": tokens[::-1],
    }


def arguments(cls: Any, folder: Path, **settings: Any) -> Any:
    """Three steps of training, quietly."""
    common: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.01,
        "use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no",
    }  # fmt: skip
    return cls(**(common | settings))
