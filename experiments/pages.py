"""The tables of the experiments' pages: `python -m experiments.pages [--results DIR] [--docs DIR] [--check]`.

A page, `docs/experiments/NAME.md`, is prose with blocks `<!-- table: WORDS -->` ... `<!-- end -->`. What stands between
the marks is made here from `experiments/results/NAME/result.json`, so no number in a table is typed by hand. The first
of the words is a name of `TABLES`, the others are given to it; `README.md` is the page of all experiments.

An interval is written `mean (low to high)`: 95 %, Student's t over seeds; of a single seed, the bootstrap over pairs.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.intervals import over_seeds
from experiments.paper import IDENTITY, OURS
from stagetrace import Identity
from stagetrace.errors import refuse
from stagetrace.validation import EmbeddingSimilarity, GradientDot, Influence, Random

Found = Mapping[str, Any]
BLOCK = re.compile(r"(<!-- table: ([^>]+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NOT_RUN = "Not run yet.\n"
BOOTSTRAP = {
    "pearson_r": "pearson_interval",
    "spearman_r": "spearman_interval",
    "slope": "slope_interval",
    "lds": "interval",
}
"""Of each figure, the name of its interval over bootstrap samples."""
FIGURES = {
    "pearson_r": "Pearson r (95 %)",
    "spearman_r": "Spearman (95 %)",
    "slope": "slope, true over predicted (95 %)",
    "without_largest": "r without the largest prediction (95 %)",
}
CONTROLS = Influence(Identity(), name=IDENTITY), GradientDot(), EmbeddingSimilarity("embedding"), Random()
RANKS_ONLY = {each.name for each in CONTROLS if each.unit is None}
"""Estimators without a unit: their slope means nothing."""
CAPTIONS = {
    "agreement": "Predicted against true change of the query loss, with the line of equality; negative = it helps.",
    "groups": "Linear datamodelling score by the share of the pretraining examples in a group.",
    "scores": "Scores of the pretraining examples; positive = harmful.",
    "cifar10": "CIFAR-10: mistakes, and the pretraining images most harmful to each; score > 0 = harmful.",
    "mnist": "MNIST: mistakes, and the pretraining images most harmful to each; score > 0 = harmful.",
    "gains": "Change of accuracy in points; + = the accuracy rises.",
}
PAPER: dict[str, tuple[str, str]] = {
    "mnist-frozen": ("section 4.1, figure 2b", "Pearson r about 0.6 (in words)"),
    "cifar-frozen": ("section 4.1, figure 2a", "Pearson r about 0.6 (in words)"),
    "cifar-updated": ("section 4.1, figure 2c", "Pearson r 0.40"),
    "identity-ablation": ("section 4.1, figure 3", "Pearson r 0.17"),
    "resolve": ("not in the paper", "-"),
    "cleansing": ("section 4.2", "+0.28 points over random, one run"),
    "similarity": ("section 4.3, figure 5", "0.055 for A, 0.025 for B"),
    "finetune-size": ("section 4.4, figure 6", '0.15 for D, "much less" than C'),
    "misclassified": ("section 4.1, figure 4", "judged by eye"),
}
CLEANSED = {"none": "58.15", "harmful 10%": "58.36", "random 10%": "58.08"}
SIZES = {"similarity": {"A": "0.055", "B": "0.025"}, "finetune-size": {"D": "0.15"}}
"""The paper's, each read in its text."""


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; what is None becomes '-'."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join("-" if cell is None else str(cell) for cell in line) + " |\n" for line in lines)


def spread(found: Found, form: str = ".2f") -> str:
    """Of `over_seeds`: the mean and its interval."""
    mean, low, high = found["mean"], found["low"], found["high"]
    if mean is None:
        return "-"
    return f"{mean:{form}}" if low is None else f"{mean:{form}} ({low:{form}} to {high:{form}})"


def mean(values: Iterable[float | None], form: str = ".2f") -> str:
    """Over seeds, with its interval; '-' where no value is known, and how many are where not all."""
    found = list(values)
    known = [value for value in found if value is not None]
    some = "" if len(known) == len(found) else f", {len(known)} of {len(found)} known"
    return spread(over_seeds(known), form) + some if known else "-"


