"""A row of a text with images -> tokens, pixels and labels, by the processor of a vision-language model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from torch import Tensor

from stagetrace.errors import DataError, first_line, refuse
from stagetrace.hf.columns import LABELS, TOKENISED
from stagetrace.hf.conversations import is_chat
from stagetrace.hf.modal.cells import IMAGES
from stagetrace.hf.modal.concatenated import of_images
from stagetrace.hf.modal.images import read_image
from stagetrace.hf.modal.media import Row
from stagetrace.hf.modal.turns import illustrated, of_assistant, rendered, shown
from stagetrace.hf.rows import is_sequence, present
from stagetrace.hf.texts import CHATS, COMPLETION, having
from stagetrace.hf.tokens import next_tokens, text_of
from stagetrace.objectives.tokens import IGNORED

SEVERAL = ("images", "pictures", "photos")
TEXTS = ("text", "caption", "content")
VIDEOS = ("video", "videos")
SOURCES = (*CHATS, *COMPLETION, *TEXTS)


@final
@dataclass(frozen=True, eq=False)
class Illustrated:
    """Reads texts with images by a processor of transformers, one row at a time.

    Rows have 'image' or 'images' (or none) beside 'messages', 'prompt' and 'completion', or 'text'. What is predicted:
    the assistant's turns, the completion, or all of the text; never the tokens in the place of an image. Labels of the
    row's own are kept. Rows with tokens stay as they are.

    texts: the columns of the text: one, or a prompt and its completion.
    marks: the tokens that stand for images. longest: tokens after which a row is cut.
    adds: whether the tokenizer puts its own tokens around a text. last: of conversations, the last turn alone counts.

    Raises:
        DataError: an image or a text cannot be read, or one does not go with the other; with the example's index.
    """

    processor: Any
    texts: tuple[str, ...]
    marks: frozenset[int]
    longest: int | None = None
    adds: bool = True
    last: bool = False

    def __call__(self, row: Row, index: int, where: str) -> dict[str, Any]:
        where = f"{where}: example {index}"
        if not isinstance(row, Mapping):
            raise DataError(f"{where} must be a dict with named columns, got {type(row).__name__}")
        if row.get(TOKENISED) is not None:
            self._check_seen(row, where)
            return dict(row)
        if any(row.get(name) is not None for name in VIDEOS):
            raise DataError(f"{where} has a video, which is not read; give its frames as images, or leave it out")
        images, used = _images_of(row, where)
        texts = self.texts
        missing = [name for name in texts if row.get(name) is None]
        if missing:
            raise DataError(f"{where} has no '{missing[0]}'; it has {list(row)}")
        if is_chat(row[texts[0]]):
            found, counts = self._conversation(row, texts, images, where)
        else:
            found, counts = self._text([text_of(row[name], f"{where}: '{name}'") for name in texts], images, where)
        rest = {name: value for name, value in row.items() if name not in (*used, *texts)}
        own = next((name for name in LABELS if is_sequence(row.get(name))), None)
        if own is None:
            labels = next_tokens(found)
            found["labels"] = [
                label if counted and label not in self.marks else IGNORED
                for label, counted in zip(labels, counts, strict=True)
            ]
        cut = self._cut(found, where)
        return {**{name: value for name, value in rest.items() if name == own or name not in LABELS}, **cut}

    def of(self, row: Row, where: str) -> "Illustrated":
        known = bool(self.texts) and set(self.texts) <= set(row)
        texts = self.texts if known else sources_of(row, where)
        return replace(self, texts=texts, last=True)

    def says(self, row: Row) -> str:
        """What is predicted of rows like this one."""
        if is_sequence(next((row[name] for name in LABELS if name in row), None)):
            return "the labels of the rows are what is predicted"
        first, *second = self.texts
        if second:
            return f"the tokens of '{second[0]}' are predicted, those of '{first}' not"
        if is_chat(row[first]):
            return "the assistant's turns are predicted, the other tokens not; a column 'labels' would say otherwise"
        return "all tokens of the text are predicted but those in the place of images"

    def _text(self, texts: list[str], images: list[Any], where: str) -> tuple[dict[str, Any], list[bool]]:
        """The features of a text, or of a prompt and a completion, and which of its tokens count."""
        found = self._features("".join(texts), images, where, adds=self.adds)
        tokens = found[TOKENISED]
        if len(texts) == 1:
            return found, [True] * len(tokens)
        before = self._features(texts[0], images, where, adds=self.adds)[TOKENISED]
        bare = self.processor.tokenizer("", add_special_tokens=self.adds)[TOKENISED]
        for behind in range(len(bare) + 1):  # marks that the tokenizer puts behind a text stand behind the whole
            begins = before[: len(before) - behind]
            if tokens[: len(begins)] == begins:
                return found, [place >= len(begins) for place in range(len(tokens))]
        raise DataError(
            f"{where}: prompt and completion together do not begin with the tokens of the prompt alone "
            f"({texts[0][-12:]!r} and {texts[1][:12]!r} share one); end the prompt without a blank and begin the "
            "completion with it"
        )

    def _conversation(
        self, row: Row, texts: tuple[str, ...], images: list[Any], where: str
    ) -> tuple[dict[str, Any], list[bool]]:
        """The features of a conversation, and which of its tokens count."""
        spoken = [message for name in texts for message in row[name]]
        messages = [
            {**message, "content": [_opened(part, where) for part in message["content"]]}
            for message in illustrated(spoken, images, where)
        ]
        since = len(row[texts[0]]) if len(texts) > 1 else 0

        def tokens_of(text: str, some: Sequence[Any]) -> list[int]:
            return self._features(text, some, where, adds=False)[TOKENISED]

        found = self._features(rendered(self.processor, messages, where), shown(messages), where, adds=False)
        return found, of_assistant(self.processor, messages, tokens_of, where, since=since, last=self.last)

    def _features(self, text: str, images: Sequence[Any], where: str, *, adds: bool) -> dict[str, Any]:
        """What the processor makes of one text: lists of tokens, and the images' features as they are."""
        try:
            found = self.processor(
                images=list(images) or None, text=[text], return_tensors="pt", add_special_tokens=adds
            )
        except Exception as cause:  # whatever a processor raises for an image or text that it does not know
            raise DataError(
                f"{where} is not read by {type(self.processor).__name__} ({first_line(cause)}); each image needs its "
                f"place in the text{self._written()}"
            ) from cause
        features = of_one(found)
        self._check_seen(features, where)
        return features

    def _check_seen(self, features: Mapping[str, Any], where: str) -> None:
        """Refuse a place for an image without one: a model would read its mark as a word."""
        tokens = {int(token) for token in features[TOKENISED]}
        if self.marks & tokens and not any(of_images(name) for name in present(features)):
            raise DataError(
                f"{where} has a place for an image{self._written()} and no image; give it in a column 'image' or "
                "'images', or leave the example out"
            )

    def _cut(self, found: dict[str, Any], where: str) -> dict[str, Any]:
        tokens = found[TOKENISED]
        if self.longest is None or len(tokens) <= self.longest:
            return found
        if self.marks & set(tokens[self.longest :]):
            raise DataError(
                f"{where}: cut after {self.longest:,} of its {len(tokens):,} tokens it would lose a part of an image; "
                "raise max_length=, or leave the example out"
            )
        return {
            name: value[: self.longest] if isinstance(value, list) and len(value) == len(tokens) else value
            for name, value in found.items()
        }

    def _written(self) -> str:
        mark = getattr(self.processor, "image_token", None)
        return f" ('{mark}')" if isinstance(mark, str) else ""


