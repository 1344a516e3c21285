"""A value of a row as a sound that can be heard, and how much of all sounds of a report is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import Tensor

from stagetrace.hf.modal.wav import read_wav
from stagetrace.report import wav
from stagetrace.report.encoded import SOUNDS, content_of, is_file_of_row, kind_of
from stagetrace.report.preview import Preview, Sound

__all__ = ["LARGEST", "RATES", "in_seconds", "is_sound", "is_waveform", "sound_of", "within"]

LARGEST = 16 * 2**20
"""Bytes of all sounds of a report: 8 minutes at 16,000 Hz, 17 at 8,000."""

RATES = ("sampling_rate", "sample_rate")
"""Columns, and attributes of processors, with the rate of a waveform."""

_WAVEFORMS = ("input_values", *SOUNDS)
_SHORTEST = 16


def is_sound(value: Any) -> bool:
    """Whether a value is a sound with its rate: torchcodec's decoder, an array with `sampling_rate`, or a file."""
    if callable(getattr(value, "get_all_samples", None)):
        return True
    if isinstance(value, Mapping) and value.get("array") is not None:
        return any(value.get(rate) is not None for rate in RATES)
    return is_file_of_row(value) and kind_of(content_of(value)) == "sound"


def is_waveform(name: str, value: Any) -> bool:
    """Whether a column is one of waveforms, by its name, and holds numbers `[n]` that are no integers."""
    if name not in _WAVEFORMS:
        return False
    if isinstance(value, Tensor):
        return value.ndim == 1 and value.is_floating_point() and len(value) >= _SHORTEST
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and np.issubdtype(value.dtype, np.floating) and len(value) >= _SHORTEST
    found = cast("list[Any]", value) if isinstance(value, list) else []
    return len(found) >= _SHORTEST and all(isinstance(each, float) for each in found[:_SHORTEST])


def sound_of(value: Any, rate: float | None = None) -> Sound:
    """The sound of a value; rate: in Hz, of one that is a waveform `[n]` alone.

    Channels are averaged. Of two axes the longer one is time.

    Raises:
        DataError, ValueError, OSError: it cannot be read, or has no samples; the message says why.
    """
    samples, rate = _samples(value, rate)
    if isinstance(samples, Tensor):  # NumPy has no bfloat16
        samples = (samples.float() if samples.is_floating_point() else samples).detach().cpu()
    array = np.asarray(samples)
    if array.ndim not in (1, 2):
        raise ValueError(f"a sound of shape {list(array.shape)}")
    array = array if array.ndim == 1 or array.shape[0] >= array.shape[1] else array.T
    if not 1 <= rate <= wav.FASTEST:
        raise ValueError(f"a sampling rate of {rate} Hz")
    start = wav.from_minus_one_to_one(array[: int(wav.LONGEST * rate) + 1])
    return Sound(wav.encode(start if start.ndim == 1 else start.mean(axis=1), rate), len(array) / rate)


def _samples(value: Any, rate: float | None) -> tuple[Any, float]:
    if callable(getattr(value, "get_all_samples", None)):
        found = value.get_all_samples()
        return found.data, float(found.sample_rate)
    if isinstance(value, Mapping) and "array" in value:
        return value["array"], float(next(value[name] for name in RATES if value.get(name) is not None))
    if is_file_of_row(value):
        return read_wav(content_of(value), "it")
    if rate is None:
        raise ValueError("no sampling rate is known")
    return value, float(rate)


def within(previews: Sequence[Preview], largest: int | None = None) -> list[Preview]:
    """The previews with sounds of so many bytes together (`LARGEST`): if need be at 8,000 Hz, then cut at one length.

    The length is the largest with which all fit; shorter sounds stay whole.
    """
    largest = LARGEST if largest is None else largest
    sounds = [sound for item in previews for sound in item.sounds]
    if sum(len(sound.wav) for sound in sounds) <= largest:
        return list(previews)
    slow = {id(sound): wav.shortened(sound.wav, wav.LONGEST, rate=wav.LOWEST) for sound in sounds}
    sizes = sorted(len(slow[id(sound)]) for sound in sounds)
    left, longest = largest, 0.0
    for place, size in enumerate(sizes):  # the shortest first: what they leave is shared by the longer ones
        longest = left / (len(sizes) - place)
        if size > longest:
            break
        left, longest = left - size, float(size)
    seconds = max(longest - wav.HEADER, 0) / (2 * wav.LOWEST)
    return [
        replace(
            item,
            sounds=tuple(replace(each, wav=wav.shortened(slow[id(each)], seconds)) for each in item.sounds),
        )
        for item in previews
    ]


def in_seconds(seconds: float) -> str:
    """A duration in words.

    Example:
        >>> in_seconds(0.25), in_seconds(3.21), in_seconds(1234.5)
        ('0.25 s', '3.2 s', '1,234 s')
    """
    if seconds < 0.01:
        return "less than 0.01 s"
    digits = 2 if seconds < 1 else 1 if seconds < 100 else 0
    return f"{seconds:,.{digits}f} s"