def agreed(records: Sequence[Found], figure: str, form: str = ".3f") -> str:
    """A figure of one estimator over seeds; of one seed with its bootstrap interval."""
    interval = records[0].get(BOOTSTRAP.get(figure, ""))
    if len(records) > 1 or interval is None or None in interval:
        return mean((record[figure] for record in records), form)
    low, high = interval
    return spread({"mean": records[0][figure], "low": low, "high": high}, form)


def figures(name: str, records: Sequence[Found]) -> list[str]:
    """The agreement of one estimator; its records over seeds."""
    return ["-" if figure == "slope" and name in RANKS_ONLY else agreed(records, figure) for figure in FIGURES]


def seeds_of(found: Sequence[object]) -> str:
    return f"{len(found)} seed{'s' if len(found) != 1 else ''}"


def truth(choices: Sequence[Found]) -> str:
    """How far the truth of a choice of removals can be trusted."""
    rows = [("mean absolute effect (query loss)", mean((each["mean_absolute_effect"] for each in choices), ".1e"))]
    known = [each["reliability"] for each in choices if each["reliability"]]
    if known:
        of = {
            f"reliability of the mean of {known[0]['runs']} runs": ("reliability", ".2f"),
            "the same by ranks": ("rank_reliability", ".2f"),
            "reliability of one run": ("single", ".2f"),
            "ceiling of r": ("ceiling", ".2f"),
            "noise floor (query loss)": ("noise_floor", ".1e"),
        }
        rows += [(words, mean((each[what] for each in known), form)) for words, (what, form) in of.items()]
    return markdown(("measured truth", f"mean (95 %), {seeds_of(choices)}"), rows)


def cost(result: Found, spent: Mapping[str, object]) -> str:
    """What it ran on, and what it took."""
    on, torch = result["hardware"], result["versions"]["torch"]
    facts = {
        "hardware": f"{on['device']}, {on['kind']}",
        "cores": on["cores"],
        "threads": on["threads"],
        "torch": torch,
    }
    return markdown([*facts, *spent], [[*facts.values(), *spent.values()]])


def retrainings(runs: Sequence[Found]) -> dict[str, object]:
    """How many, and how many a process makes a minute, over all runs."""
    counts = [run["retrainings"] for run in runs]
    rates = [run["retrainings_per_minute_and_process"] for run in runs]
    minutes = sum(count / rate for count, rate in zip(counts, rates, strict=True) if rate)
    a_minute = f"{sum(counts) / minutes:.0f}" if minutes else None
    return {"retrainings": f"{sum(counts):,}", "retrainings per minute and process": a_minute}


# The paper's protocol


def each_seed(result: Found, choice: str) -> list[Found]:
    return [seed["choices"][choice] for seed in result["retraining"]["each_seed"]]


def compared(result: Found) -> str:
    """Paper beside ours, by the estimator that stands first in the result."""
    name = result.get("estimator", OURS)
    rows: list[list[object]] = [[f"paper: {result['paper']}", *[None] * (len(FIGURES) + 1)]]
    for choice in ("largest", "random"):
        found = each_seed(result, choice)
        records = [each["estimators"][name] for each in found]
        ceiling = mean((each["reliability"] or {}).get("ceiling") for each in found)
        what = f"ours: {name}, {choice}, n = {records[0]['n']}, {seeds_of(found)}"
        rows.append([what, *figures(name, records), ceiling])
    return markdown(["", *FIGURES.values(), "ceiling of r (95 %)"], rows)


def agreement(result: Found, choice: str) -> str:
    """A row an estimator, and below it how far the truth can be trusted."""
    found = each_seed(result, choice)
    names = found[0]["estimators"]
    rows = [[name, *figures(name, [each["estimators"][name] for each in found])] for name in names]
    head = f"estimator, n = {names[OURS]['n']}, {seeds_of(found)}"
    return markdown([head, *FIGURES.values()], rows) + "\n" + truth(found)


