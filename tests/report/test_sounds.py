"""Sounds: what goes in is heard, within its limits, and no file but such a one is ever played."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.io import wavfile

from stagetrace.errors import DescriptionError, ResultsError
from stagetrace.report import sound, wav
from stagetrace.report.item import Reader
from stagetrace.report.preview import Preview, Sound
from stagetrace.report.previews import NAME, Previews, read_previews, write_previews
from stagetrace.report.words import heard, in_words
from tests.report import rows


def played(content: bytes, folder: Path) -> tuple[int, Any]:
    """Rate and samples as SciPy reads them."""
    (folder / "sound.wav").write_bytes(content)
    return wavfile.read(folder / "sound.wav")


STEPS = np.random.default_rng(0).integers(-32_768, 32_768, 3_000).astype(np.int16)
STEREO = np.stack([STEPS, STEPS // 2], axis=1)
SAME = [
    ("16 bits", rows.file(STEPS), STEPS),
    ("32 bits", rows.file(STEPS.astype(np.int32) << 16), STEPS),
    ("floats", rows.file((STEPS / 32_768).astype(np.float32)), STEPS),
    ("bytes", rows.file(((STEPS >> 8) + 128).astype(np.uint8)), (STEPS >> 8) << 8),
    ("an array", {"array": STEPS / 32_768, "sampling_rate": 16_000}, STEPS),
    ("an array of 16 bits", {"array": STEPS, "sample_rate": 16_000}, STEPS),
    ("two channels", rows.file(STEREO), np.round(STEREO.mean(axis=1))),
    ("channels first", {"array": torch.from_numpy(STEREO.T.copy()), "sampling_rate": 16_000}, STEREO.mean(axis=1)),
]


@pytest.mark.parametrize(("given", "steps"), [case[1:] for case in SAME], ids=[case[0] for case in SAME])
def test_what_went_in_is_heard(given: Any, steps: np.ndarray[Any, Any], tmp_path: Path):
    found = sound.sound_of(given)
    rate, samples = played(found.wav, tmp_path)
    assert (rate, samples.dtype, found.seconds, found.is_cut) == (16_000, np.int16, 3_000 / 16_000, False)
    assert np.abs(samples - np.round(steps)).max() <= (0 if np.ndim(given) or "channel" not in str(given) else 1)


def test_other_rates_keep_the_tone_and_long_sounds_are_cut(tmp_path: Path):
    for rate, own in ((44_100, 16_000), (4_000, 8_000), (11_025, 11_025)):
        found = sound.sound_of({"array": rows.tone(12, rate), "sampling_rate": rate})
        read, samples = played(found.wav, tmp_path)
        assert (read, len(samples)) == (own, 10 * own)
        expected = 32_768 * rows.tone(10, own)
        assert np.abs(samples - expected)[own // 10 : -own // 10].max() < 330  # 1 % of full size; ends ring
        assert heard(found) == "the first 10.0 s of 12.0 s"


def test_what_is_too_loud_keeps_its_shape(tmp_path: Path):
    found = sound.sound_of({"array": 5 * rows.tone(0.1), "sampling_rate": 16_000})
    _, samples = played(found.wav, tmp_path)
    expected = rows.tone(0.1) / np.abs(rows.tone(0.1)).max()
    assert np.abs(samples / 32_768 - expected).max() < 1e-4


KINDS = [
    ("a decoder", {"audio": rows.Decoder()}, 0.5),
    ("undecoded", {"audio": {"bytes": rows.file(rows.tone(0.25)), "path": "x.wav"}}, 0.25),
    ("bytes", {"wav": rows.file(rows.tone(0.25))}, 0.25),
    ("a waveform with its rate", {"input_values": rows.tone(0.25).tolist(), "sampling_rate": 16_000}, 0.25),
    ("a waveform", {"input_values": torch.from_numpy(rows.tone(0.25))}, 0.5),
]


@pytest.mark.parametrize(("row", "seconds"), [case[1:] for case in KINDS], ids=[case[0] for case in KINDS])
def test_rows_as_users_have_them(row: dict[str, Any], seconds: float):
    data = Rows([{**row, "label": 1, "speaker_id": "s"}])
    found = Reader.of(data).preview("fit", 0)
    assert (found.kind, found.label, [each.seconds for each in found.sounds]) == ("audio", "1", [seconds])
    assert found.text == ""  # an id beside a sound says nothing


class Rows(list[Any]):
    """Rows with the processor that reads them."""

    processor = SimpleNamespace(feature_extractor=SimpleNamespace(sampling_rate=8_000))


def test_a_file_that_a_path_names(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(rows.file(rows.tone(0.25)))
    for held in (str(tmp_path / "a.wav"), {"bytes": None, "path": str(tmp_path / "a.wav")}):
        assert Reader.of([{"audio": held, "text": "said"}]).preview("fit", 0).sounds[0].seconds == 0.25
    assert Reader.of([{"speech": "~no path, but words"}]).preview("fit", 0).text == "~no path, but words"


BROKEN = [
    ({"bytes": b"RIFF\xff\xff\xff\x7fWAVEfmt ", "path": None}, "it is a wav file that was cut off"),
    ({"bytes": b"fLaC" + bytes(40), "path": None}, "it is no (wav file|file of sound)"),
    ({"bytes": None, "path": "/nowhere.wav"}, "No such file"),
    ({"bytes": b"%PDF-1.7", "path": None}, "neither a picture nor a sound"),
    ({"array": [], "sampling_rate": 16_000}, "without samples"),
    ({"array": [0.0, float("nan")], "sampling_rate": 16_000}, "not finite"),
    ({"array": [0.0], "sampling_rate": 0}, "a sampling rate of 0"),
    ({"array": np.zeros((2, 2, 2)), "sampling_rate": 16_000}, r"of shape \[2, 2, 2\]"),
    (rows.tone(0.1), "no sampling rate is known"),
]


@pytest.mark.parametrize(("held", "said"), BROKEN)
def test_what_cannot_be_decoded_is_a_table_that_says_so(held: Any, said: str):
    found = Reader.of([{"audio": held}]).preview("fit", 0)
    assert (found.kind, found.sounds) == ("table", ())
    ((name, told),) = found.fields
    assert name == "audio"
    assert told.startswith("not readable: ")
    assert re.search(said, told)


WHOLE = wav.encode(rows.tone(0.5, 8_000).astype(float), 8_000)


def with_bytes(place: int, new: bytes) -> bytes:
    return WHOLE[:place] + new + WHOLE[place + len(new) :]


HOSTILE = [
    b"", b"RIFF", WHOLE[:43], WHOLE[:44], WHOLE[:-1], WHOLE + b"\0", b"<svg onload=alert(1)>" + WHOLE,
    with_bytes(0, b"RIFX"), with_bytes(4, b"\xff\xff\xff\x7f"), with_bytes(20, b"\3\0"), with_bytes(22, b"\2\0"),
    with_bytes(24, (7_999).to_bytes(4, "little")), with_bytes(24, (48_000).to_bytes(4, "little")),
    with_bytes(34, b"\x20\0"), with_bytes(40, b"\xff\xff\xff\xff"), rows.file(STEPS, 44_100),
    wav._header(2 * 8_000 * 10 + 2, 8_000) + bytes(2 * 8_000 * 10 + 2),  # longer than 10 s
]  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE)
def test_other_bytes_are_refused(content: bytes):
    with pytest.raises(DescriptionError, match="must be a mono WAV file"):
        Sound(content, 100.0)


@pytest.mark.parametrize("seconds", [-1.0, 0.4, float("nan"), float("inf")])
def test_a_length_that_cannot_be_is_refused(seconds: float):
    with pytest.raises(DescriptionError, match="seconds must be at least"):
        Sound(WHOLE, seconds)


def test_a_file_of_a_stranger_is_refused(tmp_path: Path):
    item = Preview("fit", 0, "audio", sounds=(Sound(WHOLE, 0.5),))
    write_previews(tmp_path, Previews((item,)))
    found = read_previews(tmp_path)
    assert found is not None
    assert found.items == (item,)
    table = pq.read_table(tmp_path / NAME)
    for wrong in ({"wav": WHOLE[:60], "seconds": 0.5, "name": ""}, {"wav": WHOLE, "seconds": 0.5, "name": None}, None):
        place = table.schema.get_field_index("sounds")
        column = type(table["sounds"].combine_chunks()).from_pandas([[wrong]], type=table.schema.field("sounds").type)
        pq.write_table(table.set_column(place, table.schema.field("sounds"), column), tmp_path / NAME)
        with pytest.raises(ResultsError, match=r"previews.parquet cannot be read as previews \((Sound: wav|.* has no)"):
            read_previews(tmp_path)


def test_all_sounds_of_a_report_fit_into_their_limit():
    long = [sound.sound_of({"array": rows.tone(seconds), "sampling_rate": 16_000}) for seconds in (0.5, 3, 9, 20)]
    items = [Preview("fit", index, "audio", sounds=(long[index % 4],)) for index in range(12)]
    assert sound.within(items) == items
    whole = sum(len(each.wav) for each in long) * 3
    slow = sound.within(items, whole // 2 + 12 * wav.HEADER)  # at 8,000 Hz all of it fits
    assert {wav.frames_of(item.sounds[0].wav) for item in slow[:4]} == {(n * 8_000 // 2, 8_000) for n in (1, 6, 18, 20)}
    for limit in (whole // 3, 20_000):
        cut = [item.sounds[0] for item in sound.within(items, limit)]
        assert 0.95 * limit < sum(len(each.wav) for each in cut) <= limit
        assert [each.seconds for each in cut[:4]] == [0.5, 3, 9, 20]
        kept = [each.kept for each in cut[:4]]
        assert kept[2] == kept[3] >= kept[1] >= kept[0]
    assert in_words(items[1]) == "audio, 3.0 s"
