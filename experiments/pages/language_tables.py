"""The tables of `language`."""

from collections.abc import Callable

from experiments.corpora import without_names
from experiments.language.cost import STEPS
from experiments.pages.cells import NOT_RUN, Found, agreed, figures, markdown, mean, seeds_of, truth

PAPER_SECONDS = 0.94
"""Per pretraining example, on one V100; read in the paper's text."""
WANTED = 0.15
LONGEST = 120
"""Characters of a text in a table."""


def groups_compared(result: Found) -> str:
    """Every estimator against the same truth; by ranks this is the linear datamodelling score."""
    seeds = result["small"]["each_seed"]
    found = [seed["choices"]["groups"] for seed in seeds]
    head = ["estimator", "Pearson r (95 %)", "Spearman = LDS (95 %)", "slope, true over predicted (95 %)"]
    head += ["r without the largest prediction (95 %)"]
    rows = [[name, *_figures(name, [one["estimators"][name] for one in found])] for name in found[0]["estimators"]]
    n = result["small"]["protocol"]["groups"]
    said = f"{n} groups a seed, {seeds_of(seeds)}; slopes only where a prediction has the unit of the loss.\n\n"
    return said + markdown(head, rows) + "\n" + truth(found)


def _figures(name: str, records: list[Found]) -> list[str]:
    found = figures(name, records)
    return [*found[:2], "-" if name == "BM25" else found[2], found[3]]


def each_seed(result: Found) -> str:
    """The headline and the truth, seed by seed."""
    rows, names = list[list[object]](), list[str]()
    for seed in result["small"]["each_seed"]:
        found = seed["choices"]["groups"]
        names = [name for name in found["estimators"] if name.startswith(("multi", "single", "gradient"))]
        each = [agreed([found["estimators"][name]], "spearman_r", ".2f") for name in names]
        rows.append([seed["seed"], f"{found['reliability']['reliability']:.2f}", *each])
    return markdown(["seed", "reliability", *(f"{name}: Spearman (95 % over groups)" for name in names)], rows)


def both_trained(result: Found) -> str:
    """How both stages were trained, and how well."""
    seeds, asked = result["small"]["each_seed"], result["small"]["protocol"]
    table: dict[str, list[object]] = {}
    for stage in ("pretrain", "finetune"):
        said = [seed["training"][stage] for seed in seeds]
        plan = said[0]["plan"]
        table[stage] = [
            asked["sentences" if stage == "pretrain" else "tweets"],
            f"{said[0]['parameters']:,}",
            f"{plan['epochs']} epochs, rate {plan['rate']:g}, batches of {plan['batch']}",
            f"{plan['weight_decay']:g}",
            mean((one["train"]["loss"] for one in said), ".3f"),
            mean((one["test"]["loss"] for one in said), ".3f"),
            mean((100 * one["test"]["accuracy"] for one in said), ".1f") if stage == "finetune" else None,
            mean((100 * one["test"]["commoner_class"] for one in said), ".1f") if stage == "finetune" else None,
            f"{asked['steps'][stage]} steps, rate {asked['rate'][stage]:g}, batches of {asked['batch'][stage]}",
        ]
    words = ["examples", "parameters trained", "training (Adam, cosine)", "weight decay"]
    words += [f"training loss, nats (95 %, {seeds_of(seeds)})", "loss on unseen texts, nats (95 %)"]
    words += ["accuracy on test tweets, % (95 %)", "of the commoner answer alone, % (95 %)", "trained again"]
    said = f"The mean of {asked['orders']} batch orders, each with its own control.\n"
    return markdown(["", *table], zip(words, *table.values(), strict=True)) + "\n" + said