def protocol(result: Found) -> str:
    """How stages were trained, and are trained again."""
    asked, seeds = result["protocol"], result["retraining"]["each_seed"]
    table: dict[str, list[object]] = {}
    for stage in ("pretrain", "finetune"):
        each = [seed["training"][stage] for seed in seeds]
        plan = each[0]["plan"]
        table[stage] = [
            f"{result['counts'][stage]['train']:,}",
            f"{each[0]['parameters']:,}",
            f"{plan['epochs']} epochs, rate {plan['rate']:g}, batches of {plan['batch']}",
            f"{plan['weight_decay']:g}",
            mean((100 * one["test"]["accuracy"] for one in each), ".1f"),
            mean((one["gradient_norm"] for one in each), ".1e"),
            f"{asked['steps'][stage]} steps, rate {asked['rate']:g}",
        ]
    words = ["examples", "parameters trained", "training (Adam, cosine)", "weight decay"]
    words += [f"test accuracy, % (95 %, {seeds_of(seeds)})", "gradient norm (95 %)", "trained again"]
    said = f"Trained again: {asked['start']}; the mean of {asked['orders']} batch orders, each with its own control.\n"
    return markdown(["", *table], zip(words, *table.values(), strict=True)) + "\n" + said


def scoring(result: Found) -> str:
    """The whole scoring job of the first seed, with the paper's dampings."""
    said, counts = result["solving"], result["counts"]
    rows = [
        [stage, f"`{one['system']}`", one["products"], f"{one['relative_residual']:.0e}", one["status"]]
        + [f"{one[end]:.2g}" for end in ("smallest_ritz_value", "largest_ritz_value")]
        for stage, one in said.items()
    ]
    head = ["stage", "system", "products", "relative residual", "status", "smallest Ritz value", "largest Ritz value"]
    seconds, examples = result["seconds"]["tracing"]["in all"], sum(each["train"] for each in counts.values())
    on = result["hardware"]
    words = f"\nBoth solves and the scores of all {examples:,} examples: {seconds:.1f} s"
    return markdown(head, rows) + f"{words} ({on['device']}, {on['cores']} cores).\n"


def paper_cost(result: Found) -> str:
    seconds = f"{result['seconds']['in all']:,.0f}"
    return cost(result, {"seconds of the last call": seconds, **retrainings(result["retraining"]["each_seed"])})


# Stages solved again


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


# The other experiments


def cleansed(result: Found) -> str:
    """Paper beside ours: accuracy on the half that no score has seen, and paired differences."""
    rows = []
    for name, accuracy in result["accuracy"].items():
        less_none, less_random = (result[what].get(name) for what in ("less_none", "less_random"))
        gains = [each and spread(each["accuracy"]["measured"], "+.2f") for each in (less_none, less_random)]
        again = len(result["seeds"][0]["models"][name])
        rows.append([name, again, CLEANSED.get(name), spread(accuracy), *gains])
    seeds = seeds_of(result["seeds"])
    head = ["left out", "networks a seed", "paper: accuracy, % (one run)", f"ours: accuracy, % (95 %, {seeds})"]
    return markdown([*head, "less none, points (95 %)", "less as many at random, points (95 %)"], rows)


def halves(result: Found) -> str:
    """The same differences by the part of the test set, and of the loss."""
    rows = [
        [
            name,
            *(spread(each["accuracy"][part], "+.2f") for part in ("measured", "query", "whole")),
            spread(each["loss"]["measured"], "+.4f"),
        ]
        for name, each in result["less_random"].items()
    ]
    parts = ["half that no score has seen", "half that was asked about", "whole test set"]
    heads = [f"{part}: accuracy, points (95 %)" for part in parts]
    return markdown(["left out, less as many at random", *heads, "unseen half: loss, nats (95 %)"], rows)


def left_out(result: Found) -> str:
    """What the examples that were left out are like."""
    rows = [
        [
            f"pretraining loss, nats, {what}",
            mean(seed["harmful_examples"][f"mean_loss_of_{what}"] for seed in result["seeds"]),
        ]
        for what in ("all", "harmful", "random", "helpful")
    ]
    agree = mean(seed["agreement_of_scores_between_models"] for seed in result["seeds"])
    rows.append(["correlation of the scores of two models", agree])
    return markdown(["", f"mean (95 %), {seeds_of(result['seeds'])}"], rows)


def cleansing_cost(result: Found) -> str:
    seeds = result["seeds"]
    network = [one["seconds"] for seed in seeds for several in seed["models"].values() for one in several]
    trace = [one["seconds"]["in all"] for seed in seeds for one in seed["scoring"]]
    spent = {
        "networks trained (both stages)": len(network),
        "networks trained per minute": f"{60 * len(network) / sum(network):.1f}",
        "seconds to score all examples by one network": f"{sum(trace) / len(trace):.0f}",
    }
    return cost(result, spent)


