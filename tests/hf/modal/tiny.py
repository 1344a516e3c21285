"""Models of images and sounds with a few hundred parameters, their processors, and rows as users have them."""

from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from tests.hf import tiny

RATE = 16_000
STILL: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL: dict[str, Any] = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4}


def config(kind: str, **settings: Any) -> Any:
    return getattr(transformers, f"{kind}Config")(**settings)


def made(name: str, settings: Any, seed: int = 0) -> Any:
    """A model with weights large enough that every layer matters, in eval mode."""
    torch.manual_seed(seed)
    model = getattr(transformers, name)(settings)
    tiny.stir(model, 0.3)
    return model.eval()


def vit_config(**settings: Any) -> Any:
    return config("ViT", **{**SMALL, **STILL, "image_size": 4, "patch_size": 2, **settings})


def vit(**settings: Any) -> Any:
    return made("ViTForImageClassification", vit_config(num_labels=2, **settings))


def resnet() -> Any:
    """With batch normalisation, whose statistics are those of some batches."""
    settings = config("ResNet", embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=2)
    model = made("ResNetForImageClassification", settings).train()
    with torch.no_grad():
        model(torch.rand(8, 3, 4, 4))
    return model.eval()


def pixels() -> Any:
    """An image processor: to 4 x 4 pixels, around 0."""
    return transformers.ViTImageProcessorPil(size={"height": 4, "width": 4})


def arrays(count: int = 4) -> list[np.ndarray[Any, Any]]:
    draws = np.random.default_rng(0)
    return [draws.integers(0, 256, (9 + index, 12, 3), dtype=np.uint8) for index in range(count)]


def images(count: int = 4) -> list[dict[str, Any]]:
    return [{"image": Image.fromarray(array), "label": index % 2} for index, array in enumerate(arrays(count))]


def wav2vec2_config(norm: str = "layer") -> Any:
    return config(
        "Wav2Vec2", **SMALL, conv_dim=(3, 3), conv_kernel=(4, 3), conv_stride=(3, 2), num_feat_extract_layers=2,
        num_conv_pos_embeddings=3, num_conv_pos_embedding_groups=1, feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer", classifier_proj_size=3, num_labels=2, vocab_size=8, mask_time_prob=0.0,
    )  # fmt: skip


def wav2vec2(norm: str = "layer") -> Any:
    return made("Wav2Vec2ForSequenceClassification", wav2vec2_config(norm))


def waves(mask: bool = True, **settings: Any) -> Any:
    return transformers.Wav2Vec2FeatureExtractor(return_attention_mask=mask, **settings)


def samples(*lengths: int) -> list[np.ndarray[Any, Any]]:
    draws = np.random.default_rng(0)
    return [draws.uniform(-1, 1, length).astype(np.float32) for length in lengths]


def sounds(*lengths: int) -> list[dict[str, Any]]:
    cells = [{"array": array, "sampling_rate": RATE} for array in samples(*lengths)]
    return [{"audio": cell, "label": index % 2} for index, cell in enumerate(cells)]


def whisper(name: str = "WhisperForConditionalGeneration") -> Any:
    settings = config(
        "Whisper", vocab_size=tiny.SIZE, num_mel_bins=3, d_model=4, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=1, decoder_attention_heads=1, encoder_ffn_dim=4, decoder_ffn_dim=4,
        max_source_positions=50, max_target_positions=12, decoder_start_token_id=tiny.CLS, pad_token_id=tiny.PAD,
        bos_token_id=tiny.CLS, eos_token_id=tiny.SEP, suppress_tokens=None, begin_suppress_tokens=None, num_labels=2,
        classifier_proj_size=4,
    )  # fmt: skip
    return made(name, settings)


def mels() -> Any:
    return transformers.WhisperFeatureExtractor(feature_size=3, chunk_length=1)


def spectrograms() -> tuple[Any, Any]:
    """A spectrogram transformer and its feature extractor."""
    settings = config(
        "AST",
        **SMALL,
        **STILL,
        patch_size=4,
        max_length=8,
        num_mel_bins=4,
        frequency_stride=4,
        time_stride=4,
        num_labels=2,
    )
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=4, max_length=8)
    return made("ASTForAudioClassification", settings), extractor


def writer(kind: str) -> Any:
    """An encoder of images ("Vision") or sounds ("Speech") with a decoder that writes."""
    encoder = vit_config() if kind == "Vision" else wav2vec2_config()
    both: Any = getattr(transformers, f"{kind}EncoderDecoderConfig")
    decoder = tiny.config("bert", is_decoder=True, add_cross_attention=True)
    settings = both.from_encoder_decoder_configs(encoder, decoder)
    settings.decoder_start_token_id, settings.pad_token_id = tiny.CLS, tiny.PAD
    return made(f"{kind}EncoderDecoderModel", settings)