def chosen_sentences(result: Found) -> str:
    """Table 1: for each chosen tweet the sentences at both ends of the absolute score."""
    found, text = result["small"]["sentences"], ""
    for tweet in found["tweets"]:
        verdict = "right" if tweet["said"] == tweet["label"] else "wrong"
        text += f"> {_short(tweet['text'])}\n\n"
        text += (
            f"Row {tweet['row']} of the test tweets; {verdict}: probability of its label "
            f"{tweet['probability_of_its_label']:.2f}. Mean absolute score of {found['sampled']:,} sampled sentences: "
            f"{tweet['mean_absolute_score']:.1e}; {100 * tweet['share_harmful']:.0f} % of them are harmful.\n\n"
        )
        rows = [
            [f"{end} absolute score", f"{row['score']:+.1e}", _short(row["text"])]
            for end in ("largest", "smallest")
            for row in tweet[end]
        ]
        text += markdown(["", "score, nats (+ = harmful)", "sentence"], rows) + "\n"
    return text.rstrip("\n") + "\n"


def cost_of_a_score(result: Found) -> str:
    """Seconds of an example, all included, and where they go."""
    found = result.get("paper")
    if found is None or "seconds_an_example" not in found:
        return NOT_RUN
    n, seconds, flops = found["sentences"], found["seconds"], found["forward"]["flops"]
    rate, on = found["product_rate_flops"], found["hardware"]
    least = found["statistics"]["solving"]["pretrain"]["forward passes at least"]
    parts = {name: each for name, each in seconds["tracing"].items() if name != "in all"}
    rows: list[list[object]] = [
        ["paper: one V100, a pretraining example", f"{PAPER_SECONDS}", None],
        [f"ours: {on['threads']} CPU threads, all included", f"{found['seconds_an_example']:.3f}", f"wanted: {WANTED}"],
        *([f"of it: {name}", f"{each / n:.3f}", f"{each:.1f} s for {n:,} sentences"] for name, each in parts.items()),
        ["one forward pass", f"{found['forward']['seconds']:.3f}", f"{flops / 1e9:.2f} Gflop"],
        ["the least for a score: three forward passes", f"{3 * flops / rate:.3f}", f"at {rate / 1e9:.0f} Gflop/s"],
        ["the least for the products: three forward passes each", f"{least * flops / rate / n:.3f}", None],
        ["peak memory", f"{found['peak_memory_bytes'] / 1e9:.1f} GB", None],
    ]
    said = "The rate is that of the product which an LSTM does at each word. "
    return markdown(["", "seconds an example", ""], rows) + "\n" + said + _network(found) + "\n" + _solves(found)


def _network(found: Found) -> str:
    own = found["parameters"]
    return (
        f"{own['shared']:,} shared parameters, as many as ELMo has; {own['pretrain']:,} with the softmax. "
        f"{found['sentences']:,} sentences of {found['words_a_sentence']:.1f} words.\n"
    )


def _solves(found: Found) -> str:
    examples, rows = found["curvature_examples"], list[list[object]]()
    for stage, one in found["solving"].items():
        rows.append([stage, examples[stage], f"`{one['system']}`", one["products"], f"{one['relative_residual']:.0e}"])
    head = ["stage", "examples of the curvature", "system", "products", "relative residual"]
    return markdown(head, rows) + f"\nAt most {STEPS} steps were allowed in pretraining.\n"


def language_cost(result: Found) -> str:
    """What it ran on, and what it took."""
    rows = []
    for size in ("small", "paper"):
        if size in result:
            found, on = result[size], result[size]["hardware"]
            spent = found["seconds"] if size == "small" else found["seconds"].get("all of trace")
            runs = sum(seed["retrainings"] for seed in found.get("each_seed", ()))
            what = None if spent is None else f"{spent:,.0f}"
            rows.append([size, f"{on['device']}, {on['kind']}", on["cores"], on["threads"], what, runs or None])
    return markdown(["size", "hardware", "cores", "threads", "seconds of the last call", "retrainings"], rows)


def _short(text: str) -> str:
    """On one line, cut where it is long; people's names on the network and links are left out."""
    line = without_names(" ".join(text.split()))
    line = line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."
    return line.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[").replace("*", "\\*").replace("#", "\\#")


TABLES: dict[str, tuple[Callable[..., str], str]] = {
    "language-groups": (groups_compared, "small"),
    "language-each-seed": (each_seed, "small"),
    "language-trained": (both_trained, "small"),
    "language-sentences": (chosen_sentences, "small"),
    "language-price": (cost_of_a_score, "paper"),
    "language-cost": (language_cost, "small"),
}
