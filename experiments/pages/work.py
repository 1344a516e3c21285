"""The tables of what was done: how stages were trained and solved, on what, and how long it took."""

from typing import Any

from experiments.pages.cells import Found, cells, markdown, mean, seeds_of
from experiments.pages.comparisons import labels, runs

FACTS = {
    "parameters": "{:,}",
    "examples": "{:,}",
    "weight_decay": "{:g}",
    "gradient_norm": "{:.0e}",
    "train/loss": "{:.4f}",
    "test/loss": "{:.4f}",
    "test/accuracy": "{:.1%}",
    "test/loss_of_shares": "{:.4f}",
    "test/largest_share": "{:.1%}",
}
SOLVED = {
    "system": "`{}`",
    "products": "{}",
    "relative_residual": "{:.0e}",
    "status": "{}",
    "smallest_ritz_value": "{:.2g}",
    "largest_ritz_value": "{:.2g}",
}
MACHINE = {"hardware/device": "{}", "hardware/kind": "{}", "hardware/cores": "{}", "hardware/threads": "{}"}


def training(result: Found) -> str:
    """How both stages were trained over the seeds, how well, and how they are trained again."""
    result = result.get("small", result)
    asked, seeds = result["protocol"], result.get("each_seed") or result["retraining"]["each_seed"]
    table = dict[str, list[object]]()
    for stage, texts in (("pretrain", "sentences"), ("finetune", "tweets")):
        each: list[Any] = [seed["training"][stage] for seed in seeds]
        plan, rate = each[0]["plan"], asked["rate"]
        rate, batch = (entry[stage] if isinstance(entry, dict) else entry for entry in (rate, asked.get("batch")))
        table[stage] = [
            f"{result['counts'][stage]['train'] if 'counts' in result else asked[texts]:,}",
            f"{each[0]['parameters']:,}",
            f"{plan['epochs']} epochs, rate {plan['rate']:g}, batches of {plan['batch']}",
            f"{plan['weight_decay']:g}",
            mean((one.get("train", {}).get("loss") for one in each), ".3f"),
            mean((one["test"].get("loss") for one in each), ".3f"),
            mean((one["test"].get("accuracy") and 100 * one["test"]["accuracy"] for one in each), ".1f"),
            mean((one["test"].get("commoner_class") and 100 * one["test"]["commoner_class"] for one in each), ".1f"),
            mean((one.get("gradient_norm") for one in each), ".1e"),
            f"{asked['steps'][stage]} steps, rate {rate:g}" + (f", batches of {batch}" if batch else ""),
        ]
    words = ["examples", "parameters trained", "training (Adam, cosine)", "weight decay"]
    words += [f"training loss, nats (95 %, {seeds_of(seeds)})", "test loss, nats (95 %)", "test accuracy, % (95 %)"]
    words += ["accuracy of the commoner answer alone, % (95 %)", "gradient norm (95 %)", "trained again"]
    rows = [row for row in zip(words, *table.values(), strict=True) if set(row[1:]) != {"-"}]
    start = asked.get("start", "warm, with Adam's saved state")
    note = f"Trained again: {start}; the mean of {asked['orders']} batch orders, each with its own control.\n"
    return markdown(["", *table], rows) + "\n" + note


def stages(result: Found) -> str:
    """What each stage reached: those of `resolve` by data set and link, those of `word-vectors` by seed and size."""
    if "data_sets" in result:
        found = {
            (dataset, link, seed): facts
            for dataset, links in result["data_sets"].items()
            for link, variants in links.items()
            for seed, facts in variants.get("stages", {}).items()
        }
    else:
        large = {"larger size": result["large"]["stages"]} if result.get("large") else {}
        found = {(seed,): facts for seed, facts in {**result["stages"], **large}.items()}
    rows = [[*where, stage, *cells(fact, FACTS)] for where, facts in found.items() for stage, fact in facts.items()]
    return _without_empty([*("data set", "link", "seed")[3 - len(next(iter(found))) :], "stage"], FACTS, rows)


def _without_empty(head: list[str], columns: dict[str, str], rows: list[list[Any]]) -> str:
    """A table of these columns, less those that no row has."""
    start = len(head)
    kept = [place for place in range(len(columns)) if any(row[start + place] is not None for row in rows)]
    words = [path.replace("_", " ").replace("/", " ") for path in columns]
    rows = [[*row[:start], *(row[start + place] for place in kept)] for row in rows]
    return markdown([*head, *(words[place] for place in kept)], rows)


def learned(result: Found) -> str:
    """Each stage of `bert` and `gpt` before and after its training, over the seeds that have it."""
    names = dict.fromkeys(stage for stages in result["training"].values() for stage in stages)
    rows = list[list[object]]()
    for name in names:
        found = [stages[name] for stages in result["training"].values() if name in stages]
        what, form = ("accuracy", ".3f") if "accuracy" in found[0]["test"] else ("perplexity", ".0f")
        sizes = cells(found[0], {"examples": "{:,}", "trained_parameters": "{:,}", "parameters": "{:,}"})
        parts = [mean((each[part][what] for each in found), form) for part in ("test_before", "test", "train")]
        rows.append([name, *sizes, what, *parts, mean((each["seconds"] for each in found), ".0f"), len(found)])
    head = ["stage", "examples", "parameters trained", "of", "figure", "test, before", "test, after (95 %)"]
    return markdown([*head, "training texts (95 %)", "seconds of training", "seeds"], rows)


