"""The tables of `resolve`: stages solved again."""

from collections.abc import Sequence

from experiments.pages.cells import (
    FIGURES,
    NOT_RUN,
    Found,
    agreed,
    cost,
    figures,
    markdown,
    retrainings,
    seeds_of,
    truth,
)
from experiments.resolve import OURS


def runs_of(result: Found) -> list[tuple[str, str, str, list[Found]]]:
    """Data set, link, variant, and its seeds."""
    return [
        (dataset, link, variant, seeds)
        for dataset, links in result["data_sets"].items()
        for link, variants in links.items()
        for variant, seeds in variants.items()
        if variant != "stages"
    ]


def by_choice(seeds: Sequence[Found], *, groups: bool) -> dict[str, list[Found]]:
    """Choice -> its record in each seed that has it."""
    names = dict.fromkeys(name for seed in seeds for name in seed["choices"] if ("groups" in name) == groups)
    return {name: [seed["choices"][name] for seed in seeds if name in seed["choices"]] for name in names}


def singles(result: Found) -> str:
    """Single examples, the multi-stage score."""
    rows = [
        [dataset, link, variant, choice, len(found), *figures(OURS, [each["estimators"][OURS] for each in found])]
        for dataset, link, variant, seeds in runs_of(result)
        for choice, found in by_choice(seeds, groups=False).items()
    ]
    return markdown(["data set", "link", "variant", "taken out (n first)", "seeds", *FIGURES.values()], rows)


def controls(result: Found) -> str:
    """Single examples, every estimator by Spearman's correlation."""
    names, rows = dict[str, None](), []
    for dataset, link, variant, seeds in runs_of(result):
        for choice, found in by_choice(seeds, groups=False).items():
            names |= dict.fromkeys(found[0]["estimators"])
            each = [agreed([one["estimators"][name] for one in found], "spearman_r", ".2f") for name in names]
            rows.append([dataset, link, variant, choice, len(found), *each])
    return markdown(["data set", "link", "variant", "taken out (n first)", "seeds", *names], rows)


def lds(result: Found, *variants: str) -> str:
    """Groups: a table for each data set, link and variant, a row an estimator, a column a share."""
    text = ""
    for dataset, link, variant, seeds in runs_of(result):
        found = by_choice(seeds, groups=True)
        if not found or (variant == "adam") != ("adam" in variants):
            continue
        first = next(iter(found.values()))
        over = f"95 % over {seeds_of(first)}" if len(first) > 1 else "one seed; 95 % over groups"
        shares = {choice: float(choice.split(" of ")[1]) for choice in found}
        heads = [f"groups of {share:.0%}, LDS ({over})" for share in shares.values()]
        rows = [
            [name, *(agreed([each["lds"][name] for each in found[choice]], "lds", ".2f") for choice in shares)]
            for name in first[0]["lds"]
        ]
        groups = first[0]["lds"][OURS]["groups"]
        text += f"**{dataset}, {link}, {variant}**, {groups} groups of each size:\n\n"
        text += markdown(["estimator", *heads], rows) + "\n"
        for choice in shares if first[0]["reliability"] else ():
            text += f"Truth, groups of {shares[choice]:.0%}:\n\n" + truth(found[choice]) + "\n"
    return text.rstrip("\n") + "\n" if text else NOT_RUN


def stages(result: Found) -> str:
    """What was chosen for each stage and reached."""
    rows = [
        [
            *(dataset, link, seed, stage, fact["parameters"], f"{fact['examples']:,}", f"{fact['weight_decay']:g}"),
            *(f"{fact['gradient_norm']:.0e}", f"{fact['train']['loss']:.3f}", f"{100 * fact['test']['accuracy']:.1f}"),
        ]
        for dataset, links in result["data_sets"].items()
        for link, variants in links.items()
        for seed, facts in variants.get("stages", {}).items()
        for stage, fact in facts.items()
    ]
    head = ["data set", "link", "seed", "stage", "parameters", "examples", "weight decay", "gradient norm"]
    return markdown([*head, "training loss", "test accuracy, %"], rows)


def resolve_cost(result: Found) -> str:
    """All of it, then by variant."""
    rows = [
        [dataset, link, variant, len(seeds), *retrainings(seeds).values()]
        for dataset, link, variant, seeds in runs_of(result)
    ]
    head = ["data set", "link", "variant", "seeds", "retrainings", "retrainings per minute and process"]
    return cost(result, {"seconds of the last call": f"{result['seconds']:,.0f}"}) + "\n" + markdown(head, rows)
