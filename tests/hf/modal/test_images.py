"""Columns of images: whatever holds them, the model gets what its processor makes; what cannot be read is refused."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from stagetrace import Chain, hf, trace
from stagetrace.errors import DataError, DescriptionError, StagetraceError
from stagetrace.objectives import Classification
from tests.hf import tiny as words
from tests.hf.modal import tiny

Row = dict[str, Any]


def saved(array: Any, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **settings)
    return file.getvalue()


def stage(rows: Any, model: Any = None, **settings: Any) -> Any:
    return hf.stage("s", model or tiny.vit(), rows, **{"processor": tiny.pixels(), **settings})


def labelled(images: list[Any], name: str = "image") -> list[Row]:
    return [{name: image, "label": index % 2} for index, image in enumerate(images)]


def as_dataset(arrays: list[Any]) -> Any:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["LABEL_0", "LABEL_1"])})
    return datasets.Dataset.from_list(labelled([Image.fromarray(array) for array in arrays], "img"), features=features)


def as_paths(arrays: list[Any], folder: Path) -> list[Row]:
    for index, array in enumerate(arrays):
        (folder / f"{index}.png").write_bytes(saved(array))
    return labelled([str(folder / f"{index}.png") for index in range(len(arrays))], "photo")


FORMS: dict[str, Callable[[list[Any], Path], Any]] = {
    "images of PIL": lambda arrays, _: labelled([Image.fromarray(array) for array in arrays]),
    "arrays": lambda arrays, _: labelled(arrays, "pixels"),
    "arrays, channels first": lambda arrays, _: labelled([array.transpose(2, 0, 1) for array in arrays], "picture"),
    "tensors, channels first": lambda arrays, _: labelled([torch.tensor(array.transpose(2, 0, 1)) for array in arrays]),
    "nested lists": lambda arrays, _: labelled([array.tolist() for array in arrays]),
    "bytes": lambda arrays, _: labelled([saved(array) for array in arrays]),
    "files in the data": lambda arrays, _: labelled([{"bytes": saved(a), "path": None} for a in arrays], "face"),
    "paths": as_paths,
    "datasets.Image": lambda arrays, _: as_dataset(arrays),
    "datasets.Image, not decoded": lambda arrays, _: as_dataset(arrays).cast_column(
        "img", datasets.Image(decode=False)
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_is_what_the_processor_makes_of_it(form: str, tmp_path: Path):
    arrays = tiny.arrays()
    described = stage(FORMS[form](arrays, tmp_path))
    for index, array in enumerate(arrays):
        expected = tiny.pixels()(Image.fromarray(array), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(described.data[index]["pixel_values"], expected, rtol=0, atol=0)
        assert described.data[index]["labels"] == index % 2


def folder_of(tmp_path: Path, processor: Any) -> str:
    words.saved(tmp_path, tiny.vit())
    processor.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("given", ["beside the model", "a folder", "a whole processor"])
def test_where_the_processor_comes_from(given: str, tmp_path: Path):
    rows, clip = tiny.images(), transformers.CLIPImageProcessorPil(crop_size=4, size={"shortest_edge": 4})
    expected = clip(rows[0]["image"], return_tensors="pt")["pixel_values"][0]
    if given == "beside the model":
        described = hf.stage("s", folder_of(tmp_path, clip), rows)
    elif given == "a folder":
        described = stage(rows, processor=folder_of(tmp_path, clip))
    else:
        described = stage(rows, processor=transformers.CLIPProcessor(clip, words.tokenizer()))
    assert bool((described.data[0]["pixel_values"] == expected).all())


@pytest.mark.parametrize("model", [tiny.vit, tiny.resnet])
def test_losses_are_the_model_s_own(model: Callable[[], Any]):
    described, processor, rows = stage(tiny.images(), model()), tiny.pixels(), tiny.images()
    found = torch.cat(
        [described.loss.losses(described.loss.outputs(described.evaluated, b.content), b.content)
         for b in described.examples.read([[2, 0], [1, 3]])]
    ).detach()  # fmt: skip
    expected = [
        described.model(**processor(rows[i]["image"], return_tensors="pt"), labels=torch.tensor([i % 2])).loss.detach()
        for i in (2, 0, 1, 3)
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_a_query_of_images_may_name_its_column_otherwise_or_have_features():
    described, (first, *_) = stage(tiny.images()), tiny.images()
    features = described.data[0]["pixel_values"]
    for row in ({"photo": first["image"], "label": 1}, {"pixel_values": features, "label": "LABEL_1"}):
        asked = hf.query([row], stage=described)
        assert bool((asked.data[0]["pixel_values"] == features).all())
        assert asked.data[0]["labels"] == 1
    given = hf.stage("s", tiny.vit(), [{"pixel_values": features, "label": 1}])
    with pytest.raises(StagetraceError, match="query: the model reads 'pixel_values', which no column holds"):
        hf.query([first], stage=given)


def test_a_photo_that_lies_on_its_side_is_turned_as_datasets_turns_it():
    array, exif = tiny.arrays(1)[0], Image.Exif()
    exif[0x0112] = 6
    lying = saved(array, exif=exif)
    upright = tiny.pixels()(Image.fromarray(np.rot90(array, -1)), return_tensors="pt")["pixel_values"][0]
    cell = {"bytes": lying, "path": None}
    decoded = datasets.Image().decode_example(cell)
    for image in (cell, decoded):
        assert bool((stage(labelled([image])).data[0]["pixel_values"] == upright).all())


GREY = Image.fromarray(tiny.arrays(1)[0][..., 0])
FIRST = tiny.images(1)[0]["image"]
REFUSED: list[tuple[Row, dict[str, Any], str]] = [
    ({"image": GREY}, {}, "example 1 (an image of mode L, 12 x 9 pixels) is not read by ViTImageProcessorPil"),
    ({"image": FIRST.convert("RGBA")}, {}, "example 1 (an image of mode RGBA, 12 x 9 pixels) is not read by"),
    ({"image": saved(tiny.arrays(1)[0])[:60]}, {}, "'image' of example 1 is no image file that can be read"),
    ({"image": b""}, {}, "'image' of example 1 is no image file that can be read"),
    ({"image": {"bytes": None, "path": None}}, {}, "example 1 has neither 'bytes' nor a 'path'"),
    ({"image": "nowhere.png"}, {}, "example 1 is the path 'nowhere.png', which cannot be read (No such file"),
    ({"image": np.zeros(3)}, {}, "example 1 is no image but an array of shape [3]"),
    ({"image": [[1, 2], [3]]}, {}, "example 1 is no image but list"),
    ({"image": 3.0}, {}, "example 1 is no image but float"),
    ({"image": None}, {}, "'image' of example 1 is None"),
    ({"photo": FIRST}, {}, "example 1 has no 'image'"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "settings", "says"), REFUSED, ids=lambda value: str(value)[:40])
def test_an_image_that_cannot_be_read_is_named(row: Row, settings: dict[str, Any], says: str):
    described = stage([*labelled([FIRST]), {**row, "label": 1}], **settings)
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        described.data[1]
    assert str(caught.value).startswith("stage 's': ")


@pytest.mark.parametrize(
    ("rows", "settings", "says"),
    [
        ([{"image": FIRST, "label": 0}], {"processor": None}, "and a model in memory has none; give processor="),
        (
            [{"image": FIRST, "label": 0}],
            {"processor": tiny.waves()},
            "processor must be one of transformers with an im",
        ),
        (
            [{"image": FIRST, "label": 0}],
            {"processor": transformers.ViTImageProcessorPil},
            "got the class ViTImageProc",
        ),
        ([{"one": FIRST, "other": FIRST, "label": 0}], {}, "several columns could hold the image ('one', 'other')"),
        ([{"name": "a.png", "label": 0}], {}, "reads 'pixel_values', which no column holds, and none holds images"),
        ([{"image": FIRST, "label": 0}], {"text": "image"}, "text= names texts that are read, and the model reads"),
        ([{"image": FIRST, "label": 0}], {"max_length": 9}, "max_length= cuts texts"),
    ],
)
def test_a_stage_that_does_not_know_how_to_read_images_is_refused(rows: Any, settings: Any, says: str):
    with pytest.raises(DescriptionError, match=re.escape(says)):
        stage(rows, **settings)


def test_a_processor_with_code_of_its_own_is_never_run(tmp_path: Path):
    folder = folder_of(tmp_path, tiny.pixels())
    file = tmp_path / "preprocessor_config.json"
    file.write_text(file.read_text().replace("{", '{"auto_map": {"AutoImageProcessor": "evil.Processor"},', 1))
    (tmp_path / "evil.py").write_text("raise SystemExit")
    with pytest.raises(DescriptionError, match="wants to run its own code"):
        hf.stage("s", folder, tiny.images())


def test_brightness_that_is_divided_twice_is_said():
    (notice,) = stage(labelled([array / 255 for array in tiny.arrays()])).data.notices
    assert "between 0 and 1, and ViTImageProcessorPil divides them by 255 again" in notice
    assert not stage(labelled(tiny.arrays())).data.notices


def test_an_augmentation_that_draws_anew_is_refused():
    draws = np.random.default_rng(0)
    flipped = as_dataset(tiny.arrays()).with_transform(
        lambda rows: {**rows, "img": [image.rotate(draws.integers(1, 360)) for image in rows["img"]]}
    )
    described = stage(flipped)
    with pytest.raises(DataError, match="differs between two reads of the data set"):
        trace(Chain(described), hf.query(tiny.images(1), stage=described))


def test_any_loss_may_be_given():
    assert stage(tiny.images(), objective=Classification()).data[0]["pixel_values"].shape == (3, 4, 4)