def solving(result: Found) -> str:
    """Every solve of the traces in the result: its system, work, residual, and the extreme Ritz values."""
    result = result["paper"] if isinstance(result.get("paper"), dict) else result
    if "chains" in result:
        traces = {(n, s): t for n, chain in result["chains"].items() for s, t in chain["traces"].items()}
    else:
        traces = {(): {**result, "seconds": result["seconds"]["tracing"]}}
    rows = [[*w, stage, *cells(one, SOLVED)] for w, t in traces.items() for stage, one in t["solving"].items()]
    head = ["chain", "setting"] if "chains" in result else []
    text = markdown([*head, "stage", *(path.replace("_", " ").replace("ritz", "Ritz") for path in SOLVED)], rows)
    if "counts" in result:
        examples = sum(each["train"] for each in result["counts"].values())
        seconds = result["seconds"]["tracing"]["in all"]
        text += f"\nBoth solves and the scores of all {examples:,} examples: {seconds:.1f} s.\n"
    return text


def tracing_cost(result: Found) -> str:
    """Seconds of each trace of the mean test loss, and the process's peak memory until then."""
    columns = {"seconds/in all": "{:.0f}", "peak_memory_of_the_process_MiB": "{:,.0f}"}
    rows = [
        [name, setting, f"{sum(each['examples'] for each in trace['spread'].values()):,}", *cells(trace, columns)]
        for name, chain in result["chains"].items()
        for setting, trace in chain["traces"].items()
    ]
    return markdown(["chain", "setting", "examples scored", "seconds", "peak memory of the process so far, MiB"], rows)


def cost(result: Found) -> str:
    """What it ran on and what it took; below it, where there are several variants, how many retrainings of each."""
    parts = {size: result[size] for size in ("small", "paper") if isinstance(result.get(size), dict)} or {"all": result}
    rows = list[list[object]]()
    for size, found in parts.items():
        retrained = {"small": found} if size == "small" else found if len(parts) == 1 else None
        spent = found.get("seconds", found.get("seconds_of_the_last_call"))
        spent = (spent.get("in all") or spent.get("all of trace")) if isinstance(spent, dict) else spent
        again = [seed for _, seeds in runs(retrained) for seed in seeds] if retrained and retrains(retrained) else []
        networks = [] if again or len(parts) > 1 else seconds_of_networks(result)
        rows.append(
            [
                *(size, *cells(found, MACHINE), result["versions"]["torch"], spent and f"{spent:,.0f}"),
                *(retrainings(again) if again else [None, None]),
                *([len(networks), f"{sum(networks):,.0f}"] if networks else [None, None]),
            ]
        )
    head = ["part", "device", "kind", "cores", "threads", "torch", "seconds of the last call", "retrainings"]
    head += ["retrainings per minute and process", "networks trained", "seconds of training in all"]
    kept = [place for place in range(len(head)) if any(row[place] is not None for row in rows)]
    text = markdown([head[place] for place in kept], [[row[place] for place in kept] for row in rows])
    several = runs(result) if retrains(result) and len(parts) == 1 else []
    if len(several) > 1:
        words = [*labels(several[0][0]), "seeds", "retrainings", "retrainings per minute and process"]
        text += "\n" + markdown(words, [[*where, len(seeds), *retrainings(seeds)] for where, seeds in several])
    return text


def retrains(result: Found) -> bool:
    """Whether the result is of an experiment that compares scores with retraining."""
    if "data_sets" in result:
        return not any("misclassified" in found for found in result["data_sets"].values())
    return bool(result.get("small") or result.get("retraining") or isinstance(result.get("seeds"), dict))


def retrainings(seeds: list[Found]) -> list[object]:
    """How many, and how many a process makes a minute."""
    pairs = [(seed["retrainings"], seed["retrainings_per_minute_and_process"]) for seed in seeds]
    minutes = sum(count / rate for count, rate in pairs if rate)
    total = sum(count for count, _ in pairs)
    return [f"{total:,}", f"{total / minutes:.0f}" if minutes else None]


def seconds_of_networks(result: Found) -> list[float]:
    """The seconds of each network's training, of the experiments that measure networks instead of predictions."""
    if "less_random" in result:
        return [one["seconds"] for seed in result["seeds"] for some in seed["models"].values() for one in some]
    if "gains" in result:
        return []  # its chains are those of other experiments; what a seed took stands beside its losses
    if "what" in result:
        training = [[seed["pretrain"], *(seed[n]["training"] for n in result["what"])] for seed in result["seeds"]]
    else:
        several = (
            result["training"]
            if "chains" in result
            else {n: d["training"] for n, d in result.get("data_sets", {}).items()}
        )
        training = [stages.values() for stages in several.values()]
    return [stage["seconds"] for stages in training for stage in stages]
