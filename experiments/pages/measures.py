"""The tables of the experiments that measure something of their own."""

from experiments.pages.cells import NOT_RUN, Found, cells, markdown, mean, seeds_of, spread

CLEANSED = {"none": "58.15", "harmful 10%": "58.36", "random 10%": "58.08"}
SIZES = {"similarity": {"A": "0.055", "B": "0.025"}, "finetune-size": {"D": "0.15"}}
PAPER_SECONDS, WANTED = 0.94, 0.15
"""The paper's, each read in its text; seconds a pretraining example are of one V100."""
NATURE = {
    "median_loss": ("median loss, nats", ".2g"),
    "mean_loss": ("mean loss, nats", ".2g"),
    "median_margin": ("median margin, logits", ".2f"),
    "share_wrong": ("share that the pretrained model gets wrong", ".1%"),
}


def cleansed(result: Found) -> str:
    """Paper beside ours: accuracy on the half that no score has seen, and paired differences."""
    rows = []
    for name, accuracy in result["accuracy"].items():
        less = [result[what].get(name) for what in ("less_none", "less_random")]
        gains = [each and spread(each["accuracy"]["measured"], "+.2f") for each in less]
        rows.append([name, len(result["seeds"][0]["models"][name]), CLEANSED.get(name), spread(accuracy), *gains])
    seeds = seeds_of(result["seeds"])
    head = ["left out", "networks a seed", "paper: accuracy, % (one run)", f"ours: accuracy, % (95 %, {seeds})"]
    return markdown([*head, "less none, points (95 %)", "less as many at random, points (95 %)"], rows)


def halves(result: Found) -> str:
    """The same differences by the part of the test set, and of the loss."""
    parts = {"measured": "half that no score has seen", "query": "half that was asked about", "whole": "whole test set"}
    rows = [
        [name, *(spread(each["accuracy"][part], "+.2f") for part in parts), spread(each["loss"]["measured"], "+.4f")]
        for name, each in result["less_random"].items()
    ]
    heads = [f"{words}: accuracy, points (95 %)" for words in parts.values()]
    return markdown(["left out, less as many at random", *heads, "unseen half: loss, nats (95 %)"], rows)


def left_out(result: Found) -> str:
    """What the examples that were left out are like."""
    seeds = result["seeds"]
    rows = [
        [f"pretraining loss, nats, {what}", mean(seed["harmful_examples"][f"mean_loss_of_{what}"] for seed in seeds)]
        for what in ("all", "harmful", "random", "helpful")
    ]
    agree = mean(seed["agreement_of_scores_between_models"] for seed in seeds)
    return markdown(
        ["", f"mean (95 %), {seeds_of(seeds)}"], [*rows, ["correlation of the scores of two models", agree]]
    )


def sizes(result: Found) -> str:
    """Paper beside ours: mean absolute scores and their ratio."""
    paper, words = SIZES[result["experiment"]], result["what"]
    rows = []
    for name, of_means in result["mean_absolute"].items():
        form, label = (".4f", f"{name}: {words[name]}") if name in words else (".2f", f"ratio {name}")
        sums = spread(result["mean_absolute_of_sums"][name], ".2f")
        rows.append([label, paper.get(name), spread(of_means, form), sums])
    head = f"mean absolute score, query = mean test loss (95 %, {seeds_of(result['seeds'])})"
    return markdown(["", "paper (one run)", f"ours: {head}", "ours: query = sum of test losses (95 %)"], rows)


def sizes_by_seed(result: Found) -> str:
    """Each seed, with how well its networks do."""
    names = list(result["what"])
    columns = {"seed": "{}", "pretrain/test/accuracy": "{:.1%}"}
    columns |= {f"{name}/training/test/accuracy": "{:.1%}" for name in names}
    columns |= {f"{name}/mean_absolute": "{:.4f}" for name in names}
    ratios = result["mean_absolute"][" over ".join(names)]["each"]
    rows = [[*cells(seed, columns), f"{ratio:.2f}"] for seed, ratio in zip(result["seeds"], ratios, strict=True)]
    head = ["seed", "test accuracy, pretrained", *(f"{name}: test accuracy" for name in names)]
    return markdown([*head, *(f"{name}: mean absolute score" for name in names), "ratio"], rows)


