"""Small BERT and GPT-2 models from `transformers` configurations: language models, classifiers, and LoRA on these."""

from dataclasses import dataclass
from typing import Any, Literal, final

import torch

from experiments.corpora import FIRST, LAST, PADDING, SPECIAL
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
        """The configuration for a tokenizer of so many tokens."""
        import transformers

        shared: dict[str, Any] = {
            "vocab_size": words,
            "attn_implementation": "eager",
            "pad_token_id": SPECIAL.index(PADDING),
            "num_labels": 2,
        }
        if self.family == "bert":
            return transformers.BertConfig(
                hidden_size=self.hidden,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                intermediate_size=2 * self.hidden,
                max_position_embeddings=self.length,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                **shared,
            )
        return transformers.GPT2Config(
            n_embd=self.hidden,
            n_layer=self.layers,
            n_head=self.heads,
            n_inner=2 * self.hidden,
            n_positions=self.length,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=SPECIAL.index(FIRST),
            eos_token_id=SPECIAL.index(LAST),
            **shared,
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
        body = language_model.base_model.state_dict()
        found = model.base_model.load_state_dict(body, strict=False)
        assert not found.unexpected_keys
        assert all(name.startswith("pooler.") for name in found.missing_keys)
        return model

    def with_lora(self, classifier: Any, seed: int) -> Any:
        """The classifier with LoRA on its attention; only the adapters and the head are trained."""
        import peft

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return peft.get_peft_model(
                classifier,
                peft.LoraConfig(
                    task_type=peft.TaskType.SEQ_CLS,
                    r=self.rank,
                    lora_alpha=2 * self.rank,
                    lora_dropout=0.0,
                    target_modules=ADAPTED[self.family],
                    modules_to_save=HEADS[self.family],
                    fan_in_fan_out=self.family == "gpt",
                ),
            )


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
