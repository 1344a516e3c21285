"""The tables of `word-vectors`."""

from collections.abc import Callable, Iterator
from typing import Any

from experiments.pages.cells import FIGURES, NOT_RUN, Found, agreed, cost, figures, markdown, mean, seeds_of
from experiments.pages.solved_again import by_choice
from experiments.word_vectors.experiment import OURS

Choice = tuple[str, str, list[Found]]


def _choices(result: Found) -> Iterator[Choice]:
    """Variant, what is taken out, and its record in each seed."""
    for variant, seeds in result["seeds"].items():
        for groups in (False, True):
            for choice, found in by_choice(seeds, groups=groups).items():
                yield variant, choice, found


def vector_agreement(result: Found) -> str:
    """Ours, for every variant and choice."""
    rows = [
        [variant, choice, len(found), *figures(OURS, [each["estimators"][OURS] for each in found])]
        for variant, choice, found in _choices(result)
    ]
    return markdown(["trained again", "taken out (n first)", "seeds", *FIGURES.values()], rows)


def vector_controls(result: Found) -> str:
    """Every estimator by its ranks; of groups this is the linear datamodelling score."""
    names, rows = list[str](), []
    for variant, choice, found in _choices(result):
        names = list(found[0]["estimators"])
        each = [agreed([one["estimators"][name] for one in found], "spearman_r", ".2f") for name in names]
        rows.append([variant, choice, len(found), *each])
    return markdown(["trained again", "taken out (n first)", "seeds", *names], rows)


def vector_truth(result: Found) -> str:
    """How large effects are and how far runs agree; what is solved exactly has no runs to compare."""
    of = {"reliability": ".2f", "rank_reliability": ".2f", "single": ".2f", "noise_floor": ".1e"}
    rows = []
    for variant, choice, found in _choices(result):
        effect = mean((each["mean_absolute_effect"] for each in found), ".1e")
        known = [each["reliability"] for each in found if each["reliability"]]
        rows.append([variant, choice, effect, *(_over(known, what, form) for what, form in of.items())])
    words = ["reliability of the mean of runs", "the same by ranks", "of one run", "noise floor, nats"]
    return markdown(["trained again", "taken out (n first)", "mean absolute effect, nats (95 %)", *words], rows)


def _over(known: list[Found], what: str, form: str) -> str | None:
    return mean((each[what] for each in known), form) if known else None


def vector_stages(result: Found) -> str:
    """What each stage reached, seed by seed and at the larger size."""
    large = {"larger size": result["large"]["stages"]} if result.get("large") else {}
    rows = [
        [
            *(seed, stage, f"{fact['parameters']:,}", f"{fact['examples']:,}", f"{fact['weight_decay']:g}"),
            *(f"{fact['gradient_norm']:.0e}", f"{fact['seconds']:.0f}"),
            *(_classified(fact.get(split)) for split in ("train", "test")),
        ]
        for seed, facts in {**result["stages"], **large}.items()
        for stage, fact in facts.items()
    ]
    head = ["seed", "stage", "parameters", "examples", "weight decay", "gradient norm", "seconds"]
    told = "loss (that of the labels' shares), accuracy (share of the commoner label)"
    return markdown([*head, f"training tweets: {told}", "test tweets: the same"], rows)


def _classified(fit: Found | None) -> str | None:
    if fit is None:
        return None
    accuracy, share = 100 * fit["accuracy"], 100 * fit["largest_share"]
    return f"{fit['loss']:.4f} ({fit['loss_of_shares']:.4f}), {accuracy:.1f} % ({share:.1f} %)"


def vector_large(result: Found) -> str:
    """What scoring the larger size took."""
    large = result["large"]
    seconds, solved = large["seconds"], large["pretrain_solution"]
    traced: Any = seconds["tracing"]
    solving, scoring = (f"{work} stage 'pretrain'" for work in ("solving", "scoring"))
    facts = {
        "words": f"{large['words']:,}",
        "parameters of the first stage": f"{large['stages']['pretrain']['parameters']:,}",
        "lines scored": f"{large['stages']['pretrain']['examples']:,}",
        "pairs": f"{large['pairs']:,}",
        "system of the first stage": f"`{solved['system']}`",
        "products": solved["products"],
        "measured relative residual": f"{solved['relative_residual']:.0e}",
        "seconds, reading and drawing pairs": f"{seconds['reading']:.0f}",
        "seconds, solving the first stage": f"{traced[solving]:.0f}",
        "seconds, scoring the lines": f"{traced[scoring]:.0f}",
        "seconds, the whole trace": f"{seconds['trace']:.0f}",
        "peak memory, MB (before the trace)": (
            f"{large['peak_bytes']['in all'] / 1e6:,.0f} ({large['peak_bytes']['before tracing'] / 1e6:,.0f})"
        ),
    }
    return markdown(["larger size", ""], facts.items())


def vector_lines(result: Found, size: str) -> str:
    """The ends of the ranking for each query."""
    text = ""
    for entry in result["lines"].get(size, []):
        label = "" if "label" not in entry else f" (label: {('negative', 'positive')[entry['label']]})"
        rows = [
            [end, row["row"], f"{row['score']:+.3g}", _plain(row["text"])]
            for end in ("most harmful", "most helpful")
            for row in entry[end.replace(" ", "_")]
        ]
        text += (
            f"Query: {_plain(entry['query'])}{label}; mean absolute score {entry['mean_absolute_score']:.2g} nats.\n\n"
        )
        text += markdown(["end", "row", "score, nats", "line"], rows) + "\n"
    return text.rstrip("\n") + "\n" if text else NOT_RUN


def _plain(text: str) -> str:
    """Text of a data set that cannot break a table, nor be taken for a mark."""
    return text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")


def vector_cost(result: Found) -> str:
    """All of it, and how many retrainings a minute by variant."""
    rows = [
        [
            variant,
            seeds_of(seeds),
            sum(each["retrainings"] for each in seeds),
            mean((each["retrainings_per_minute_and_process"] for each in seeds), ".0f"),
        ]
        for variant, seeds in result["seeds"].items()
    ]
    spent = cost(result, {"seconds in all": f"{result['seconds']:,.0f}"})
    return spent + "\n" + markdown(["trained again", "seeds", "retrainings", "a minute"], rows)


TABLES: dict[str, tuple[Callable[..., str], str]] = {
    "vector-agreement": (vector_agreement, "seeds"),
    "vector-controls": (vector_controls, "seeds"),
    "vector-truth": (vector_truth, "seeds"),
    "vector-stages": (vector_stages, "stages"),
    "vector-large": (vector_large, "large"),
    "vector-lines": (vector_lines, "lines"),
    "vector-cost": (vector_cost, "seeds"),
}
"""Block -> what makes it, and the entry of the result that it needs."""
