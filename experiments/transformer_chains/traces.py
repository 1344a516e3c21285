"""What a trace says of texts: its work, and the most harmful and most helpful examples of every stage, in words."""

import resource
from typing import Any

import torch

from experiments import records
from experiments.estimators import shifted
from experiments.pages.texts import MEAN
from experiments.protocol import Prepared
from experiments.records import Record
from experiments.settings import Settings
from experiments.texts import Texts, ends, shown
from experiments.transformer_chains.stages import TWEETS
from experiments.transformer_chains.training import outputs_of
from stagetrace import Chain, GaussNewton, Hessian, Lanczos, Query, hf, trace
from stagetrace.curvature.choices import Curvature
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solver

DEFAULT, POSITIVE = "default", "Gauss-Newton + 0.1"
SHOWN = 5
MAX_STEPS = 40


def settings_by_name(chain: Chain, examples: int, seed: int) -> dict[str, tuple[dict[str, Curvature], Solver]]:
    """The library's default, and what does best where training stopped before a minimum; from so many examples."""
    hessian: dict[str, Curvature] = {name: Hessian(examples=examples, seed=seed) for name in chain.names}
    gauss_newton: dict[str, Curvature] = {name: GaussNewton(examples=examples, seed=seed) for name in chain.names}
    positive = shifted(0.1, max_steps=MAX_STEPS)
    return {DEFAULT: (hessian, Lanczos(max_steps=MAX_STEPS)), POSITIVE: (gauss_newton, positive)}


def traced(name: str, prepared: Prepared, settings: Settings, examples: int, progress: Progress) -> Record:
    """One chain of the first seed: what is shared, both traces of the mean test loss, and some tweets one by one."""
    chain, query, corpora = prepared.chain, prepared.query, prepared.data
    pairs = list(zip(chain.stages[1:], chain.stages[:-1], strict=True))
    texts = {"pretrain": corpora.general, TWEETS: corpora.tweets, "finetune": corpora.tweets}
    choices, folder = settings_by_name(chain, examples, settings.seed), settings.out / "run" / name
    traces, examples_shown = Record(), Record()
    for setting, (curvature, solver) in choices.items():
        options: Any = {"curvature": curvature, "solver": solver, "progress": progress}
        result = trace(chain, query, out=folder / kept_as(setting), **options)
        traces[setting] = {
            **records.of_trace(result, curvature, dict.fromkeys(chain.names, solver)),
            "seconds": result.statistics["seconds"],
            "peak_memory_of_the_process_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "spread": {stage: records.of_scores(result[stage]) for stage in chain.names},
        }
        if setting == POSITIVE:
            examples_shown[MEAN] = {stage: ends(result[stage].values, texts[stage], SHOWN) for stage in chain.names}
    asked, few = chosen_tweets(chain, query, corpora.tests)
    curvature, solver = choices[POSITIVE]
    each = Query(few, reduction="none", collate=query.collate, batch_size=8)
    result = trace(chain, each, curvature=curvature, solver=solver, out=folder / "chosen-tweets", progress=progress)
    for place, words in enumerate(asked):
        examples_shown[words] = {stage: ends(result[stage].values[place], texts[stage], SHOWN) for stage in chain.names}
    return {
        "stages": [repr(stage) for stage in chain.stages],
        "shared": {stage.name: str(hf.shared(stage, before)) for stage, before in pairs},
        "links": {stage.name: type(stage.link).__name__ for stage, _ in pairs},
        "alpha": {stage.name: chain[stage.name].link_settings.get("alpha") for stage, _ in pairs},
        "traces": traces,
        "texts": examples_shown,
        "asked": asked,
    }


def kept_as(setting: str) -> str:
    """The folder of a trace with this setting."""
    return setting.replace(" + ", "-").replace(" ", "-").lower()


def chosen_tweets(chain: Chain, query: Query, test: Texts) -> tuple[Record, Any]:
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
    asked = {
        words: {
            "test_row": test.rows[place],
            "text": shown(test.texts[place]),
            "label": int(labels[place]),
            "probability_of_the_label": right[place].item(),
        }
        for words, place in places.items()
    }
    return asked, query.data.of([query.data.rows[place] for place in places.values()], "the chosen tweets")
