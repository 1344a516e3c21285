"""Files of sound: wav by SciPy, everything else by soundfile where it is installed."""

import io
import warnings
from typing import Any

import numpy as np

from stagetrace.errors import DataError, first_line

Samples = np.ndarray[Any, np.dtype[np.float32]]


def read_wav(content: bytes, where: str) -> tuple[Samples, int]:
    """The samples of a file, `[n]` between -1 and 1, and how many there are in a second. Channels are averaged.

    Raises:
        DataError: the file is broken, or of a kind that cannot be read here.
    """
    try:
        import soundfile  # pyright: ignore
    except ImportError:
        return _by_scipy(content, where)
    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except Exception as cause:  # whatever a broken file makes it raise
        raise _broken(where, cause) from cause
    return np.asarray(samples.mean(axis=1), np.float32), int(rate)


def _by_scipy(content: bytes, where: str) -> tuple[Samples, int]:
    from scipy.io import wavfile

    if content[:4] not in (b"RIFF", b"RIFX", b"RF64"):
        raise DataError(
            f"{where} is no wav file, and others are read by the package soundfile, which is not installed; type: pip "
            "install soundfile, or give {'array': samples, 'sampling_rate': rate}"
        )
    order = "big" if content[:4] == b"RIFX" else "little"
    told = int.from_bytes(content[4:8], order) + 8
    if content[:4] != b"RF64" and len(content) < told < 2**32:  # a stream that did not know its end says the most
        raise DataError(
            f"{where} is a wav file that was cut off: it says {told:,} bytes and has {len(content):,}; leave the "
            "example out, or get the whole file"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that hold no sound
            rate, found = wavfile.read(io.BytesIO(content))
    except Exception as cause:  # whatever a broken file makes it raise
        raise _broken(where, cause) from cause
    samples = np.asarray(found)
    if samples.dtype.kind == "u":  # 8 bits, around 128
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples / float(2 ** (8 * samples.dtype.itemsize - 1))
    return np.asarray(samples.mean(axis=1) if samples.ndim > 1 else samples, np.float32), int(rate)


def _broken(where: str, cause: Exception) -> DataError:
    return DataError(f"{where} is no file of sound that can be read ({first_line(cause)}); leave the example out")
