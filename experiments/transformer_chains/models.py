"""Small BERT and GPT-2 models from `transformers` configurations: language models, classifiers, and LoRA on these."""

from dataclasses import dataclass
from typing import Any, Literal, final

import torch

from experiments.texts import FIRST, LAST, PADDING, SPECIAL
from stagetrace.errors import refuse

Family = Literal["bert", "gpt"]
HEADS = {"bert": ["pooler", "classifier"], "gpt": ["score"]}
"""What a classifier has and its language model has not: with LoRA these are trained in full."""
ADAPTED = {"bert": ["query", "value"], "gpt": ["c_attn"]}
"""The layers that LoRA adapts: those of Hu et al. (2022); GPT-2 has queries, keys and values in one layer."""


@final
@dataclass(frozen=True)
class Architecture:
    """The shape of both families.

    length: tokens a text is cut at. rank: of LoRA's matrices, whose product is scaled by 2.
    No dropout: training then minimises the same function that is differentiated. Attention is written out in plain
    operations ("eager"), so that `vmap` can batch several copies of a model.
    """

    family: Family
    vocabulary: int = 1000
    hidden: int = 32
    layers: int = 2
    heads: int = 2
    length: int = 32
    rank: int = 8

    def __post_init__(self) -> None:
        if self.family not in HEADS:
            refuse(f"Architecture: family must be 'bert' or 'gpt', got {self.family!r}")

    def config(self, words: int) -> Any:
        """The configuration for a tokenizer of so many tokens, in the names that both families understand."""
        import transformers

        dropouts = {
            "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
            "gpt": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        }
        inner = {"bert": {"intermediate_size": 2 * self.hidden}, "gpt": {"n_inner": 2 * self.hidden}}
        ends = {"bert": {}, "gpt": {"bos_token_id": SPECIAL.index(FIRST), "eos_token_id": SPECIAL.index(LAST)}}
        kind: Any = transformers.BertConfig if self.family == "bert" else transformers.GPT2Config
        return kind(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.length,
            vocab_size=words,
            attn_implementation="eager",
            pad_token_id=SPECIAL.index(PADDING),
            num_labels=2,
            **dict.fromkeys(dropouts[self.family], 0.0),
            **inner[self.family],
            **ends[self.family],
        )

    def language_model(self, words: int, seed: int) -> Any:
        """A new language model; the seed draws its weights."""
        import transformers

        kind = transformers.BertForMaskedLM if self.family == "bert" else transformers.GPT2LMHeadModel
        return _drawn(kind, self.config(words), seed)

    def classifier(self, language_model: Any, seed: int) -> Any:
        """A classifier of two classes on the language model's body; the seed draws its head."""
        import transformers

        bert = self.family == "bert"
        kind = transformers.BertForSequenceClassification if bert else transformers.GPT2ForSequenceClassification
        model = _drawn(kind, self.config(language_model.config.vocab_size), seed)
        found = model.base_model.load_state_dict(language_model.base_model.state_dict(), strict=False)
        assert not found.unexpected_keys
        assert all(name.startswith("pooler.") for name in found.missing_keys)
        return model

    def with_lora(self, classifier: Any, seed: int) -> Any:
        """The classifier with LoRA on its attention; only the adapters and the head are trained."""
        import peft

        config = peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS,
            r=self.rank,
            lora_alpha=2 * self.rank,
            lora_dropout=0.0,
            target_modules=ADAPTED[self.family],
            modules_to_save=HEADS[self.family],
            fan_in_fan_out=self.family == "gpt",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return peft.get_peft_model(classifier, config)


def embedding(model: Any, batch: Any) -> torch.Tensor:
    """The mean of the last layer over a text's tokens, `[batch, hidden]`: for the control by similarity."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    states = whole.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    kept = batch["attention_mask"].unsqueeze(-1).to(states)
    return (states * kept).sum(dim=1) / kept.sum(dim=1)


def _drawn(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config).eval()
