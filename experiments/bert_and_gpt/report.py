"""What a trace says of texts: its work, and the most harmful and most helpful examples of every stage, in words."""

import resource
from collections.abc import Mapping
from typing import Any

import torch

from experiments.bert_and_gpt.stages import TWEETS, Trained
from experiments.bert_and_gpt.training import outputs_of
from experiments.corpora import Texts, without_names
from experiments.settings import Settings
from experiments.tracing import solving, warnings_of
from stagetrace import Chain, GaussNewton, Hessian, Lanczos, Query, Scores, hf, trace
from stagetrace.curvature.choices import Curvature
from stagetrace.progress import Progress
from stagetrace.solvers import Shift
from stagetrace.solvers.base import Solver

DEFAULT, POSITIVE = "default", "Gauss-Newton + 0.1"
MEAN = "mean test loss"
SHOWN = 5
LETTERS = 240
"""Of a text that is shown."""
MAX_STEPS = 40


def settings_by_name(chain: Chain, examples: int, seed: int) -> dict[str, tuple[dict[str, Curvature], Solver]]:
    """The library's default, and what does best where training stopped before a minimum; from so many examples."""
    hessian: dict[str, Curvature] = {name: Hessian(examples=examples, seed=seed) for name in chain.names}
    gauss_newton: dict[str, Curvature] = {name: GaussNewton(examples=examples, seed=seed) for name in chain.names}
    return {
        DEFAULT: (hessian, Lanczos(max_steps=MAX_STEPS)),
        POSITIVE: (gauss_newton, Lanczos(damping=0.1, filter=Shift, max_steps=MAX_STEPS)),
    }


def traced(name: str, both: Trained, settings: Settings, examples: int, progress: Progress) -> dict[str, Any]:
    """One chain of the first seed: what is shared, both traces of the mean test loss, and some tweets one by one."""
    chain, query = both.chains[name], both.queries[name]
    pairs = list(zip(chain.stages[1:], chain.stages[:-1], strict=True))
    found: dict[str, Any] = {
        "stages": [repr(stage) for stage in chain.stages],
        "shared": {stage.name: str(hf.shared(stage, before)) for stage, before in pairs},
        "links": {stage.name: type(stage.link).__name__ for stage, _ in pairs},
        "alpha": {stage.name: chain[stage.name].link_settings.get("alpha") for stage, _ in pairs},
        "traces": {},
    }
    texts = _texts(both)
    choices, folder = settings_by_name(chain, examples, settings.seed), settings.out / "run" / name
    for setting, (curvature, solver) in choices.items():
        result = trace(
            chain, query, curvature=curvature, solver=solver, out=folder / kept_as(setting), progress=progress
        )
        found["traces"][setting] = {
            "solving": solving(result, curvature, dict.fromkeys(chain.names, solver)),
            "warnings": warnings_of(result),
            "seconds": result.statistics["seconds"],
            "peak_memory_of_the_process_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "spread": {stage: _spread(result[stage]) for stage in chain.names},
        }
        if setting == POSITIVE:
            found["texts"] = {MEAN: {stage: _ends(result[stage], texts[stage], None) for stage in chain.names}}
    found["asked"], few = chosen_tweets(chain, query, both.corpora.tweets_test)
    curvature, solver = choices[POSITIVE]
    each = Query(few, reduction="none", collate=query.collate, batch_size=8)
    result = trace(chain, each, curvature=curvature, solver=solver, out=folder / "chosen-tweets", progress=progress)
    for place, words in enumerate(found["asked"]):
        found["texts"][words] = {stage: _ends(result[stage], texts[stage], place) for stage in chain.names}
    return found


def kept_as(setting: str) -> str:
    """The folder of a trace with this setting."""
    return setting.replace(" + ", "-").replace(" ", "-").lower()


def chosen_tweets(chain: Chain, query: Query, test: Texts) -> tuple[dict[str, Any], Any]:
    """Two test tweets by the last model: its worst mistake, and its surest right positive.

    Returns what each is, and both as a data set for a query.
    """
    batches = outputs_of(chain.stages[-1], query)
    positive = torch.cat([outputs.softmax(dim=1)[:, 1] for _, outputs in batches])
    labels = torch.cat([batch.content["labels"] for batch, _ in batches])
    right = torch.where(labels == 1, positive, 1 - positive)
    places = {
        "the worst mistake": int(right.argmin()),
        "the surest positive": int((positive - 2 * (labels == 0)).argmax()),
    }
    said = {
        words: {
            "test_row": test.rows[place],
            "text": shown(test.texts[place]),
            "label": int(labels[place]),
            "probability_of_the_label": right[place].item(),
        }
        for words, place in places.items()
    }
    sentences = query.data
    return said, sentences.of([sentences.rows[place] for place in places.values()], "the chosen tweets")


def shown(text: str) -> str:
    """On one line, not too long, and without names."""
    line = without_names(" ".join(text.split()))
    return line if len(line) <= LETTERS else line[: LETTERS - 1] + "…"


def _texts(both: Trained) -> dict[str, Texts]:
    corpora = both.corpora
    return {"pretrain": corpora.general, TWEETS: corpora.tweets, "finetune": corpora.tweets}


def _ends(scores: Scores, texts: Texts, query: int | None) -> dict[str, list[dict[str, Any]]]:
    """Both ends of the ranking; score: positive = harmful; removal effect: negative = removing it helps."""
    return {
        what: [
            {
                "row": texts.rows[row.index],
                "text": shown(texts.texts[row.index]),
                "label": None if texts.labels is None else texts.labels[row.index],
                "score": row.score,
                "removal_effect": row.removal_effect,
            }
            for row in scores.top(SHOWN, harmful=harmful, query=query)
        ]
        for what, harmful in (("most_harmful", True), ("most_helpful", False))
    }


def _spread(scores: Scores) -> Mapping[str, float]:
    values = scores.values
    return {
        "examples": scores.n_examples,
        "smallest": values.min().item(),
        "largest": values.max().item(),
        "mean_absolute": values.abs().mean().item(),
        "share_harmful": scores.share_harmful,
    }
