"""Vision-language models with a few hundred parameters, their processors, and rows of texts with images.

The classes are LLaVA's, Qwen2-VL's, Idefics3's (SmolVLM's are the same) and Gemma 3's: pixels by image, by patch, by
example, and tokens of an image that see each other.
"""

from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.hf import tiny

SEEN, BEGINS, ENDS, VIDEO = range(len(tiny.SPECIAL), len(tiny.SPECIAL) + 4)
WORDS = (*tiny.SPECIAL, "<image>", "[BEGIN]", "[END]", "[VIDEO]", *tiny.WORDS, "user", "assistant", ":")
SIZE = 40
PLACE = {
    "llava": "<image>", "qwen2_vl": "[BEGIN]<image>[END]", "idefics3": "<image>", "gemma3": "[BEGIN]",
}  # fmt: skip
"""Where an image stands in a text."""

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' : ' }}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}{% if m['role'] == 'assistant' %}[SEP] {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)
MARKED = TEMPLATE.replace(
    "{{ c['text'] + ' ' }}",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ c['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ c['text'] + ' ' }}{% endif %}",
)


def tokenizer() -> Any:
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(name, "isolated") for name in ("<image>", "[BEGIN]", "[END]", "[VIDEO]", "[SEP]")]
        + [pre_tokenizers.WhitespaceSplit()]
    )
    more = {"image_token": "<image>", "boi_token": "[BEGIN]", "eoi_token": "[END]", "video_token": "[VIDEO]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", bos_token="[CLS]", eos_token="[SEP]",
        extra_special_tokens=more,
    )  # fmt: skip


def made(kind: str, seed: int = 0) -> Any:
    """Of one of the kinds of `PLACE`, or LLaVA over "phi"."""
    settings: Any = {
        "vocab_size": SIZE, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 3,
        "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "head_dim": 4,
        "eos_token_id": 3,
    }  # fmt: skip
    image: dict[str, Any] = {"image_token_id": SEEN, "image_token_index": SEEN}
    vision: Any = {
        "hidden_size": 4, "intermediate_size": 3, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 4,
        "patch_size": 2,
    }  # fmt: skip
    if kind == "qwen2_vl":
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]}
        vision = {
            "depth": 1, "embed_dim": 8, "hidden_size": 4, "num_heads": 2, "mlp_ratio": 1, "patch_size": 2,
            "spatial_merge_size": 2, "temporal_patch_size": 1,
        }  # fmt: skip
        image |= {"vision_start_token_id": BEGINS, "vision_end_token_id": ENDS, "video_token_id": VIDEO}
        name, config = "Qwen2VLForConditionalGeneration", transformers.Qwen2VLConfig
    elif kind == "idefics3":
        settings = transformers.LlamaConfig(**settings)
        image |= {"scale_factor": 1, "pad_token_id": 0}
        name, config = "Idefics3ForConditionalGeneration", transformers.Idefics3Config
    elif kind == "gemma3":
        image |= {"mm_tokens_per_image": 4, "boi_token_index": BEGINS, "eoi_token_index": ENDS}
        settings["sliding_window"] = 32
        name, config = "Gemma3ForConditionalGeneration", transformers.Gemma3Config
    else:
        if kind == "phi":
            settings |= {"vocab_size": len(WORDS), "hidden_size": 2, "head_dim": 2, "partial_rotary_factor": 1.0}
            settings = transformers.PhiConfig(**settings)
            vision |= {"hidden_size": 2, "intermediate_size": 2}
        else:
            settings = transformers.LlamaConfig(**settings)
        vision = transformers.CLIPVisionConfig(**vision)
        image["vision_feature_layer"] = -1
        name, config = "LlavaForConditionalGeneration", transformers.LlavaConfig
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config(text_config=settings, vision_config=vision, **image))
    tiny.stir(model, 0.3)
    return model.eval()


class WithoutVideos(transformers.Qwen2VLProcessor):
    """That of videos needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def processor(kind: str = "llava", template: str | None = None) -> Any:
    words, four = tokenizer(), {"height": 4, "width": 4}
    if kind == "qwen2_vl":
        images: Any = transformers.Qwen2VLImageProcessorPil(
            patch_size=2, temporal_patch_size=1, merge_size=2, min_pixels=16, max_pixels=48
        )
        return WithoutVideos(images, words, chat_template=template)
    if kind == "idefics3":
        longest = {"longest_edge": 4}
        images = transformers.Idefics3ImageProcessorPil(size=longest, max_image_size=longest, do_image_splitting=False)
        return transformers.Idefics3Processor(images, words, image_seq_len=4, chat_template=template)
    if kind == "gemma3":
        images = transformers.Gemma3ImageProcessorPil(size=four)
        return transformers.Gemma3Processor(images, words, image_seq_length=4, chat_template=template)
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 4}, crop_size=four)
    return transformers.LlavaProcessor(
        images, words, patch_size=2, num_additional_image_tokens=1, vision_feature_select_strategy="default",
        chat_template=template,
    )  # fmt: skip


def images(count: int = 3) -> list[Any]:
    draws = np.random.default_rng(0)
    return [Image.fromarray(draws.integers(0, 256, (9 + 6 * place, 12, 3), dtype=np.uint8)) for place in range(count)]


def rows(kind: str = "llava") -> list[dict[str, Any]]:
    """One image, one, two, none; texts of unequal length."""
    one, two, three = images()
    place = PLACE[kind]
    return [
        {"image": one, "prompt": f"{place} the cat", "completion": " sat"},
        {"image": two, "prompt": f"{place} a big red", "completion": " dog ran on"},
        {"images": [two, three], "prompt": f"a {place} and {place} dog", "completion": " mat"},
        {"prompt": "the dog", "completion": " ran"},
    ]


def said(image: Any, *turns: str) -> dict[str, Any]:
    """A conversation about an image, the user's turn first."""
    messages: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[place % 2], "content": [{"type": "text", "text": turn}]}
        for place, turn in enumerate(turns)
    ]
    messages[0]["content"].insert(0, {"type": "image"})
    return {"images": [image], "messages": messages}