def marks_of(processor: Any, config: Any) -> frozenset[int]:
    """The tokens that stand for images or frames, by the processor and the model's configuration."""
    named = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    found = {getattr(owner, name, None) for owner in (processor, config) for name in named}
    return frozenset(token for token in found if isinstance(token, int))


def of_one(found: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of one row, as a processor or collator gave it, as that row's features.

    What has an entry per token loses its first axis and becomes a list; the images' features keep all axes.
    """
    shape = found[TOKENISED].shape
    return {
        name: value[0].tolist() if isinstance(value, Tensor) and value.shape == shape and not of_images(name) else value
        for name, value in found.items()
    }


def sources_of(row: Row, where: str) -> tuple[str, ...]:
    """The columns of a row's text: a conversation, a prompt and a completion, or one text.

    Raises:
        DescriptionError: none, or several.
    """
    held = [name for name in present(row) if name in SOURCES]
    chats = [name for name in held if name in CHATS]
    for found in (chats, [name for name in held if name in TEXTS]):
        if len(found) == 1 and not (set(COMPLETION) <= set(held)):
            return (found[0],)
    if set(COMPLETION) <= set(held) and not chats:
        return COMPLETION
    bound = "several columns could hold the text" if held else "no column is known to hold the text"
    refuse(
        f"{where}: {bound}{having(row)}; name it 'messages', 'prompt' and 'completion', or 'text', or type "
        'text="column"'
    )


def _images_of(row: Row, where: str) -> tuple[list[Any], tuple[str, ...]]:
    """A row's images as their processor takes them, and the columns they stand in."""
    used = tuple(name for name in row if name.lower() in (*IMAGES, *SEVERAL))
    full = [name for name in used if row[name] is not None]
    if len(full) > 1:
        raise DataError(f"{where} has images in {' and '.join(map(repr, full))}; leave one of the columns out")
    if not full:
        return [], used
    value = row[full[0]]
    several = full[0].lower() in SEVERAL and isinstance(value, (list, tuple))
    return [read_image(one, f"{where}: '{full[0]}'") for one in (value if several else [value])], used


def _opened(part: dict[str, Any], where: str) -> dict[str, Any]:
    """A part of a message with its image read."""
    return part if part["type"] != "image" else {**part, "image": read_image(part["image"], f"{where}: an image")}
