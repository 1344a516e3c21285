"""The tables of `bert` and `gpt`."""

from collections.abc import Mapping
from typing import Any

from experiments.bert_and_gpt.report import MEAN
from experiments.pages.cells import FIGURES, NOT_RUN, Found, agreed, cost, markdown, mean, retrainings, seeds_of, truth


def learned(result: Found) -> str:
    """Each stage before and after its training, over the seeds that have it."""
    names = dict.fromkeys(stage for stages in result["training"].values() for stage in stages)
    rows = []
    for name in names:
        found = [stages[name] for stages in result["training"].values() if name in stages]
        first, what = found[0], "accuracy" if "accuracy" in found[0]["test"] else "perplexity"
        form = ".3f" if what == "accuracy" else ".0f"
        rows.append(
            [
                *(name, f"{first['examples']:,}", f"{first['trained_parameters']:,} of {first['parameters']:,}", what),
                *(mean((each[part][what] for each in found), form) for part in ("test_before", "test", "train")),
                *(mean((each["seconds"] for each in found), ".0f"), len(found)),
            ]
        )
    head = ["stage", "examples", "parameters trained", "figure", "test, before", "test, after (95 %)"]
    return markdown([*head, "training texts (95 %)", "seconds of training", "seeds"], rows)


def sharing(result: Found) -> str:
    """What `hf.shared` printed of each link."""
    text = ""
    for name, chain in result["chains"].items():
        text += f"**{name}**: {' -> '.join(chain['stages'])}\n\n"
        for stage, shown in chain["shared"].items():
            alpha = chain["alpha"][stage]
            pull = "" if alpha is None else f", alpha {alpha:g}"
            lines = "\n".join(line.rstrip() for line in shown.splitlines())
            text += f"`{stage}`, {chain['links'][stage]}{pull}:\n\n```text\n{lines}\n```\n\n"
    return text.rstrip("\n") + "\n"


def solved(result: Found) -> str:
    """Every solve of the mean test loss: its system, work, residual, and the ends of the spectrum."""
    rows = [
        [
            *(name, setting, stage, f"`{said['system']}`", said["products"], f"{said['relative_residual']:.0e}"),
            *(said["status"], *(_number(said[end], ".2g") for end in ("smallest_ritz_value", "largest_ritz_value"))),
        ]
        for name, chain in result["chains"].items()
        for setting, trace in chain["traces"].items()
        for stage, said in trace["solving"].items()
    ]
    head = ["chain", "setting", "stage", "system", "products", "relative residual", "status"]
    return markdown([*head, "smallest Ritz value (- = negative curvature)", "largest Ritz value"], rows)


def tracing_cost(result: Found) -> str:
    """Seconds of each trace of the mean test loss, and the process's peak memory until then."""
    rows = [
        [
            *(name, setting, f"{sum(each['examples'] for each in trace['spread'].values()):,}"),
            *(f"{trace['seconds']['in all']:.0f}", f"{trace['peak_memory_of_the_process_MiB']:,.0f}"),
        ]
        for name, chain in result["chains"].items()
        for setting, trace in chain["traces"].items()
    ]
    return markdown(["chain", "setting", "examples scored", "seconds", "peak memory of the process so far, MiB"], rows)


def texts(result: Found, chain: str, query: str = "mean") -> str:
    """The ends of the ranking of every stage of a chain; `query`: `mean`, or `asked` for the chosen tweets."""
    found = result["chains"].get(chain)
    if found is None:
        return NOT_RUN
    if query == "mean":
        return _ends(found["texts"][MEAN], 4)
    made = ""
    for words, tweet in found["asked"].items():
        said = f"label {_label(tweet['label'])}, probability of it {tweet['probability_of_the_label']:.2f}"
        made += f"**{words}** ({said}): {_escaped(tweet['text'])}\n\n" + _ends(found["texts"][words], 2) + "\n"
    return made.rstrip("\n") + "\n"


def left_out_groups(result: Found, chain: str) -> str:
    """Predicted against true change of the mean test loss when groups of the first stage are left out."""
    found = result["retraining"].get(chain)
    if not found:
        return NOT_RUN
    seeds = found["each_seed"]
    rows = []
    for name in seeds[0]["estimators"]:
        records = [seed["estimators"][name] for seed in seeds]
        ranks_only = seeds[0]["units"][name] is None
        cells = ("-" if figure == "slope" and ranks_only else agreed(records, figure, ".2f") for figure in FIGURES)
        rows.append([name, *cells, " ".join(_number(record["pearson_r"], ".2f") for record in records)])
    head = f"estimator; {seeds[0]['groups']} groups of {seeds[0]['examples_in_a_group']}, {seeds_of(seeds)}"
    return markdown([head, *FIGURES.values(), "r, seed by seed"], rows) + "\n" + truth(seeds)


def transformers_cost(result: Found) -> str:
    runs = [seed for chain in result["retraining"].values() for seed in chain["each_seed"]]
    spent: dict[str, object] = {"seconds of the last call": f"{result['seconds_of_the_last_call']:,.0f}"}
    return cost(result, spent | (retrainings(runs) if runs else {}))


def _ends(stages: Mapping[str, Any], count: int) -> str:
    rows = [
        [
            *(stage, what.replace("_", " "), f"{each['score']:+.2e}", f"{each['removal_effect']:+.1e}"),
            *(_label(each["label"]) if stage == "finetune" else "-", _escaped(each["text"])),
        ]
        for stage, ends in stages.items()
        for what, found in ends.items()
        for each in found[:count]
    ]
    head = ["stage", "", "score (nats; + = harmful)", "effect of removal (nats; - = it helps)", "label", "text"]
    return markdown(head, rows)


def _escaped(text: str) -> str:
    """As a cell shows it, to the letter: neither a column's end, nor a mark-up, nor an address to follow."""
    return "`` " + text.replace("|", "\\|").replace("``", "` `") + " ``"


def _label(label: int | None) -> str:
    return "-" if label is None else ("negative", "positive")[label]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


TABLES = {
    "learned": (learned, "training"),
    "sharing": (sharing, "chains"),
    "solved": (solved, "chains"),
    "tracing-cost": (tracing_cost, "chains"),
    "texts": (texts, "chains"),
    "left-out-groups": (left_out_groups, "retraining"),
    "transformers-cost": (transformers_cost, "training"),
}
