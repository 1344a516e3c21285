"""The tables of predicted against true effects, for every experiment that retrains."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.pages.cells import NOT_RUN, Found, agreed, markdown, mean, seeds_of

FIGURES = {
    "pearson_r": "Pearson r (95 %)",
    "spearman_r": "Spearman (95 %)",
    "slope": "slope, true over predicted (95 %)",
    "without_largest": "r without the largest prediction (95 %)",
}
RANKS_ONLY = ("identity curvature", "gradient dot product", "embedding similarity", "BM25", "random")
"""Estimators whose predictions are not in units of the loss: their slope means nothing."""
TRUTH = {
    "reliability": ("reliability of the mean of runs", ".2f"),
    "rank_reliability": ("the same by ranks", ".2f"),
    "single": ("reliability of one run", ".2f"),
    "ceiling": ("ceiling of r", ".2f"),
    "noise_floor": ("noise floor (query loss)", ".1e"),
}
LABELS = ("data set", "link", "variant")


class Comparison(NamedTuple):
    """What was removed from a chain (`where` tells which), and a record of predictions and truth for each seed."""

    where: tuple[str, ...]
    choice: str
    seeds: list[Found]

    def of(self, name: str) -> list[Found]:
        """One estimator's agreement, seed by seed."""
        return [seed["estimators"][name] for seed in self.seeds]


def runs(result: Found) -> list[tuple[tuple[str, ...], list[Found]]]:
    """The validations of a result, whichever experiment it is of: data set, link and variant, and what each seed found.

    Results differ in how deep they nest: by data set, by variant, by chain, or not at all.
    """
    if "data_sets" in result:
        return [
            ((dataset, link, variant), seeds)
            for dataset, links in result["data_sets"].items()
            for link, variants in links.items()
            for variant, seeds in variants.items()
            if variant != "stages"
        ]
    if "small" in result:
        return [((), result["small"]["each_seed"])]
    if "retraining" not in result:
        return [((variant,), seeds) for variant, seeds in result.get("seeds", {}).items()]
    if "each_seed" in result["retraining"]:
        return [((), result["retraining"]["each_seed"])]
    chains = result["retraining"].items()
    return [((chain,), [{**s, "choices": {"groups": s}} for s in found["each_seed"]]) for chain, found in chains]


def comparisons(result: Found, *wanted: str) -> Iterator[Comparison]:
    """Singles, then groups, of every run; of those only that `wanted` names: a choice, "singles", "groups", a chain."""
    for where, seeds in runs(result):
        names = dict.fromkeys(name for seed in seeds for name in seed["choices"])
        for choice in sorted(names, key=lambda name: "groups" in name):
            kinds = {choice, "groups" if "groups" in choice else "singles", *where}
            if set(wanted) <= kinds:
                found = [seed["choices"][choice] for seed in seeds if choice in seed["choices"]]
                yield Comparison(where, choice, found)


def labels(where: tuple[str, ...]) -> tuple[str, ...]:
    """The heads of the columns that say where."""
    return LABELS[len(LABELS) - len(where) :]


def figures(name: str, records: Sequence[Found]) -> list[str]:
    """The agreement of one estimator; its records over seeds."""
    return ["-" if figure == "slope" and name in RANKS_ONLY else agreed(records, figure) for figure in FIGURES]


def ours(result: Found, *wanted: str) -> str:
    """The estimator that stands first, a row for each choice of removals, below the paper's if it has one."""
    rows, head, name = list[list[object]](), list[str](), ""
    for found in comparisons(result, *wanted):
        name = result.get("estimator") or next(iter(found.seeds[0]["estimators"]))
        records = found.of(name)
        ceiling = mean((seed["reliability"] or {}).get("ceiling") for seed in found.seeds)
        counts = [found.choice, records[0]["n"], len(records)]
        rows.append([*found.where, *counts, *figures(name, records), ceiling])
        head = [*labels(found.where), "removed", "n", "seeds", *FIGURES.values(), "ceiling of r (95 %)"]
    if isinstance(result.get("paper"), str):
        rows.insert(0, [f"paper: {result['paper']}", *[None] * (len(head) - 1)])
    return f"Ours: {name}.\n\n" + markdown(head, rows) if rows else NOT_RUN


def agreement(result: Found, *wanted: str) -> str:
    """A row an estimator, and below it how far the truth can be trusted; a pair of tables for each choice."""
    made = list[str]()
    for found in comparisons(result, *wanted):
        rows = [
            [name, *figures(name, found.of(name)), " ".join(_short(each["pearson_r"]) for each in found.of(name))]
            for name in found.seeds[0]["estimators"]
        ]
        n = next(iter(found.seeds[0]["estimators"].values()))["n"]
        head = f"estimator, n = {n}, {seeds_of(found.seeds)}"
        made += [markdown([head, *FIGURES.values(), "r, seed by seed"], rows), truth(found.seeds)]
    return "\n".join(made) or NOT_RUN


