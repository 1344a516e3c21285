"""Table 1 of the paper: chosen test tweets, and the sentences that matter most and least to each."""

import time
from typing import Any

import torch
from torch import Tensor

from experiments.corpora import Texts, without_names
from experiments.language.stages import Trained, features_of
from experiments.language.text import examples
from experiments.settings import Settings
from experiments.tracing import solving, warnings_of
from stagetrace import Query, trace
from stagetrace.progress import Progress
from stagetrace.validation import Influence

SAMPLED = 1000
"""Sentences that are looked at, drawn by the seed, as in the paper."""
EACH = 2
"""Tweets of each kind: the first that the classifier gets wrong, and the first that it gets right."""
SHOWN = 3


def chosen_tweets(both: Trained, settings: Settings, score: Influence, progress: Progress) -> dict[str, Any]:
    """The tweets, and for each the sentences of largest and of smallest absolute score, with score and sign.

    Tweets are chosen by a rule, before any score is known: in the order of the test tweets, the first `EACH` wrong ones
    and the first `EACH` right ones. Each is a query of its own. Unit of a score: nats of that tweet's loss.
    """
    started = time.perf_counter()
    places, said = _chosen(both)
    tests = both.read.tests.chosen(places)
    query = Query(examples(tests), reduction="none")
    result = trace(
        both.chain,
        query,
        curvature=score.curvature,
        solver=score.solver,
        of="pretrain",
        out=settings.out / "run",
        progress=progress,
    )
    values, sentences = result["pretrain"].values, both.read.sentences
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(settings.seed))
    sampled = order[:SAMPLED].sort().values
    rows = []
    for tweet, row in enumerate(values):
        ranked = sampled[row[sampled].abs().argsort(descending=True, stable=True)].tolist()
        ends = {"largest": ranked[:SHOWN], "smallest": ranked[-SHOWN:]}
        rows.append(
            {
                "text": without_names(tests.texts[tweet]),
                "row": tests.rows[tweet],
                "label": (tests.labels or ())[tweet],
                **said[tweet],
                "mean_absolute_score": row[sampled].abs().mean().item(),
                "share_harmful": (row[sampled] > 0).double().mean().item(),
                **{
                    end: [{"text": sentences.texts[i], "score": row[i].item()} for i in some]
                    for end, some in ends.items()
                },
            }
        )
    return {
        "sampled": len(sampled),
        "tweets": rows,
        "solving": solving(result, dict(score.curvature), dict.fromkeys(both.chain.names, score.solver)),  # pyright: ignore
        "warnings": warnings_of(result),
        "seconds": time.perf_counter() - started,
    }


def _listed(sentences: Texts, scores: Tensor, places: list[int]) -> list[dict[str, Any]]:
    return [{"text": sentences.texts[place], "score": scores[place].item()} for place in places]


@torch.no_grad()
def _chosen(both: Trained) -> tuple[list[int], list[dict[str, Any]]]:
    """The tweets' places among the test tweets, and what the classifier says of each."""
    last = both.chain.last.stage
    features, labels = features_of(last, examples(both.read.tests))
    chances = last.evaluated.get_submodule("head")(features).softmax(dim=1)
    right = chances.argmax(dim=1) == labels
    places = [place for kind in (~right, right) for place in kind.nonzero()[:EACH, 0].tolist()]
    return places, [
        {"said": int(chances[place].argmax()), "probability_of_its_label": float(chances[place, labels[place]])}
        for place in places
    ]