def sizes(result: Found) -> str:
    """Paper beside ours: mean absolute scores and their ratio."""
    paper, words = SIZES[result["experiment"]], result["what"]
    means, sums = result["mean_absolute"], result["mean_absolute_of_sums"]
    rows = []
    for name in means:
        form = (".4f", ".2f") if name in words else (".2f", ".2f")
        label = f"{name}: {words[name]}" if name in words else f"ratio {name}"
        rows.append([label, paper.get(name), spread(means[name], form[0]), spread(sums[name], form[1])])
    head = f"mean absolute score, query = mean test loss (95 %, {seeds_of(result['seeds'])})"
    return markdown(["", "paper (one run)", f"ours: {head}", "ours: query = sum of test losses (95 %)"], rows)


def sizes_by_seed(result: Found) -> str:
    """Each seed, with how well its networks do."""
    names = list(result["what"])
    rows = [
        [seed["seed"], f"{100 * seed['pretrain']['test']['accuracy']:.1f}"]
        + [f"{100 * seed[name]['training']['test']['accuracy']:.1f}" for name in names]
        + [f"{seed[name]['mean_absolute']:.4f}" for name in names]
        + [f"{result['mean_absolute'][' over '.join(names)]['each'][place]:.2f}"]
        for place, seed in enumerate(result["seeds"])
    ]
    head = ["seed", "test accuracy, %, pretrained", *(f"{name}: test accuracy, %" for name in names)]
    return markdown([*head, *(f"{name}: mean absolute score" for name in names), "ratio"], rows)


def sizes_cost(result: Found) -> str:
    seeds, names = result["seeds"], list(result["what"])
    trained = [seed["pretrain"]["seconds"] + sum(seed[name]["training"]["seconds"] for name in names) for seed in seeds]
    heads = ["networks trained", "seconds of training in all"]
    return cost(result, dict(zip(heads, [len(seeds) * (1 + len(names)), f"{sum(trained):,.0f}"], strict=True)))


def mistakes(result: Found) -> str:
    """Each test image that was asked about."""
    rows = [
        [
            *(dataset, each["test_row"], each["class"], each["said"], f"{each['probability_of_what_was_said']:.1%}"),
            *(f"{each['mean_score_of_most_harmful']:+.2f}", f"{each['most_harmful_over_mean_absolute']:.0f}"),
        ]
        for dataset, found in result["data_sets"].items()
        for each in found["misclassified"]
    ]
    head = ["data set", "row of the test set", "class", "said", "probability of what was said"]
    return markdown([*head, "mean score of the most harmful (+ = harmful)", "times the mean absolute score"], rows)


def nature(result: Found) -> str:
    """The most harmful pretraining images against all, by the pretrained model."""
    rows = []
    for dataset, found in result["data_sets"].items():
        said = found["most_harmful"]
        for what, words, form in (
            ("median_loss", "median loss, nats", ".2g"),
            ("mean_loss", "mean loss, nats", ".2g"),
            ("median_margin", "median margin, logits", ".2f"),
            ("share_wrong", "share that the pretrained model gets wrong", ".1%"),
        ):
            rows.append(
                [dataset, said["images"], words, *(f"{said[what][of]:{form}}" for of in ("most_harmful", "all"))]
            )
        rows.append(
            [
                dataset,
                said["images"],
                "share in the top tenth of the loss",
                f"{said['share_in_top_tenth_of_loss']:.1%}",
                "10.0%",
            ]
        )
    return markdown(["data set", "n", "", "most harmful images", "all pretraining images"], rows)


def mistakes_cost(result: Found) -> str:
    seconds = sum(stage["seconds"] for found in result["data_sets"].values() for stage in found["training"].values())
    return cost(
        result, {"networks trained": 2 * len(result["data_sets"]), "seconds of training in all": f"{seconds:,.0f}"}
    )


def headline(name: str, result: Found | None) -> str:
    """One line for the page of all experiments."""
    if result is None or (name in AGREEING and not result.get("retraining")):
        return NOT_RUN.strip().rstrip(".").lower()
    if name in AGREEING:
        records = [each["estimators"][result.get("estimator", OURS)] for each in each_seed(result, "largest")]
        return f"r {agreed(records, 'pearson_r', '.2f')}, largest, n = {records[0]['n']}, {seeds_of(records)}"
    if name == "cleansing":
        found = result["less_random"]["harmful 10%"]["accuracy"]["measured"]
        return f"{spread(found, '+.2f')} points over random, {seeds_of(result['seeds'])}"
    if name in SIZES:
        ratio = " over ".join(result["what"])
        return f"{ratio}: {spread(result['mean_absolute'][ratio])}, {seeds_of(result['seeds'])}"
    return "see the page"


