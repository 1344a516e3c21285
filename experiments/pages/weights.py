"""The tables of `reweight`: what the weights changed, and what they are."""

from experiments.pages.cells import Found, markdown, mean, seeds_of, spread

MEASURED = {
    ("held_out", "used"): "unseen half, orders that were used",
    ("held_out", "others"): "unseen half, other orders",
    ("target", "used"): "half that was asked about, orders that were used",
    ("target", "others"): "half that was asked about, other orders",
}


def weight_gains(result: Found) -> str:
    """By how much the weights lower the loss, over seeds; + = they help."""
    rows = [
        [name, count, *(spread(found[what][used], "+.4f") for what, used in MEASURED)]
        for name, counts in result["gains"].items()
        for count, found in counts.items()
    ]
    seeds = seeds_of(next(iter(result["chains"].values())))
    head = [f"{words}: gain, nats (95 %, {seeds})" for words in MEASURED.values()]
    return markdown(["chain", "orders differentiated", *head], rows)


def weight_losses(result: Found) -> str:
    """The losses themselves in the unseen half, and the first try: did the prediction come true?"""
    rows = list[list[object]]()
    for name, seeds in result["chains"].items():
        for count in seeds[0]["orders"]:
            found = [seed["orders"][count] for seed in seeds if count in seed["orders"]]
            used = [[each for each in one["held_out"] if each["used"]] for one in found]
            losses = [
                mean((sum(each[what] for each in some) / len(some) for some in used), ".3f")
                for what in ("uniform", "weighted")
            ]
            first = mean((one["history"][0]["true"] / one["history"][0]["predicted"] for one in found), ".2f")
            undone = sum(not each["kept"] for one in found for each in one["history"])
            tries = sum(len(one["history"]) for one in found)
            rows.append(
                [name, count, *losses, first, f"{undone} of {tries}", mean(one["cpu_seconds"] for one in found)]
            )
    head = ["chain", "orders", "unseen half, equal weights: loss (95 %)", "with the weights: loss (95 %)"]
    return markdown([*head, "first try: true / predicted (95 %)", "tries undone", "CPU seconds (95 %)"], rows)


def weight_sizes(result: Found) -> str:
    """What the weights are, by stage."""
    rows = [
        [name, count, stage, f"{found[0][stage]['examples']:,}"]
        + [mean((one[stage][what] for one in found), form) for what, form in FIGURES.items()]
        for name, seeds in result["chains"].items()
        for count in seeds[0]["orders"]
        for found in [[seed["orders"][count]["weights"] for seed in seeds if count in seed["orders"]]]
        for stage in found[0]
    ]
    words = ["smallest (95 %)", "largest (95 %)", "share at 0 (95 %)", "as many as so many of equal weight (95 %)"]
    return markdown(["chain", "orders", "stage", "examples", *words], rows)


FIGURES = {"smallest": ".2f", "largest": ".2f", "share_at_0": ".3f", "effective_examples": ",.0f"}
