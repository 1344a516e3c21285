"""The tables of the paper's protocol."""

from experiments.pages.cells import FIGURES, Found, cost, figures, markdown, mean, retrainings, seeds_of, truth
from experiments.paper import OURS


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
