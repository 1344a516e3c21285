"""Rows of data sets as their users have them: sounds, pictures with texts, conversations; and a run that shows them."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import wavfile

from stagetrace import Scores, Trace
from stagetrace.report import write
from stagetrace.report.item import Reader
from stagetrace.report.previews import Previews, write_previews
from tests.report import pages

TURN = pages.HOSTILE[0]


def tone(seconds: float, rate: int = 16_000) -> NDArray[np.float32]:
    """A tone that dies away, from -1 to 1."""
    at = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 440 * at) * np.exp(-at)).astype(np.float32)


def file(samples: NDArray[Any], rate: int = 16_000) -> bytes:
    """A WAV file as SciPy writes it."""
    written = BytesIO()
    wavfile.write(written, rate, samples)
    return written.getvalue()


def photograph(seed: int, form: str = "") -> Any:
    """An image of pillow, or a file of that form."""
    pixels = (255 * pages.blob(seed, 120)).to(torch.uint8).movedim(0, -1).numpy()
    image, written = Image.fromarray(pixels), BytesIO()
    if not form:
        return image
    image.save(written, form)
    return written.getvalue()


class Decoder:
    """As torchcodec's: samples `[channels, n]` of two channels, when asked."""

    def get_all_samples(self) -> Any:
        return SimpleNamespace(data=torch.from_numpy(tone(0.5)).repeat(2, 1), sample_rate=16_000)


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


SOUNDS: list[Mapping[str, Any]] = [
    {"audio": {"array": tone(1.5), "sampling_rate": 16_000}, "sentence": TURN, "speaker_id": "s17"},
    {"audio": {"bytes": file(tone(34)), "path": "talk.wav"}, "label": "speech"},
    {"audio": Decoder(), "text": "by a decoder"},
    {"clean": {"array": tone(0.3), "sampling_rate": 8_000}, "noisy": {"array": tone(0.3), "sampling_rate": 8_000}},
    {"audio": {"bytes": file(tone(1))[:30], "path": "broken.wav"}, "text": "of a broken file"},
]
PICTURES: list[Mapping[str, Any]] = [
    {"image": photograph(1), "caption": TURN, "image_id": "x7"},
    {"image": {"bytes": photograph(2, "JPEG"), "path": "blot.jpg"}, "text": "word " * 1_000},
    {"images": [photograph(seed) for seed in range(7)], "prompt": "Which is odd?", "completion": "The third."},
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CHATS: list[Mapping[str, Any]] = [
    {"messages": [said("system", "Be brief."), said("user", TURN), said("assistant", "Paris.")], "tools": "[]"},
    {
        "system": "Be kind.",
        "conversations": [{"from": "human", "value": "hi " * 1_000}, {"from": "gpt", "value": "hi"}],
    },
    {"prompt": [said("user", "A poem?")], "completion": [said("assistant", "Roses are red,\nviolets")]},
    {
        "prompt": "Is it safe?",
        "chosen": [said("user", "Is it safe?"), said("assistant", "No.")],
        "rejected": [said("user", "Is it safe?"), said("assistant", "Sure!")],
    },
    {"prompt": "Is it safe?", "chosen": "No.", "rejected": "Sure!"},
    {
        "messages": [
            said("user", [{"type": "image"}, {"type": "text", "text": "What is this?"}]),
            said("assistant", None, reasoning_content="who knows", tool_calls=[CALL]),
            said("tool", '{"degrees": 17}', name="weather"),
        ],
        "images": [photograph(3)],
    },
    {"messages": [said("user", f"turn {number} \u202e") for number in range(30)]},
]


def run(folder: Path) -> Path:
    """The report of a run over all of them, asked about a sound and a conversation."""
    rows = [*SOUNDS, *PICTURES, *CHATS]
    reader, n = Reader.of(rows), len(rows)
    values = torch.linspace(2, 0.1, n).double() * (-1) ** torch.arange(n)
    Trace({"fit": Scores("fit", values)}, {}, pages.described("mean")).save(folder)
    items = [reader.preview(stage, index) for stage in ("fit", None) for index in range(n if stage else 6)]
    write_previews(folder, Previews(tuple(items), {"query_examples": 6, "query_loss": 0.25}))
    return write(folder)
