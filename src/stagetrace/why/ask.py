"""`ask`: from a prompt to the examples behind an answer."""

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any

from stagetrace.curvature.auto import Auto
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.ekfac import EKFAC
from stagetrace.curvature.named import CURVATURES
from stagetrace.errors import StagetraceWarning, refuse
from stagetrace.hf.asking import Prompt
from stagetrace.index import Index
from stagetrace.progress import Progress
from stagetrace.results import Trace
from stagetrace.results.tokens import ExampleTokens, TokenScores
from stagetrace.solvers.base import Solution, Solver
from stagetrace.solvers.lanczos import Lanczos
from stagetrace.stages.chain import Chain
from stagetrace.stages.modes import in_ordinary_modes
from stagetrace.stages.stage import check_count
from stagetrace.tracing.describe import by_stage
from stagetrace.tracing.token_some import tokens_of
from stagetrace.tracing.token_stages import stages_of_tokens
from stagetrace.tracing.trace import trace
from stagetrace.tracing.usual import usual_solvers
from stagetrace.why.answer import Answer
from stagetrace.why.asked import WHERE, question_of
from stagetrace.why.found import Tokens, by_index, by_trace
from stagetrace.why.question import Question
from stagetrace.why.write import write

TOKENS = 32
"""Tokens that a model writes at most, where no completion is given."""

FITS = "fits"
"""The folder in `out` in which EK-FAC's fits lie: a question does not change them."""

Curvatures = Curvature | str | Mapping[str, Curvature | str] | None
Solvers = Solver | str | Mapping[str, Solver | str] | None


@in_ordinary_modes
def ask(
    chain: Chain,
    prompt: Prompt,
    completion: str | None = None,
    *,
    label: str | int | None = None,
    contrast: str | int | None = None,
    max_new_tokens: int = TOKENS,
    top: int = 5,
    index: str | Path | None = None,
    out: str | Path | None = None,
    curvature: Curvatures = None,
    solver: Solvers = None,
    progress: Progress | bool = False,
) -> Answer:
    """Why did the chain's last model say this? The answer's loss, traced back to the examples of every stage.

    What is traced is `-log p(answer | prompt)`, summed over the answer's tokens, in nats: of a causal language model
    the completion, of a masked one the words at the prompt's masks, of a classifier its label.

    Args:
        chain: the stages; the last one of `hf.stage` or `hf.from_trainer`, with a tokenizer.
        prompt: a text; for a causal language model also a list of messages before the assistant's turn.
        completion: what was said; None takes what the model itself says: the likeliest next tokens one by one, up to
            the end of the text, or the likeliest word at each mask.
        label: of a classifier the class that is asked about, by name or number; None takes the predicted one.
        contrast: another completion, filling or label: why the first and not this? What is traced is the difference of
            both losses, as for `Query`.
        max_new_tokens: that the model writes at most.
        top: examples of every stage on each side, at most; those that look the same are one.
        index: a folder of `stagetrace index` for this chain: only the examples that it names are scored, exactly.
        out: a folder of answers. Each question has its own folder in it, an ordinary run with the page `why.html`;
            asked again, it is read and not computed. Fits of `EKFAC` are kept beside, for all questions.
        curvature, solver, progress: as for `trace`.

    Returns:
        An `Answer`. Score below 0: more of the example makes the answer likelier, and without it the model is predicted
        to hold it less likely; above 0 the opposite. Unit: nats.

    Raises:
        DescriptionError: an argument does not fit the chain; the message says what to type instead.
        DataError: prompt and answer do not fit into the model, or nothing is asked.
        DifferentiationError, SolveError, ResultsError: as for `trace`.
    """
    if not isinstance(chain, Chain):
        refuse(f"{WHERE}: chain must be a Chain of stages, got {type(chain).__name__}")
    check_count(top, f"{WHERE}: top")
    check_count(max_new_tokens, f"{WHERE}: max_new_tokens")
    chain = chain.refreshed()
    question = question_of(chain, prompt, completion, label, contrast, max_new_tokens)
    place = None if out is None else Path(out) / folder_name(question, index, curvature, solver)
    how: dict[str, Any] = {
        "curvature": curvature if out is None else with_fits(curvature, Path(out) / FITS),
        "solver": solver,
        "progress": progress,
    }
    if index is not None:
        stages = by_index(Index.open(index, chain), question, top, _tokens(chain, how), **how)
        answer = Answer(question, stages)
    else:
        found = _traced(chain, question, place, how)
        answer = Answer(question, by_trace(chain, found, top, _tokens(chain, how, found.tokens)), found)
    return answer if place is None else write(replace(answer, folder=place))


def _traced(chain: Chain, question: Question, place: Path | None, how: Mapping[str, Any]) -> Trace:
    """The trace of a question; of recorded stages with the tokens, which cost a walk through all steps afterwards."""
    recorded = any(chain[name].recording is not None for name in stages_of_tokens(chain))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no scores of tokens", StagetraceWarning)  # nobody asked for all of them
        return trace(chain, question.query, out=place, tokens=recorded, **how)


def _tokens(chain: Chain, how: Mapping[str, Any], traced: Mapping[str, TokenScores] | None = None) -> Tokens:
    """Scores the tokens of examples: of those that are shown, so that a run need not keep millions of others.

    traced: what was scored already.
    """
    stages = stages_of_tokens(chain)
    curvatures = by_stage(chain, how["curvature"], Auto(), "curvature")
    solvers = by_stage(chain, how["solver"], Lanczos(), "solver", usual_solvers(chain, curvatures))

    def tokens(stage: str, solution: Solution, indices: Collection[int]) -> Mapping[int, ExampleTokens]:
        if traced is not None and stage in traced:
            return {index: traced[stage][index] for index in indices}
        return tokens_of(chain[stage], solvers[stage], solution.value, indices) if stage in stages else {}

    return tokens


def folder_name(question: Question, index: object, curvature: object, solver: object) -> str:
    """A name that people read and that no other question has: its first words, and a digest of all that was asked."""
    other = question.contrast and [token.text for token in question.contrast.tokens]
    asked = [question.kind, question.prompt, [token.text for token in question.tokens], other]
    how = [None if index is None else str(index), repr(curvature), repr(solver)]
    digest = sha256(dumps([asked, how]).encode()).hexdigest()[:8]
    words = re.findall(r"[a-z0-9]+", question.prompt.lower()[-200:])[-5:]
    return "-".join([*words, digest])[-80:]


def with_fits(curvature: Curvatures, folder: Path) -> Curvatures:
    """The same, each EK-FAC kept in a folder that has none of its own."""
    if isinstance(curvature, Mapping):
        return {name: with_fits(each, folder) for name, each in curvature.items()}  # type: ignore[misc]
    named = CURVATURES.get(curvature) if isinstance(curvature, str) else curvature
    return replace(named, cache=folder) if isinstance(named, EKFAC) and named.cache is None else curvature
