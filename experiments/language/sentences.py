"""Table 1 of the paper: chosen test tweets, and the sentences that matter most and least to each."""

import time
from typing import Any

import torch

from experiments import records
from experiments.language.stages import features_of
from experiments.language.text import examples
from experiments.protocol import Prepared
from experiments.records import Record
from experiments.settings import Settings
from experiments.texts import without_names
from stagetrace import Query, trace
from stagetrace.progress import Progress
from stagetrace.validation import Influence

SAMPLED = 1000
"""Sentences that are looked at, drawn by the seed, as in the paper."""
EACH = 2
"""Tweets of each kind: the first that the classifier gets wrong, and the first that it gets right."""
SHOWN = 3


def chosen_tweets(prepared: Prepared, settings: Settings, score: Influence, progress: Progress) -> Record:
    """The tweets, and for each the sentences of largest and of smallest absolute score, with score and sign.

    Tweets are chosen by a rule, before any score is known: in the order of the test tweets, the first `EACH` wrong ones
    and the first `EACH` right ones. Each is a query of its own. Unit of a score: nats of that tweet's loss.
    """
    started = time.perf_counter()
    chosen, sentences = _chosen(prepared), prepared.data.general
    answers = list(chosen.values())
    tests = prepared.data.tests.chosen(chosen)
    curvature: Any = score.curvature
    solver: Any = dict.fromkeys(prepared.chain.names, score.solver)
    options: Any = {"of": "pretrain", "out": settings.out / "run", "progress": progress}
    query = Query(examples(tests), reduction="none")
    result = trace(prepared.chain, query, curvature=curvature, solver=solver, **options)
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(settings.seed))
    sampled = order[:SAMPLED].sort().values
    rows = list[Record]()
    for tweet, row in enumerate(result["pretrain"].values):
        ranked = sampled[row[sampled].abs().argsort(descending=True, stable=True)].tolist()
        rows.append(
            {
                "text": without_names(tests.texts[tweet]),
                "row": tests.rows[tweet],
                "label": (tests.labels or ())[tweet],
                **answers[tweet],
                "mean_absolute_score": row[sampled].abs().mean().item(),
                "share_harmful": (row[sampled] > 0).double().mean().item(),
                **{
                    end: [{"text": sentences.texts[i], "score": row[i].item()} for i in some]
                    for end, some in (("largest", ranked[:SHOWN]), ("smallest", ranked[-SHOWN:]))
                },
            }
        )
    traced = records.of_trace(result, curvature, solver)
    return {"sampled": len(sampled), "tweets": rows, **traced, "seconds": time.perf_counter() - started}


@torch.no_grad()
def _chosen(prepared: Prepared) -> dict[int, Record]:
    """The tweets' places among the test tweets, and what the classifier says of each."""
    last = prepared.chain.last.stage
    features, labels = features_of(last, examples(prepared.data.tests))
    chances = last.evaluated.get_submodule("head")(features).softmax(dim=1)
    right = chances.argmax(dim=1) == labels
    return {
        place: {"said": int(chances[place].argmax()), "probability_of_its_label": float(chances[place, labels[place]])}
        for kind in (~right, right)
        for place in kind.nonzero()[:EACH, 0].tolist()
    }
