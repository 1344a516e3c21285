"""The image processor or feature extractor of a model: as given, or from the folder in which the model lies."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from stagetrace.errors import first_line, refuse
from stagetrace.hf.packages import is_of, package, quiet
from stagetrace.hf.places import place_of, read_json, refuse_code

FILES = ("processor_config.json", "preprocessor_config.json")
"""Where `save_pretrained` leaves the settings of processors."""


@final
@dataclass(frozen=True)
class Part:
    """What makes a model's features of an image or a sound.

    noun: what it reads. called: what transformers calls it. attribute: where a whole processor holds it.
    base: the class of all of its kind. auto: what loads one.
    """

    noun: str
    called: str
    attribute: str
    base: str
    auto: str


IMAGES = Part("image", "image processor", "image_processor", "ImageProcessingMixin", "AutoImageProcessor")
WHOLE = Part("text and image", "processor", "", "ProcessorMixin", "AutoProcessor")
SOUNDS = Part("sound", "feature extractor", "feature_extractor", "FeatureExtractionMixin", "AutoFeatureExtractor")


def load_processor(part: Part, given: Any, places: Iterable[str], where: str) -> Any:
    """The part of a processor that reads images (or sounds), as given or named, or that beside the model.

    Its class is one of transformers; code of a folder's own is never run.

    Raises:
        DescriptionError: there is none, or something else was given.
    """
    if given is not None and not isinstance(given, (str, Path)):
        return _part_of(part, given, where)
    tried = [place_of(given, where, "processor")] if given is not None else list(places)
    for place in tried:
        folder = Path(place)
        files = [folder / name for name in FILES if (folder / name).is_file()]
        if folder.is_dir() and not files:
            continue
        for file in files:
            settings = read_json(file, where)
            for one in (settings, *settings.values()):
                refuse_code(one, place, where, "load the processor yourself and give it as processor=")
        with quiet():
            try:
                return getattr(package("transformers"), part.auto).from_pretrained(place, trust_remote_code=False)
            except Exception as cause:  # whatever a broken or foreign file makes the libraries raise
                refuse(f"{where}: no {part.called} can be loaded from {place} ({first_line(cause)}); give processor=")
    lies = f"none lies in {tried[0]}" if tried else "a model in memory has none"
    refuse(
        f"{where}: the {part.noun}s need the model's {part.called}, and {lies}; give processor=, a processor of "
        "transformers or the folder of one"
    )


def _part_of(part: Part, given: Any, where: str) -> Any:
    """What reads images (or sounds) of a processor of transformers."""
    found = given if is_of(given, "transformers", part.base) else getattr(given, part.attribute, None)
    if isinstance(given, type) or not is_of(found, "transformers", part.base):
        got = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        some = f"{'an' if part.called[0] in 'aeiou' else 'a'} {part.called}"
        refuse(
            f"{where}: processor must be one of transformers with {some}, or the folder of one, got {got}; "
            f"type processor=transformers.{part.auto}.from_pretrained(folder)"
        )
    return found
