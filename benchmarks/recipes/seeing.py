"""Recipes for a vision-language model: transformers' Trainer with the usual collator, and TRL's SFTTrainer."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from benchmarks.recipes import tiny
from benchmarks.recipes.made import Made
from benchmarks.recipes.trainers import Recipe, in_double, tokens_of
from benchmarks.recipes.trl_trainers import QUIET, alone, trl
from stagetrace import Chain, hf

SEEN = len(tiny.SPECIAL)
WORDS = (*tiny.SPECIAL, "<image>", *tiny.WORDS)


def llava() -> Any:
    """LLaVA over Phi, whose norms keep float64 as they are."""
    small: dict[str, Any] = {
        "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4,
    }  # fmt: skip
    vision = transformers.CLIPVisionConfig(**small, image_size=4, patch_size=2)
    still: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0}
    text = tiny.config(
        "Phi", **small, **still, vocab_size=len(WORDS), max_position_embeddings=32, partial_rotary_factor=1.0,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    config = tiny.config("Llava", vision_config=vision, text_config=text, image_token_id=SEEN, vision_feature_layer=-1)
    return tiny.made("LlavaForConditionalGeneration", config)


def processor() -> Any:
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("<image>", "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 4}, crop_size={"height": 4, "width": 4})
    return transformers.LlavaProcessor(
        pixels, tokenizer, patch_size=2, num_additional_image_tokens=1, vision_feature_select_strategy="default"
    )


def trainer(folder: Path) -> Made:
    """The usual collator: everything is predicted but padding and the tokens in the place of images."""
    whole, model = processor(), llava()

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        texts = [f"{row['prompt']}{row['completion']}" for row in rows]
        found = whole(images=[[row["image"]] for row in rows], text=texts, padding=True, return_tensors="pt")
        tokens = found["input_ids"]
        labels = tokens.masked_fill((tokens == SEEN) | (found["attention_mask"] == 0), -100)
        return {**found, "pixel_values": found["pixel_values"].double(), "labels": labels}

    arguments = tiny.arguments(transformers.TrainingArguments, folder, remove_unused_columns=False)
    made: Any = transformers.Trainer(model=model, args=arguments, train_dataset=_rows(), data_collator=collate)
    made.train()
    made.model.eval()
    content = collate(_rows())

    def loss() -> Any:
        return made.compute_loss(made.model, dict(content), num_items_in_batch=tokens_of(content, shifted=True))

    return Made(Chain(hf.from_trainer(made, "stage")), loss, made.model, in_double=in_double)


def sft(folder: Path) -> Made:
    """Prompts with an image, of which the completion is predicted."""
    arguments = tiny.arguments(trl.SFTConfig, folder, **QUIET)
    rows = datasets.Dataset.from_list(_rows())
    made = trl.SFTTrainer(model=llava(), args=arguments, train_dataset=rows, processing_class=processor())
    made.train()
    made.model.eval()
    return alone(made)


def _rows() -> Any:
    draws = np.random.default_rng(0)
    drawn = [Image.fromarray(draws.integers(0, 256, (9 + place, 12, 3), dtype=np.uint8)) for place in range(4)]
    return [
        {"image": image, "prompt": f"<image> {tiny.TEXTS[place]}", "completion": f" {tiny.TEXTS[-1 - place]}"}
        for place, image in enumerate(drawn)
    ]


RECIPES: dict[str, Recipe] = {
    "Trainer: vision-language model": trainer,
    "TRL SFT: vision-language model": sft,
}
