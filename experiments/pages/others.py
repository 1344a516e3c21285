"""The tables of the other experiments."""

from experiments.pages.cells import Found, cost, markdown, mean, seeds_of, spread

CLEANSED = {"none": "58.15", "harmful 10%": "58.36", "random 10%": "58.08"}
SIZES = {"similarity": {"A": "0.055", "B": "0.025"}, "finetune-size": {"D": "0.15"}}
"""The paper's, each read in its text."""


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
