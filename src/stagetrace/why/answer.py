"""What comes out: the question, and of every stage the examples that spoke for and against the answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from stagetrace.report.numbers import number, percent, signed
from stagetrace.report.preview import Preview
from stagetrace.results import Trace
from stagetrace.results.table import Table
from stagetrace.results.trace import UnknownStageError
from stagetrace.why.question import UNIT, Question, Token, shares

LINE = 70
"""Characters of an example in a table, at most."""

CARRYING = 3
"""Tokens of an example that are named in a table."""

PROMPT = 400
"""Characters of a prompt that are printed, at most: its end."""


@final
@dataclass(frozen=True)
class Piece:
    """A token of an example; score: of the term that predicts it, in nats, as an example's; None where nothing does."""

    text: str
    score: float | None


@final
@dataclass(frozen=True)
class Example:
    """One example of a stage, with what it does to the answer.

    score: d(-log p(answer | prompt))/d(weight of the example); **positive = more of it makes the answer less likely**,
        with a contrast beside the other answer; unit: nats.
    removal_effect: the predicted change of `-log p` without the example; positive = the answer becomes less likely.
    alike: other examples that look the same, left out of the list.
    pieces: its tokens in order, whose scores sum to its own; none where the stage's tokens cannot be scored.
    preview: what it looks and sounds like, for the page.
    """

    index: int
    score: float
    removal_effect: float
    text: str
    label: str
    alike: tuple[int, ...] = ()
    pieces: tuple[Piece, ...] = ()
    preview: Preview | None = field(default=None, repr=False)

    @property
    def carried(self) -> str:
        """The tokens with the largest scores of the example's sign, in words."""
        own = [each for each in self.pieces if each.score and (each.score > 0) == (self.score > 0)]
        largest = sorted(own, key=lambda each: -abs(each.score or 0.0))[:CARRYING]
        return ", ".join(f"{each.text.strip()} {signed(each.score or 0.0)}" for each in largest)


@final
@dataclass(frozen=True)
class StageAnswer:
    """A stage's part of the answer.

    spoke_for: the examples with the most negative scores, more of which makes the answer likelier; spoke_against: those
        with the largest.
    looked_at: how many examples were scored exactly: all, or those that an index named.
    notes: how the stage was solved, and what may be missing.
    """

    stage: str
    n_examples: int
    looked_at: int
    spoke_for: tuple[Example, ...]
    spoke_against: tuple[Example, ...]
    notes: tuple[str, ...]


@final
@dataclass(frozen=True, eq=False)
class Answer:
    """Why it said this; `print` shows it, and so does a notebook.

    trace: all scores, where all examples were scored; None where an index named those that were.
    folder: where it was kept; page: the picture in it, one HTML file.
    """

    question: Question
    stages: tuple[StageAnswer, ...]
    trace: Trace | None = None
    folder: Path | None = None
    page: Path | None = None

    def __getitem__(self, stage: str) -> StageAnswer:
        """Of a stage, by its name.

        Raises:
            DescriptionError: no such stage (also a KeyError).
        """
        found = {each.stage: each for each in self.stages}
        if stage not in found:
            names = ", ".join(map(repr, found))
            raise UnknownStageError(f"answer[{stage!r}]: no stage of that name was asked; type one of: {names}")
        return found[stage]

    def tables(self) -> list[Table]:
        """The question's table, and two of every stage: what spoke for the answer, and what against it."""
        found = question_tables(self.question)
        for stage in self.stages:
            found += [_examples(stage, self.question, spoke_for=True), _examples(stage, self.question, spoke_for=False)]
        return found

    def lines(self) -> list[str]:
        """What is said below the tables: whether the answer was cut, and how each stage was solved."""
        cut = f"the model's answer was cut after {len(self.question.tokens)} tokens" if self.question.cut else ""
        return [*filter(None, [cut]), *(note for stage in self.stages for note in stage.notes)]

    def __str__(self) -> str:
        return "\n".join([*(table.text() for table in self.tables()), *self.lines()])

    def _repr_html_(self) -> str:  # pyright: ignore[reportUnusedFunction]
        return "".join(table.html() for table in self.tables())


