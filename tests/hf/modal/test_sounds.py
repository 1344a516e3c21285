"""Columns of sounds: whatever holds them, the model gets what its extractor makes; nothing is guessed."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from scipy.io import wavfile

from stagetrace import hf
from stagetrace.errors import DataError, DescriptionError
from tests.hf.modal import tiny

Row = dict[str, Any]
RATE = tiny.RATE


class Decoder:
    """What `datasets` gives where torchcodec is installed."""

    def __init__(self, samples: Any, rate: int = RATE) -> None:
        self.data, self.sample_rate = torch.tensor(np.stack([samples, samples])), rate

    def get_all_samples(self) -> "Decoder":
        return self


def wav(samples: Any, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, rate, samples)
    return file.getvalue()


def stage(rows: Any, model: Any = None, **settings: Any) -> Any:
    return hf.stage("s", model or tiny.wav2vec2(), rows, **{"processor": tiny.waves(), **settings})


def labelled(cells: list[Any], name: str = "audio", **more: Any) -> list[Row]:
    return [{name: cell, "label": index % 2, **more} for index, cell in enumerate(cells)]


def in_bits(samples: Any, dtype: Any) -> Any:
    """Samples as whole numbers, without loss of those that were rounded to 7 bits."""
    if dtype is np.uint8:
        return (samples * 128 + 128).astype(dtype)
    return (samples * float(2 ** (8 * np.dtype(dtype).itemsize - 1))).astype(dtype)


def as_dataset(cells: list[Any]) -> Any:
    files = [{"bytes": wav(samples), "path": None} for samples in cells]
    return datasets.Dataset.from_list(labelled(files)).cast_column("audio", datasets.Audio(decode=False))


def as_paths(cells: list[Any], folder: Path) -> list[Row]:
    for index, samples in enumerate(cells):
        (folder / f"{index}.wav").write_bytes(wav(samples))
    return labelled([str(folder / f"{index}.wav") for index in range(len(cells))], "speech")


FORMS: dict[str, Callable[[list[Any], Path], Any]] = {
    "arrays": lambda cells, _: labelled([{"array": one, "sampling_rate": RATE} for one in cells], "noise"),
    "lists": lambda cells, _: labelled([{"array": one.tolist(), "sampling_rate": RATE} for one in cells]),
    "arrays, the rate beside them": lambda cells, _: labelled(cells, "clip", sampling_rate=RATE),
    "decoders": lambda cells, _: labelled([Decoder(one) for one in cells], "noise"),
    "wav, 32 bits of floats": lambda cells, _: labelled([wav(one) for one in cells]),
    "wav, 16 bits": lambda cells, _: labelled([wav(in_bits(one, np.int16)) for one in cells]),
    "wav, 32 bits": lambda cells, _: labelled([wav(in_bits(one, np.int32)) for one in cells]),
    "wav, 8 bits": lambda cells, _: labelled([wav(in_bits(one, np.uint8)) for one in cells]),
    "wav, two channels": lambda cells, _: labelled([wav(np.stack([one, one], axis=1)) for one in cells]),
    "paths": as_paths,
    "datasets.Audio, not decoded": lambda cells, _: as_dataset(cells),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_sound_is_what_the_extractor_makes_of_it(form: str, tmp_path: Path):
    cells = [np.round(128 * one) / 128 for one in tiny.samples(30, 41)]
    cells = [np.clip(one, -1, 127 / 128).astype(np.float32) for one in cells]
    raw = tiny.waves(do_normalize=False)  # which hides no scale
    described = stage(FORMS[form](cells, tmp_path), processor=raw)
    for index, samples in enumerate(cells):
        expected = raw(samples, sampling_rate=RATE, return_tensors="pt")["input_values"][0]
        torch.testing.assert_close(described.data[index]["input_values"], expected, rtol=1e-6, atol=1e-6)
        assert described.data[index]["attention_mask"].tolist() == [1] * len(samples)


def test_sounds_that_datasets_cannot_decode_are_said_to_be_so():
    decoded = as_dataset(tiny.samples(30)).cast_column("audio", datasets.Audio())
    with pytest.raises(
        DataError, match=r"torchcodec.*type: data.cast_column\('audio', datasets.Audio\(decode=False\)\)"
    ):
        stage(decoded)


def losses(described: Any, plan: list[list[int]]) -> torch.Tensor:
    batches = list(described.examples.read(plan))
    with torch.no_grad():
        found = [
            described.loss.losses(described.loss.outputs(described.evaluated, b.content), b.content) for b in batches
        ]
    order = [index for batch in batches for index in batch.indices]
    return torch.cat(found)[torch.tensor(order).argsort()]


FIXED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "Whisper": lambda: (tiny.whisper("WhisperForAudioClassification"), tiny.mels()),
    "AST": tiny.spectrograms,
}


@pytest.mark.parametrize("kind", ["layer", "group", *FIXED])
def test_a_loss_is_the_model_s_own_of_the_sound_alone(kind: str):
    """Whatever it is batched with: masked padding, one length for all, features of one length."""
    rows, masks = tiny.sounds(700, 520, 640), kind == "layer"
    model, extractor = FIXED[kind]() if kind in FIXED else (tiny.wav2vec2(kind), tiny.waves(masks))
    described = stage(rows, model, processor=extractor, max_length=640 if kind == "group" else None)
    filled = [np.pad(row["audio"]["array"], (0, 180))[:640] for row in rows]
    alone = list[torch.Tensor]()
    for row, samples in zip(rows, filled, strict=True):
        read = samples if kind == "group" else row["audio"]["array"]
        features = extractor(read, sampling_rate=RATE, return_tensors="pt")
        alone.append(model(**features, labels=torch.tensor([row["label"]])).loss.detach())
    for plan in ([[0, 1, 2]], [[2, 0], [1]], [[0], [1], [2]]):
        torch.testing.assert_close(losses(described, plan), torch.stack(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "mask", "says"),
    [
        ("layer", False, r"\(30 and 41 in examples 1 and 0.*is not told what is padding.*type max_length=41 "),
        ("group", True, r"answers otherwise to one that is padded.*return_attention_mask=False.*max_length=41"),
    ],
)  # fmt: skip
def test_padding_that_would_change_a_loss_is_refused(norm: str, mask: bool, says: str):
    with pytest.raises(DescriptionError, match=says):
        stage(tiny.sounds(41, 30), tiny.wav2vec2(norm), processor=tiny.waves(mask))
    assert stage(tiny.sounds(41, 41), tiny.wav2vec2(norm), processor=tiny.waves(mask)).data[0]


SOUND = tiny.samples(30)[0]
REFUSED: list[tuple[Any, str]] = [
    ({"array": SOUND, "sampling_rate": 8000}, "has 8,000 samples a second, and Wav2Vec2FeatureExtractor reads 16,000"),
    (Decoder(SOUND, 44_100), "cast_column('audio', datasets.Audio(sampling_rate=16000))"),
    (wav(SOUND, 22_050), "resample_poly(samples, 16000, 22050)"),
    (SOUND, "example 1 has samples without their rate, and the model reads 16,000 a second"),
    ({"array": SOUND, "sampling_rate": None}, "has samples without their rate"),
    ({"array": np.stack([SOUND, SOUND]), "sampling_rate": RATE}, "of one channel, got an array of shape [2, 30]"),
    ({"array": [[0.1], [0.2, 0.3]], "sampling_rate": RATE}, "samples of one channel, got list"),
    ({"array": in_bits(SOUND, np.int16), "sampling_rate": RATE}, "whole numbers, where models read samples between"),
    ({"array": np.zeros(0, np.float32), "sampling_rate": RATE}, "example 1 has no samples"),
    ({"array": np.array([0.1, np.nan]), "sampling_rate": RATE}, "example 1 has samples that are not finite"),
    (wav(SOUND)[:30], "'audio' of example 1 is a wav file that was cut off"),
    (b"fLaC0000", "example 1 is no wav file, and others are read by the package soundfile"),
    ({"bytes": None, "path": "nowhere.wav"}, "is the path 'nowhere.wav', which cannot be read"),
    ("nowhere.wav", "is the path 'nowhere.wav', which cannot be read"),
    (None, "'audio' of example 1 is None"),
    (4.0, "must be the samples of one channel"),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "says"), REFUSED, ids=[says[:40] for _, says in REFUSED])
def test_a_sound_that_cannot_be_read_is_named(cell: Any, says: str):
    described = stage([*tiny.sounds(30), {"audio": cell, "label": 1}])
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        described.data[1]
    assert str(caught.value).startswith("stage 's': ")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"processor": None}, "the sounds need the model's feature extractor, and a model in memory has none"),
        ({"processor": tiny.pixels()}, "processor must be one of transformers with a feature extractor"),
        (
            {"model": tiny.spectrograms()[0], "processor": tiny.spectrograms()[1], "max_length": 9},
            "leave max_length= out",
        ),
    ],
)
def test_a_stage_that_does_not_know_how_to_read_sounds_is_refused(settings: Any, says: str):
    with pytest.raises(DescriptionError, match=says):
        stage(tiny.sounds(30), **settings)


def test_sounds_that_are_cut_are_said():
    model, extractor = tiny.spectrograms()
    (notice,) = stage(tiny.sounds(700, 1600), model, processor=extractor).data.notices
    assert notice.endswith("sounds are cut after 1,520 samples; example 1 has 1,600")


def test_a_wav_file_that_was_cut_off_is_named():
    whole = wav(in_bits(tiny.samples(41)[0], np.int16))
    with pytest.raises(DataError, match="'audio' of example 0 is a wav file that was cut off: it says 126 bytes"):
        stage(labelled([whole[:-20], whole]))
