"""The picture of an answer: `why.html`, one file that needs no network, and the question as plain values beside it."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from stagetrace.report.numbers import number, percent, signed
from stagetrace.report.preview import Preview, whole_characters
from stagetrace.report.render import legible
from stagetrace.report.shown import shown
from stagetrace.results.files import write_text
from stagetrace.results.jsonable import json_text
from stagetrace.version import __version__
from stagetrace.why.answer import Answer, Example, Piece, headline, loss_line, side
from stagetrace.why.question import UNIT, Question, Token, shares

PAGE, RECORD = "why.html", "question.json"

PROMPT = 4_000
"""Characters of a prompt that the page shows, at most: its end."""


def write(answer: Answer) -> Answer:
    """Write both files into the answer's folder, each whole or not at all; gives the answer with its page.

    Raises:
        ResultsError: the file system refused.
    """
    assert answer.folder is not None
    answer.folder.mkdir(parents=True, exist_ok=True)
    write_text(answer.folder / RECORD, whole_characters(json_text(record(answer.question))))
    write_text(answer.folder / PAGE, render(answer))
    return replace(answer, page=answer.folder / PAGE)


def record(question: Question) -> dict[str, object]:
    """The question as JSON holds it; losses in nats."""
    return {
        "kind": question.kind,
        "prompt": question.prompt,
        "answer": question.answer,
        "said": question.said,
        "loss": question.loss,
        "unit": UNIT,
        "tokens": _tokens(question.tokens),
        "contrast": question.contrast
        and {
            "answer": question.contrast.answer,
            "loss": question.contrast.loss,
            "tokens": _tokens(question.contrast.tokens),
        },
    }


def _heat(piece: Piece, example: Example) -> int:
    """How dark a token is drawn, of 100: its score beside the largest of its example."""
    largest = max(abs(each.score) for each in example.pieces if each.score is not None)
    return round(100 * abs(piece.score or 0.0) / largest) if largest else 0


def _shown(example: Example) -> dict[str, object]:
    """What the page has of an example; of one by hand its words."""
    return shown(example.preview or Preview(None, example.index, "text", example.text))


def _tokens(tokens: Sequence[Token]) -> list[dict[str, object]]:
    return [{"text": t.text, "loss": t.loss, "likeliest": t.likeliest, "chance": t.chance} for t in tokens]


def render(answer: Answer) -> str:
    """The page: the answer with each token's share of the loss, and of every stage what spoke for and against it."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=legible
    )
    environment.filters.update(signed=signed, number=number, percent=percent)
    question = answer.question
    answers = [(question.answer, question.tokens)]
    answers += [] if question.contrast is None else [(question.contrast.answer, question.contrast.tokens)]
    largest = max((token.loss for _, tokens in answers for token in tokens), default=0.0) or 1.0
    style = (files("stagetrace.report") / "assets" / "style.css").read_text(encoding="utf-8")
    own = (files("stagetrace.why") / "assets" / "why.css").read_text(encoding="utf-8")
    page = (files("stagetrace.why") / "assets" / "why.html").read_text(encoding="utf-8")
    return environment.from_string(page).render(
        answer=answer,
        question=question,
        prompt=question.prompt if len(question.prompt) <= PROMPT else f"...{question.prompt[-PROMPT:]}",
        answers=[
            (name, [(t, share, round(100 * t.loss / largest)) for t, share in zip(tokens, shares(tokens), strict=True)])
            for name, tokens in answers
        ],
        headline=headline(question),
        loss=loss_line(question),
        beside="" if question.contrast is None else f" beside {question.contrast.answer!r}",
        sides=(side(question, spoke_for=True), side(question, spoke_for=False)),
        unit=UNIT,
        share=_heat,
        shown=_shown,
        style=Markup(style + own),
        version=__version__,
    )