def headline(question: Question) -> str:
    """What is asked, in a line.

    Example:
        >>> from stagetrace import Query
        >>> headline(Question("label", "a good film", "positive", "by the model", (), Query([0])))
        "Why the label 'positive' (the model's own)?"
    """
    whose = "the model's own" if question.said == "by the model" else "given"
    other = "" if question.contrast is None else f" rather than {question.contrast.answer!r}"
    return f"Why the {question.spoken} {question.answer!r} ({whose}){other}?"


def loss_line(question: Question) -> str:
    """The loss of the whole answer, in words; with a contrast both, and their difference."""
    count, contrast = len(question.tokens), question.contrast
    each = f", {number(question.loss / count)} a token over {count} tokens" if count > 1 else ""
    line = f"-log p({question.spoken} | prompt) = {number(question.loss)} {UNIT}{each}"
    if contrast is None:
        return line
    return (
        f"{line}; of {contrast.answer!r} {number(contrast.loss)} {UNIT}; what is traced is the first less the second, "
        f"{signed(question.traced)} {UNIT}"
    )


def question_tables(question: Question) -> list[Table]:
    """A row for each token of the answer: its loss, its share of it, its probability, and what was likeliest."""
    prompt = question.prompt if len(question.prompt) <= PROMPT else f"...{question.prompt[-PROMPT:]}"
    found = [_tokens(f"{headline(question)}\nprompt: {prompt}", question.tokens, question, loss_line(question))]
    if question.contrast is not None:
        found.append(_tokens(f"rather than {question.contrast.answer!r}", question.contrast.tokens, question, ""))
    return found


def _tokens(title: str, tokens: Sequence[Token], question: Question, caption: str) -> Table:
    rows = tuple(
        (
            repr(token.text),
            number(token.loss),
            percent(share),
            percent(token.probability),
            "itself" if token.is_likeliest else repr(token.likeliest),
            percent(token.chance),
        )
        for token, share in zip(tokens, shares(tokens), strict=True)
    )
    headings = (question.spoken, f"loss ({UNIT})", "share of the loss", "probability", "likeliest", "its probability")
    return Table(title, headings, rows, caption=caption, words=frozenset({question.spoken, "likeliest"}))


def side(question: Question, *, spoke_for: bool) -> str:
    """What a list of examples is, with its sign."""
    beside = "" if question.contrast is None else f" beside {question.contrast.answer!r}"
    if spoke_for:
        return f"spoke for the {question.spoken}: score below 0, more of the example makes it likelier{beside}"
    return f"spoke against the {question.spoken}: score above 0, more of the example makes it less likely{beside}"


def _examples(stage: StageAnswer, question: Question, *, spoke_for: bool) -> Table:
    rows = [
        (
            str(each.index),
            signed(each.score),
            signed(each.removal_effect),
            each.label,
            in_a_line(each.text),
            each.carried,
            f"{len(each.alike):,}" if each.alike else "",
        )
        for each in (stage.spoke_for if spoke_for else stage.spoke_against)
    ]
    headings = ["index", f"score ({UNIT})", f"change without it ({UNIT})", "class", "example"]
    headings += [f"carried by ({UNIT})", "others alike"]
    kept = [place for place in range(len(headings)) if place < 3 or any(row[place] for row in rows)]
    caption = "" if rows else "none"
    return Table(
        f"{stage.stage}, {stage.n_examples:,} examples: {side(question, spoke_for=spoke_for)}",
        tuple(headings[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in rows),
        caption=caption,
        words=frozenset({"class", "example", f"carried by ({UNIT})"}),
    )


def in_a_line(text: str, room: int = LINE) -> str:
    """The beginning of a text, in so many characters."""
    words = " ".join(text[: 4 * room].split())
    return words if len(words) <= room else f"{words[: room - 3]}..."