def overview(results: Path) -> str:
    """A row an experiment."""
    rows = [
        [f"[{name}]({name}.md)", where, paper, headline(name, read(results, name))]
        for name, (where, paper) in PAPER.items()
    ]
    return markdown(["experiment", "in the paper", "paper", "ours (95 % over seeds)"], rows)


AGREEING = ("mnist-frozen", "cifar-frozen", "cifar-updated", "identity-ablation")
TABLES: dict[str, tuple[Callable[..., str], str]] = {
    "compared": (compared, "retraining"),
    "agreement": (agreement, "retraining"),
    "protocol": (protocol, "retraining"),
    "scoring": (scoring, "solving"),
    "paper-cost": (paper_cost, "retraining"),
    "singles": (singles, "data_sets"),
    "controls": (controls, "data_sets"),
    "lds": (lds, "data_sets"),
    "stages": (stages, "data_sets"),
    "resolve-cost": (resolve_cost, "data_sets"),
    "cleansed": (cleansed, "seeds"),
    "halves": (halves, "seeds"),
    "left-out": (left_out, "seeds"),
    "cleansing-cost": (cleansing_cost, "seeds"),
    "sizes": (sizes, "seeds"),
    "sizes-by-seed": (sizes_by_seed, "seeds"),
    "sizes-cost": (sizes_cost, "seeds"),
    "mistakes": (mistakes, "data_sets"),
    "nature": (nature, "data_sets"),
    "mistakes-cost": (mistakes_cost, "data_sets"),
}
"""Block -> what makes it, and the entry of the result without which there is nothing to show yet."""


def read(results: Path, name: str) -> Found | None:
    path = results / name / "result.json"
    return json.loads(path.read_text()) if path.is_file() else None


def pictures(page: Path, results: Path) -> str:
    """The figures of the page's experiment, linked from where the page is."""
    found = sorted((results / page.stem).glob("*.png"))
    links = [
        (os.path.relpath(path, page.parent).replace(os.sep, "/"), CAPTIONS.get(path.stem, path.stem)) for path in found
    ]
    return "\n".join(f"![{words}]({link})\n\n{words}\n" for link, words in links) or NOT_RUN


def filled(page: Path, results: Path) -> str:
    """The page with its blocks made anew."""

    def block(found: re.Match[str]) -> str:
        name, *words = found[2].split()
        if name == "overview":
            made = overview(results)
        elif name == "figures":
            made = pictures(page, results)
        elif name not in TABLES:
            refuse(f"{page.name}: there is no table '{name}'; there are: overview, figures, {', '.join(TABLES)}")
        else:
            make, needed = TABLES[name]
            result = read(results, page.stem)
            made = make(result, *words) if result is not None and result.get(needed) else NOT_RUN
        return f"{found[1]}\n{made}\n{found[4]}"

    text = page.read_text()
    if len(BLOCK.findall(text)) != text.count("<!-- table:"):
        refuse(f"{page.name}: a block '<!-- table: ... -->' without its '<!-- end -->'")
    return BLOCK.sub(block, text)


def stale(docs: Path, results: Path) -> dict[Path, str]:
    """The pages whose tables are not those of the results -> what they should be."""
    made = {page: filled(page, results) for page in sorted(docs.glob("*.md"))}
    return {page: text for page, text in made.items() if text != page.read_text()}


ROOT = Path(__file__).parents[1]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = ROOT / "experiments" / "results",
    docs: Annotated[Path, typer.Option(help="Folder of the pages.")] = ROOT / "docs" / "experiments",
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if a page is not up to date.")] = False,
) -> None:
    """Fill the tables of the experiments' pages from their results."""
    found = stale(docs, results)
    for page, text in found.items():
        if not check:
            page.write_text(text)
        typer.echo(f"{'not up to date' if check else 'written'}: {page.name}")
    if check and found:
        typer.echo("type: python -m experiments.pages", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
