"""The tables of `smoothness`: how far derivatives of recorded trainings reach, and what was said beforehand."""

from experiments.pages.cells import Found, markdown, spread

OURS = "exact derivative"
SIZES = "24 at random", "20 groups of 0.02", "20 groups of 0.1"
WORDS = "single examples", "groups of 2 %", "groups of 10 %"


def reached(result: Found) -> str:
    """r and ranks of exact derivative and truth, by way of training; over seeds, each seed in brackets."""
    rows = []
    for way, found in result["summary"]["ways"].items():
        quality = [f"{found['accuracy']['mean']:.1%}", f"{found['query_loss']['mean']:.3f}"]
        both = (f"{_each(found[c]['pearson_r'])} / {found[c]['spearman_r']['mean']:.2f}" for c in SIZES)
        rows.append([way, *quality, *both])
    heads = [f"{words}: r (each seed) / Spearman" for words in WORDS]
    return markdown(["way of training", "accuracy", "query loss, nats", *heads], rows)


def slopes(result: Found) -> str:
    """Slope of truth on prediction."""
    rows = [
        [way, *(_each(found[choice]["slope"]) for choice in SIZES)] for way, found in result["summary"]["ways"].items()
    ]
    return markdown(["way of training", *(f"slope, {words}: mean (each seed)" for words in WORDS)], rows)


def hybrids(result: Found) -> str:
    """r and slope of exact derivatives, and of hybrids with the pretraining idealised."""
    rows = []
    for way, found in result["summary"]["ways"].items():
        for name in (OURS, *found[SIZES[0]]["hybrids"]) if found[SIZES[0]]["hybrids"] else ():
            each = [found[choice]["hybrids"].get(name, found[choice]) for choice in SIZES]
            rows.append([way, name, *(f"{_each(one['pearson_r'])} / {one['slope']['mean']:.2f}" for one in each)])
    heads = [f"{words}: r (each seed) / slope" for words in WORDS]
    return markdown(["way of training", "fine-tuning, then pretraining", *heads], rows)


def beforehand(result: Found) -> str:
    """What the check said of each size before any truth was known, and what r then was; a row a training."""
    rows = []
    for way, seeds in result["seeds"].items():
        for seed in seeds:
            row = [way, seed["seed"], seed["holds_for"]]
            for choice in SIZES[::-1]:
                told, r = seed["choices"][choice]["beforehand"], _r(seed["choices"][choice])
                said = "not tried" if told["expected"] is None else f"{told['expected']:.2f}, {told['at_least']:.2f}"
                row.append(f"{said}: {r:.2f}{' (said to hold)' if told['said_to_hold'] else ''}")
            rows.append(row)
    heads = [f"{words}: expected, at least: r" for words in WORDS[::-1]]
    return markdown(["way of training", "seed", "said to hold for", *heads], rows)


def assurances(result: Found) -> str:
    """How often the check promised, and where it promised too much."""
    promised = kept = 0
    for seeds in result["seeds"].values():
        for seed in seeds:
            for choice in SIZES:
                told = seed["choices"][choice]["beforehand"]
                promised += told["said_to_hold"]
                kept += told["said_to_hold"] and told["held"]
    false = result["summary"]["false_assurances"]
    said = "".join(f"- {words}\n" for words in false) or "None did not.\n"
    return f"Said to hold (r of 0.9 or more): {promised} times; so it was {kept} times. Those that did not:\n\n{said}"


def _r(choice: Found) -> float:
    return choice["estimators"][OURS]["pearson_r"]


def _each(found: Found) -> str:
    return f"{spread({**found, 'low': None})} ({', '.join(f'{each:.2f}' for each in found['each'])})"