def mistakes(result: Found) -> str:
    """Each test image that was asked about."""
    columns = {
        "test_row": "{}",
        "class": "{}",
        "said": "{}",
        "probability_of_what_was_said": "{:.1%}",
        "mean_score_of_most_harmful": "{:+.2f}",
        "most_harmful_over_mean_absolute": "{:.0f}",
    }
    found = result["data_sets"].items()
    rows = [[name, *cells(each, columns)] for name, one in found for each in one["misclassified"]]
    head = ["data set", "row of the test set", "class", "predicted", "probability of the prediction"]
    return markdown([*head, "mean score of the most harmful (+ = harmful)", "times the mean absolute score"], rows)


def nature(result: Found) -> str:
    """The most harmful pretraining images against all, by the pretrained model."""
    rows = []
    for dataset, found in result["data_sets"].items():
        of = found["most_harmful"]
        for what, (words, form) in NATURE.items():
            rows.append([dataset, of["images"], words, *(f"{of[what][who]:{form}}" for who in ("most_harmful", "all"))])
        top = f"{of['share_in_top_tenth_of_loss']:.1%}"
        rows.append([dataset, of["images"], "share in the top tenth of the loss", top, "10.0%"])
    return markdown(["data set", "n", "", "most harmful images", "all pretraining images"], rows)


def price(result: Found) -> str:
    """Of `language` at the paper's size: seconds of an example, all included, and where they go."""
    found = result.get("paper")
    if found is None or "seconds_an_example" not in found:
        return NOT_RUN
    n, flops, rate = found["sentences"], found["forward"]["flops"], found["product_rate_flops"]
    least = found["statistics"]["solving"]["pretrain"]["forward passes at least"]
    threads, own = found["hardware"]["threads"], found["parameters"]
    parts = {name: each for name, each in found["seconds"]["tracing"].items() if name != "in all"}
    rows: list[list[object]] = [
        ["paper: one V100, a pretraining example", f"{PAPER_SECONDS}", None],
        [f"ours: {threads} CPU threads, all included", f"{found['seconds_an_example']:.3f}", f"wanted: {WANTED}"],
        *([f"of it: {name}", f"{each / n:.3f}", f"{each:.1f} s for {n:,} sentences"] for name, each in parts.items()),
        ["one forward pass", f"{found['forward']['seconds']:.3f}", f"{flops / 1e9:.2f} Gflop"],
        ["the least for a score: three forward passes", f"{3 * flops / rate:.3f}", f"at {rate / 1e9:.0f} Gflop/s"],
        ["the least for the products: three forward passes each", f"{least * flops / rate / n:.3f}", None],
        ["peak memory", f"{found['peak_memory_bytes'] / 1e9:.1f} GB", None],
    ]
    return markdown(["", "seconds an example", ""], rows) + (
        "\nThe rate is that of the product which an LSTM does at each word. "
        f"{own['shared']:,} shared parameters, as many as ELMo has; {own['pretrain']:,} with the softmax. "
        f"{n:,} sentences of {found['words_a_sentence']:.1f} words; the curvature is that of "
        f"{found['curvature_examples']['pretrain']} sentences and {found['curvature_examples']['finetune']} tweets.\n"
    )


def larger(result: Found) -> str:
    """Of `word-vectors`: what scoring the larger size took."""
    columns = {
        "words": ("words", "{:,}"),
        "parameters of the first stage": ("stages/pretrain/parameters", "{:,}"),
        "lines scored": ("stages/pretrain/examples", "{:,}"),
        "pairs": ("pairs", "{:,}"),
        "system of the first stage": ("pretrain_solution/system", "`{}`"),
        "products": ("pretrain_solution/products", "{}"),
        "measured relative residual": ("pretrain_solution/relative_residual", "{:.0e}"),
        "seconds, reading and drawing pairs": ("seconds/reading", "{:.0f}"),
        "seconds, solving the first stage": ("seconds/tracing/solving stage 'pretrain'", "{:.0f}"),
        "seconds, scoring the lines": ("seconds/tracing/scoring stage 'pretrain'", "{:.0f}"),
        "seconds, the whole trace": ("seconds/trace", "{:.0f}"),
        "peak memory, bytes, before the trace": ("peak_bytes/before tracing", "{:,.0f}"),
        "peak memory, bytes": ("peak_bytes/in all", "{:,.0f}"),
    }
    return markdown(["larger size", ""], [[w, *cells(result["large"], {p: f})] for w, (p, f) in columns.items()])
