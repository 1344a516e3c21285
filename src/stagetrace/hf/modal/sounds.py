"""A sound as data sets hold it -> the features of a feature extractor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from stagetrace.errors import DataError, first_line, refuse
from stagetrace.hf.modal.cells import SOUNDS, array_of, bytes_of, column_of, is_sound
from stagetrace.hf.modal.media import Row, cell, replaced
from stagetrace.hf.modal.wav import read_wav
from stagetrace.hf.rows import some_values

RATE = "sampling_rate"


@final
@dataclass(frozen=True, eq=False)
class Sounds:
    """Reads a column of sounds by a feature extractor of transformers, one sound at a time.

    reads: what the model reads. longest: samples after which a sound is cut. masks: the model is told what is padding;
    where it is not, shorter sounds are filled with silence to that length. frames: of so many samples, where the model
    says it.

    Raises:
        DataError: a sound cannot be read, or has another sampling rate than the model's; with the example's index.
    """

    column: str
    processor: Any
    reads: str
    longest: int | None
    masks: bool
    frames: Callable[[int], int] | None = None

    def __call__(self, row: Row, index: int, where: str) -> dict[str, Any]:
        value = cell(row, self.column, index, where)
        where = f"{where}: '{self.column}' of example {index}"
        samples, rate = read_sound(value, where)
        self._check_rate(row.get(RATE) if rate is None else rate, where)
        try:
            found = self.processor(
                samples, sampling_rate=self.processor.sampling_rate, return_tensors="pt", **self._cut
            )
        except Exception as cause:  # whatever an extractor raises
            raise DataError(
                f"{where} ({len(samples):,} samples) is not read by {type(self.processor).__name__} "
                f"({first_line(cause)}); leave it out, or make it longer"
            ) from cause
        read = found[self.reads].shape[-1]
        if self.frames is not None and self.frames(read) < 1:
            raise DataError(f"{where} has {len(samples):,} samples, too few for one frame of the model; leave it out")
        return replaced(row, self.column, found)

    def of(self, row: Row, where: str) -> "Sounds":
        column = self.column if self.column in row else column_of(row, SOUNDS, is_sound, "sound", self.reads, where)
        return replace(self, column=column)

    @property
    def _cut(self) -> dict[str, Any]:
        """What the extractor is told of the most samples."""
        if self.longest is None:
            return {}
        return {"max_length": self.longest, "truncation": True, "padding": not self.masks and "max_length"}

    def _check_rate(self, rate: Any, where: str) -> None:
        own = int(self.processor.sampling_rate)
        if rate is None:
            raise DataError(
                f"{where} has samples without their rate, and the model reads {own:,} a second; give "
                f"{{'array': samples, '{RATE}': rate}}"
            )
        if int(rate) != own:
            raise DataError(
                f"{where} has {int(rate):,} samples a second, and {type(self.processor).__name__} reads {own:,}; "
                f"resample: data.cast_column('{self.column}', datasets.Audio({RATE}={own})), or "
                f"scipy.signal.resample_poly(samples, {own}, {int(rate)})"
            )


def read_sound(value: Any, where: str) -> tuple[np.ndarray[Any, Any], int | None]:
    """Samples `[n]` between -1 and 1, and how many there are in a second (None where only the row can say).

    Raises:
        DataError: no sound, none of one channel, or a broken file.
    """
    if hasattr(value, "get_all_samples"):  # a decoder of torchcodec, as `datasets` gives it
        decoded = value.get_all_samples()
        return _checked(np.asarray(decoded.data, np.float32).mean(axis=0), where), int(decoded.sample_rate)
    if isinstance(value, Mapping) and "array" in value:
        return _checked(value["array"], where), value.get(RATE)
    content = bytes_of(value, where)
    if content is not None:
        samples, rate = read_wav(content, where)
        return _checked(samples, where), rate
    return _checked(value, where), None


def check_longest(longest: int | None, extractor: Any, where: str) -> None:
    """Refuse a length for an extractor that makes all sounds as long as its model reads.

    Raises:
        DescriptionError: see above.
    """
    if longest is not None and fixed_length(extractor) is not None:
        refuse(
            f"{where}: {type(extractor).__name__} cuts and fills all sounds to the length that its model reads; leave "
            "max_length= out"
        )


def cut_notices(rows: Any, sounds: Sounds, where: str) -> list[str]:
    """That sounds are longer than the model reads, with the longest of those that are at hand."""
    most = sounds.longest or fixed_length(sounds.processor)
    cells = [
        value["array"] for value in some_values(rows, sounds.column) if isinstance(value, Mapping) and "array" in value
    ]
    sizes = [len(samples) for samples in cells if hasattr(samples, "__len__")]
    if most is None or max(sizes, default=0) <= most:
        return []
    return [f"{where}: sounds are cut after {most:,} samples; example {sizes.index(max(sizes))} has {max(sizes):,}"]


def fixed_length(extractor: Any) -> int | None:
    """The samples of a sound that are read where features are of one length whatever the sound's: Whisper's, and those
    of spectrogram transformers (frames of 400 samples, 160 apart). None where features are as long as the sound.
    """
    frames = getattr(extractor, "max_length", None)
    if isinstance(frames, int):
        return 160 * (frames - 1) + 400
    return getattr(extractor, "n_samples", None)


def _checked(samples: Any, where: str) -> np.ndarray[Any, Any]:
    array = array_of(samples)
    if array.dtype.kind not in "fiu" or array.ndim != 1:
        what = f"an array of shape {list(array.shape)}" if array.dtype.kind in "fiu" else type(samples).__name__
        raise DataError(
            f"{where} must be the samples of one channel, got {what}; average the channels as in training, or give "
            "{'array': samples, 'sampling_rate': rate} or the bytes or path of a wav file"
        )
    if array.dtype.kind != "f":
        raise DataError(
            f"{where} has whole numbers, where models read samples between -1 and 1; divide them as in training, those "
            "of 16 bits by 32768"
        )
    if not array.size or not np.isfinite(array).all():
        raise DataError(f"{where} has {'samples that are not finite' if array.size else 'no samples'}; leave it out")
    return array.astype(np.float32)