def spearman(result: Found, *wanted: str) -> str:
    """Every estimator by its ranks (of groups, the linear datamodelling score), a row for each choice of removals."""
    names, rows, head = dict[str, None](), list[list[object]](), list[str]()
    for found in comparisons(result, *wanted):
        names |= dict.fromkeys(found.seeds[0]["estimators"])
        each = [agreed(found.of(name), "spearman_r", ".2f") for name in found.seeds[0]["estimators"]]
        rows.append([*found.where, found.choice, len(found.seeds), *each])
        head = [*labels(found.where), "removed (n first)", "seeds", *names]
    return markdown(head, rows) if rows else NOT_RUN


def by_seed(result: Found, *wanted: str) -> str:
    """Reliability of the truth and Spearman's correlations, seed by seed."""
    rows, names = list[list[object]](), list[str]()
    for found in comparisons(result, *wanted):
        names = list(found.seeds[0]["estimators"])
        for place, seed in enumerate(found.seeds):
            each = [agreed([seed["estimators"][name]], "spearman_r", ".2f") for name in names]
            rows.append([place, f"{seed['reliability']['reliability']:.2f}", *each])
    return markdown(["seed", "reliability", *(f"{name}: Spearman (95 % over groups)" for name in names)], rows)


def truth(seeds: Sequence[Found]) -> str:
    """How far the truth of a choice of removals can be trusted."""
    return markdown(("measured truth", f"mean (95 %), {seeds_of(seeds)}"), zip(*_truth(seeds), strict=True))


def truths(result: Found, *wanted: str) -> str:
    """The same, a row for each choice of removals; what is solved exactly has no runs to compare."""
    rows, head = list[list[object]](), list[str]()
    for found in comparisons(result, *wanted):
        words, values = _truth(found.seeds)
        rows.append([*found.where, found.choice, *values])
        head = max(head, [*labels(found.where), "removed (n first)", *words], key=len)
    return markdown(head, [[*row, *[None] * (len(head) - len(row))] for row in rows])


def _truth(seeds: Sequence[Found]) -> tuple[list[str], list[str]]:
    """Of each fact about the truth its words and its mean over seeds."""
    words = ["mean absolute effect (query loss)"]
    values = [mean((each["mean_absolute_effect"] for each in seeds), ".1e")]
    known = [each["reliability"] for each in seeds if each["reliability"]]
    if known:
        count = f"of {known[0]['runs']} runs"
        words += [text.replace("of runs", count) for text, _ in TRUTH.values()]
        values += [mean((each[what] for each in known), form) for what, (_, form) in TRUTH.items()]
    return words, values


def lds(result: Found, *wanted: str) -> str:
    """Linear datamodelling scores: a table for each run, a row an estimator, a column a size of group."""
    text, groups = "", dict[tuple[str, ...], list[Comparison]]()
    for found in comparisons(result, "groups"):
        if ("adam" in found.where) == ("adam" in wanted):
            groups.setdefault(found.where, []).append(found)
    for where, several in groups.items():
        first = several[0].seeds
        over = f"95 % over {seeds_of(first)}" if len(first) > 1 else "one seed; 95 % over groups"
        sizes = [f"{float(found.choice.split(' of ')[1]):.0%}" for found in several]
        rows = [
            [name, *(agreed([seed["lds"][name] for seed in found.seeds], "lds", ".2f") for found in several)]
            for name in first[0]["lds"]
        ]
        count = next(iter(first[0]["lds"].values()))["groups"]
        text += f"**{', '.join(where)}**, {count} groups of each size:\n\n"
        text += markdown(["estimator", *(f"groups of {size}, LDS ({over})" for size in sizes)], rows) + "\n"
        for size, found in zip(sizes, several, strict=True):
            if found.seeds[0]["reliability"]:
                text += f"Truth, groups of {size}:\n\n" + truth(found.seeds) + "\n"
    return text.rstrip("\n") + "\n" if text else NOT_RUN


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def settings(result: Found, part: str) -> str:
    """Of `choices`, a table for each truth of a part: a row a setting, for each choice r, Spearman and slope."""
    made = list[str]()
    for title, choices in result["tables"].get(part, {}).items():
        head = [f"{title}: setting", *(f"{choice}: r / Spearman / slope" for choice in choices)]
        rows = [
            [name, *(" / ".join(f"{found[name][f]:.2f}" for f in list(FIGURES)[:3]) for found in choices.values())]
            for name in next(iter(choices.values()))
        ]
        made.append(markdown(head, rows))
    return "\n".join(made) or NOT_RUN
