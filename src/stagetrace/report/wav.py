"""Sounds as the one form of WAV file that a report holds: mono, 16 bits, at 8,000 to 16,000 Hz.

`drawn` is its outline for a picture. Files of other forms are read by `stagetrace.hf.modal.wav`.
"""

import struct
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

__all__ = [
    "HEADER",
    "HIGHEST",
    "LONGEST",
    "LOWEST",
    "drawn",
    "encode",
    "frames_of",
    "from_minus_one_to_one",
    "shortened",
]

LOWEST, HIGHEST = 8_000, 16_000
"""Hz that are written: sounds of fewer or more are resampled, those between stay as they are."""

LONGEST = 10
"""Seconds that are written, at most."""

FASTEST = 1_000_000
"""Hz that a sound may have, at most: more are a mistake."""

COLUMNS = 80
"""Bars of an outline."""

HEADER = 44
"""Bytes before the samples."""

_FULL = 32_768
"""A sample of full size, in steps of 16 bits."""

Samples = NDArray[np.float64]


def encode(samples: Samples, rate: float) -> bytes:
    """The first `LONGEST` seconds of mono samples `[n]`, from -1 to 1, as a WAV file; what is louder is made less loud.

    16-bit samples at a rate that is kept come back as they were.

    Raises:
        ValueError: no samples, samples that are not finite, or a rate that none can be.
    """
    if not 1 <= rate <= FASTEST:  # also not a number
        raise ValueError(f"a sampling rate of {rate} Hz")
    start = samples[: int(LONGEST * rate) or 1]
    if not len(start):
        raise ValueError("a sound without samples")
    if not np.isfinite(start).all():
        raise ValueError("a sound with samples that are not finite")
    start, own = _resampled(start, rate)
    loudest = float(np.abs(start).max())
    steps = np.round(start / max(1.0, loudest) * _FULL).clip(-_FULL, _FULL - 1).astype("<i2")
    return _file(steps.tobytes(), own)


def from_minus_one_to_one(samples: NDArray[Any]) -> Samples:
    """Samples of any type as floating-point numbers: integers by the largest of their type, bytes around 128.

    Integers of 64 bits stay as they are: none is recorded so, and what they were made from is not known.
    """
    if samples.dtype == np.uint8:
        return (samples.astype(np.float64) - 128) / 128
    if samples.dtype.name in ("int8", "int16", "int32"):
        return samples.astype(np.float64) / (int(np.iinfo(samples.dtype).max) + 1)
    if not np.issubdtype(samples.dtype, np.floating) and samples.dtype != np.int64:
        raise ValueError(f"a sound of {samples.dtype}")
    return samples.astype(np.float64)


def frames_of(content: bytes) -> tuple[int, int] | None:
    """Samples and rate of a file that `encode` wrote; None of all others, so that what a stranger wrote is not played.

    The header, the sizes in it and the length must be those of such a file.
    """
    rate = int.from_bytes(content[24:28], "little")
    size = len(content) - HEADER
    if not (LOWEST <= rate <= HIGHEST and 0 < size <= 2 * LONGEST * rate and size % 2 == 0):
        return None
    return (size // 2, rate) if content[:HEADER] == _header(size, rate) else None


def shortened(content: bytes, seconds: float, *, rate: int = HIGHEST) -> bytes:
    """A file of `encode` with at most so many seconds, at most at so many Hz."""
    found = frames_of(content)
    assert found is not None
    own = found[1]
    if own > rate:
        samples = _samples(content)
        content, own = encode(resample_poly(samples, rate, own), rate), rate
    kept = content[HEADER : HEADER + 2 * max(1, int(seconds * own))]
    return content if len(kept) == len(content) - HEADER else _file(kept, own)


def drawn(content: bytes) -> str:
    """The outline of a file of `encode` as the path of an SVG picture, `COLUMNS` wide and 32 high.

    Every bar reaches from the smallest to the largest sample of its stretch; the loudest fills the height.
    """
    samples = _samples(content)
    stretches = np.array_split(samples, min(COLUMNS, len(samples)))
    largest = max(float(np.abs(samples).max()), 1 / _FULL)
    step = COLUMNS / len(stretches)
    bars = list[str]()
    for place, stretch in enumerate(stretches):
        top, bottom = (16 - 15 * float(end) / largest for end in (stretch.max(), stretch.min()))
        bars.append(f"M{(place + 0.5) * step:.4g} {top - 0.5:.3g}V{bottom + 0.5:.3g}")
    return "".join(bars)


def _samples(content: bytes) -> Samples:
    return np.frombuffer(content, dtype="<i2", offset=HEADER).astype(np.float64) / _FULL


def _resampled(samples: Samples, rate: float) -> tuple[Samples, int]:
    """The samples at a rate that is written."""
    own = int(min(max(rate, LOWEST), HIGHEST))
    if own == rate:
        return samples, own
    ratio = Fraction(own / rate).limit_denominator(1_000)
    return resample_poly(samples, ratio.numerator, ratio.denominator), own


def _file(samples: bytes, rate: int) -> bytes:
    return _header(len(samples), rate) + samples


def _header(size: int, rate: int) -> bytes:
    """The shortest header that there is, of so many bytes of 16-bit mono samples."""
    pcm, channels, frame, bits = 1, 1, 2, 16
    form = struct.pack("<IHHIIHH", 16, pcm, channels, rate, rate * frame, frame, bits)
    return b"RIFF" + struct.pack("<I", size + HEADER - 8) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size)
