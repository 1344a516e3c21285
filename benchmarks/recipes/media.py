"""Recipes with the Trainer of transformers for images and sounds, read by processors in collators."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from benchmarks.recipes import tiny
from benchmarks.recipes.made import Made
from benchmarks.recipes.trainers import Recipe, in_double, tokens_of
from stagetrace import Chain, hf

SMALL: dict[str, Any] = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4}
RATE = 16_000
Collator = Callable[[list[Any]], dict[str, Tensor]]


def _followed(folder: Path, model: Any, rows: Any, collator: Collator, processor: Any) -> Made:
    """A Trainer's run, and the loss of its step over all rows."""
    spoken = model.config.is_encoder_decoder
    cls = transformers.Seq2SeqTrainer if spoken else transformers.Trainer
    kind = transformers.Seq2SeqTrainingArguments if spoken else transformers.TrainingArguments
    arguments = tiny.arguments(kind, folder, remove_unused_columns=False)
    trainer: Any = cls(
        model=model, args=arguments, train_dataset=rows, data_collator=collator, processing_class=processor
    )
    trainer.train()
    trainer.model.eval()
    content = collator(rows)

    def loss() -> Any:
        items = tokens_of(content, shifted=False)
        return trainer.compute_loss(trainer.model, dict(content), num_items_in_batch=items)

    return Made(Chain(hf.from_trainer(trainer, "stage")), loss, trainer.model, in_double=in_double)


def images(folder: Path) -> Made:
    """A vision transformer, as `run_image_classification.py` trains one, without augmentation."""
    still: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = tiny.config("ViT", **SMALL, **still, image_size=4, patch_size=2, num_labels=2)
    processor = transformers.ViTImageProcessorPil(size={"height": 4, "width": 4})

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        pixels = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels.double(), "labels": torch.tensor([row["label"] for row in rows])}

    return _followed(folder, tiny.made("ViTForImageClassification", config), _images("label"), collate, processor)


def captions(folder: Path) -> Made:
    """An encoder of images with a decoder that writes, as TrOCR is fine-tuned."""
    still: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = tiny.config("ViT", **SMALL, **still, image_size=4, patch_size=2)
    decoder = tiny.bert("BertLMHeadModel", is_decoder=True, add_cross_attention=True).config
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.is_encoder_decoder = 2, 0, True
    processor = transformers.ViTImageProcessorPil(size={"height": 4, "width": 4})

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        pixels = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels.double(), "labels": _targets(rows)}

    return _followed(folder, tiny.made("VisionEncoderDecoderModel", config), _images("text"), collate, processor)


def _wav2vec2(**settings: Any) -> Any:
    return tiny.config(
        "Wav2Vec2", **SMALL, conv_dim=(3, 3), conv_kernel=(4, 3), conv_stride=(3, 2), num_feat_extract_layers=2,
        num_conv_pos_embeddings=3, num_conv_pos_embedding_groups=1, feat_extract_norm="layer",
        do_stable_layer_norm=True, classifier_proj_size=3, mask_time_prob=0.0,
        hidden_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0, **settings,
    )  # fmt: skip


def sounds(folder: Path) -> Made:
    """wav2vec 2.0 with masked padding, as `run_audio_classification.py` trains one."""
    config = _wav2vec2(num_labels=2, vocab_size=8)
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        found = extractor([row["audio"] for row in rows], sampling_rate=RATE, padding=True, return_tensors="pt")
        labels = torch.tensor([row["label"] for row in rows])
        return {**found, "input_values": found["input_values"].double(), "labels": labels}

    rows = _sounds("label", 31, 44, 37, 40)
    return _followed(folder, tiny.made("Wav2Vec2ForSequenceClassification", config), rows, collate, extractor)


def spoken(folder: Path) -> Made:
    """wav2vec 2.0 with a token or a blank in each frame, as `run_speech_recognition_ctc.py` trains one."""
    config = _wav2vec2(vocab_size=tiny.SIZE, pad_token_id=0, final_dropout=0.0, ctc_loss_reduction="mean")
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        found = extractor([row["audio"] for row in rows], sampling_rate=RATE, padding=True, return_tensors="pt")
        return {**found, "input_values": found["input_values"].double(), "labels": _targets(rows)}

    rows = _sounds("text", 231, 244, 237, 240)
    return _followed(folder, tiny.made("Wav2Vec2ForCTC", config), rows, collate, extractor)


def speech(folder: Path) -> Made:
    """Whisper, with the collator of its usual recipe."""
    config = transformers.WhisperConfig(
        vocab_size=tiny.SIZE, num_mel_bins=3, d_model=4, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=4, decoder_ffn_dim=4, max_source_positions=50, dropout=0.0,
        max_target_positions=12, decoder_start_token_id=2, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    extractor = transformers.WhisperFeatureExtractor(feature_size=3, chunk_length=1)

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        found = extractor([row["audio"] for row in rows], sampling_rate=RATE, return_tensors="pt")
        return {"input_features": found["input_features"].double(), "labels": _targets(rows)}

    rows = _sounds("text", 500, 700, 400, 650)
    return _followed(folder, tiny.made("WhisperForConditionalGeneration", config), rows, collate, extractor)


def _images(column: str) -> list[dict[str, Any]]:
    draws = np.random.default_rng(0)
    drawn = [Image.fromarray(draws.integers(0, 256, (9 + place, 12, 3), dtype=np.uint8)) for place in range(4)]
    return [{"image": image, column: _beside(column, place)} for place, image in enumerate(drawn)]


def _sounds(column: str, *lengths: int) -> list[dict[str, Any]]:
    draws = np.random.default_rng(0)
    drawn = [draws.uniform(-1, 1, length).astype(np.float32) for length in lengths]
    return [{"audio": samples, column: _beside(column, place)} for place, samples in enumerate(drawn)]


def _beside(column: str, place: int) -> Any:
    return place % 2 if column == "label" else tiny.TEXTS[place]


def _targets(rows: list[Any]) -> Tensor:
    """The tokens of the texts, -100 behind them."""
    padded = tiny.tokenizer()([row["text"] for row in rows], padding=True, return_tensors="pt")
    return padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)


RECIPES: dict[str, Recipe] = {
    "Trainer: image classification": images,
    "Trainer: captions, encoder of images with a decoder": captions,
    "Trainer: audio classification": sounds,
    "Trainer: speech recognition by CTC": spoken,
    "Seq2SeqTrainer: Whisper": speech,
}
