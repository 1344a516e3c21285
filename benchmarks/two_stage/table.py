"""The benchmark's table and figure: every file of predictions, scored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.two_stage.predictions import Predictions, Truths
from benchmarks.two_stage.protocol import OTHER, RECORDED
from benchmarks.two_stage.score import Row, figures, reliabilities
from benchmarks.two_stage.truths import digest_of, read_truths
from experiments.pages.cells import spread
from experiments.records import hardware, over_seeds
from stagetrace.results.files import write_text
from stagetrace.results.jsonable import json_text
from stagetrace.results.manifest import versions
from stagetrace.validation.smoothness import GOOD

FOLDER = Path(__file__).parent / "results"
EXACT, HYBRIDS = "exact, the recorded steps", ("exact fine-tuning, phi_t", "exact fine-tuning, phi_t in 6 stretches")
ONE_ORDER, EIGHT_ORDERS = "exact, mean of 1 other order", "exact, mean of 8 other orders"
AIMS = {2: 0.95, 10: 0.95, 50: 0.85}
"""Of the exact derivative's linear datamodelling score, by size of the subsets in per cent."""


def of_one(predicted: Predictions, truths: Truths) -> Table:
    """A method's figures, for the screen."""
    table = Table(title=f"{predicted.method} (mean over seeds, 95 % interval)", title_justify="left")
    for column in ("chain", "truth", "subsets", "queries", "LDS", "r", "slope", "seconds"):
        table.add_column(column, justify="left" if column in ("chain", "truth") else "right")
    for row in figures(predicted, truths):
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.3g}"
        table.add_row(
            row["chain"],
            row["truth"],
            f"{row['percent']} %",
            str(row["queries"]),
            *(spread(row[name]) for name in ("lds", "r", "slope")),
            seconds,
        )
    return table


def write(predictions: Path, truths: Path, work: Path, out: Path) -> list[Path]:
    """`table.json` and `lds.png` of all files in a folder."""
    import torch

    from benchmarks.two_stage.figure import draw
    from benchmarks.two_stage.predict import Kept, costs

    kept = Kept(work / "predicted")
    known = read_truths(truths)
    order = {name: place for place, name in enumerate(_order())}
    read = [Predictions.read(path, known) for path in sorted(predictions.glob("*.parquet"))]
    read.sort(key=lambda each: (order.get(each.method, len(order)), each.method))
    rows = {each.method: figures(each, known) for each in read}
    agreed = reliabilities(known)
    whole = {
        "truths": digest_of(known),
        "targets": [*targets(rows, agreed), *_where_promised(kept, known, rows)],
        "lds": [by_size(name, of, RECORDED, "lds") | _beside(of) for name, of in rows.items()],
        "r": [by_size(name, of, RECORDED, "r") for name, of in rows.items()],
        "slope": [by_size(name, of, RECORDED, "slope") for name, of in rows.items()],
        "chains": [by_chain(name, of) for name, of in rows.items()],
        "orders": [*_ceilings(agreed), *(by_size(name, of, OTHER, "r") for name, of in rows.items())],
        "truth": [_described(known, chain) for chain in dict.fromkeys(chain for chain, _ in known)],
        "costs": costs(kept, known),
        "beforehand": _beforehand(kept, known, rows.get(EXACT, ())),
        "figures": [row for of in rows.values() for row in of],
        "reliability": agreed,
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }
    path, picture = out / "table.json", out / "lds.png"
    write_text(path, json_text(whole, path.name, lists_in_a_line=True))
    draw(picture, rows, agreed)
    return [path, picture] if rows else [path]


def _beforehand(kept: Any, truths: Truths, exact: Sequence[Row]) -> list[Row]:
    """What the smoothness check said of each recorded training, beside what the exact derivative then did."""
    from benchmarks.two_stage.predict import BEFOREHAND

    r_of = {(one["chain"], one["percent"]): one["r"]["each"] for one in exact if one["truth"] == RECORDED}
    found = list[Row]()
    for (chain, seed), truth in sorted(truths.items()):
        said = kept.found(BEFOREHAND, truth)
        if said is None:
            continue
        sizes = {round(size): f"{expected:.2f} ({least:.2f})" for size, expected, least in said[0].tolist()}
        row: Row = {"chain": chain, "seed": seed}
        for percent in (10, 2):
            row[f"{percent} %: r expected (at least)"] = sizes.get(round(truth.examples * percent / 100), "not tried")
            found_of = r_of.get((chain, percent))  # none of a protocol without subsets of this size
            row[f"{percent} %: r found"] = "not tried" if found_of is None else f"{found_of[seed]:.2f}"
        found.append(row)
    return found


def over_chains(rows: Sequence[Row], kind: str, percent: int, figure: str) -> dict[str, Any]:
    """A figure's mean over chains, seed by seed; then over seeds, with its interval."""
    found = [row[figure]["each"] for row in rows if row["truth"] == kind and row["percent"] == percent]
    if not found or not all(found):
        return over_seeds([])
    return over_seeds([sum(values) / len(values) for values in zip(*found, strict=True)])


def by_size(method: str, rows: Sequence[Row], kind: str, figure: str) -> Row:
    """A method's row, a column for each size of the subsets."""
    percents = sorted({row["percent"] for row in rows if row["truth"] == kind})
    return {"method": method} | {f"{p} %": spread(over_chains(rows, kind, p, figure)) for p in percents}


def by_chain(method: str, rows: Sequence[Row]) -> Row:
    """The linear datamodelling score of the recorded truth, the mean over sizes, a column for each chain."""
    found: Row = {"method": method}
    for chain in dict.fromkeys(row["chain"] for row in rows):
        each = [row["lds"]["each"] for row in rows if row["chain"] == chain and row["truth"] == RECORDED]
        found[chain] = spread(over_seeds([sum(values) / len(values) for values in zip(*each, strict=True)]))
    return found


def targets(rows: Mapping[str, Sequence[Row]], agreed: Sequence[Row]) -> list[Row]:
    """What was aimed at, and what came out: of means over the chains."""
    found = list[Row]()

    def aim(what: str, reached: float | None, least: float | None) -> None:
        if reached is not None and least is not None:
            found.append({"what": what, "found": reached, "aim: at least": least, "met": _word(reached >= least)})

    for percent, least in AIMS.items():
        for name, less in ((EXACT, 0.0), *((hybrid, 0.05) for hybrid in HYBRIDS)):
            if name in rows:
                reached = over_chains(rows[name], RECORDED, percent, "lds")["mean"]
                exact = over_chains(rows[EXACT], RECORDED, percent, "lds")["mean"] if EXACT in rows else None
                bar = least if name == EXACT else None if exact is None else exact - less
                aim(f"LDS, recorded truth, {percent} %: {name}", reached, bar)
    for percent in sorted({row["percent"] for row in agreed}):
        ceilings = [row["ceiling"]["mean"] for row in agreed if row["percent"] == percent]
        if EXACT in rows:
            aim(f"r, other orders, {percent} %: {EXACT}", over_chains(rows[EXACT], OTHER, percent, "r")["mean"], 0.85)
        if EIGHT_ORDERS in rows:
            reached = over_chains(rows[EIGHT_ORDERS], OTHER, percent, "r")["mean"]
            aim(f"r, other orders, {percent} %: {EIGHT_ORDERS}", reached, sum(ceilings) / len(ceilings) - 0.05)
    return found


def _where_promised(kept: Any, truths: Truths, rows: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The aims of the recorded truth, of the trainings alone of which the smoothness check said that scores hold."""
    from benchmarks.two_stage.predict import BEFOREHAND

    found = list[Row]()
    for percent, least in AIMS.items():
        held = list[tuple[str, int]]()
        for (chain, seed), truth in sorted(truths.items()):
            said = kept.found(BEFOREHAND, truth)
            rows_said = [] if said is None else said[0].tolist()
            holds_for = max((size for size, _, at_least in rows_said if at_least >= GOOD), default=0)
            if holds_for >= round(truth.examples * percent / 100):
                held.append((chain, seed))
        of = {
            name: [one["lds"]["each"][seed] for chain, seed in held for one in rows[name] if _is(one, chain, percent)]
            for name in (EXACT, *HYBRIDS)
            if name in rows
        }
        for name, each in of.items():
            if each:
                bar = least if name == EXACT else sum(of[EXACT]) / len(each) - 0.05
                mean, what = (
                    sum(each) / len(each),
                    f"the {len(held)} of {len(truths)} trainings where it was said to hold",
                )
                line = {"what": f"LDS, recorded truth, {percent} %, {what}: {name}", "found": mean}
                found.append(line | {"aim: at least": bar, "met": _word(mean >= bar)})
    return found


def _is(one: Row, chain: str, percent: int) -> bool:
    return (one["chain"], one["truth"], one["percent"]) == (chain, RECORDED, percent)


def _word(met: bool) -> str:
    return "yes" if met else "**no**"


def _beside(rows: Sequence[Row]) -> Row:
    """Queries answered, and processor seconds of all of a seed's chains."""
    seconds = {row["chain"]: row["seconds"] for row in rows}
    known = [value for value in seconds.values() if value is not None]
    return {
        "queries": min(row["queries"] for row in rows),
        "chains": len(seconds),
        "seconds": sum(known) if len(known) == len(seconds) else None,
    }


def _ceilings(agreed: Sequence[Row]) -> list[Row]:
    percents = sorted({row["percent"] for row in agreed})
    found = list[Row]()
    for name in ("reliability", "ceiling", "with the recorded order"):
        row: Row = {"method": f"*{name}*"}
        for percent in percents:
            each = [one[name]["each"] for one in agreed if one["percent"] == percent]
            row[f"{percent} %"] = spread(over_seeds([sum(values) / len(values) for values in zip(*each, strict=True)]))
        found.append(row)
    return found


def _described(truths: Truths, chain: str) -> Row:
    """What a chain is, in numbers: of its first seed, the losses as means over its seeds."""
    seeds = [truth for (name, _), truth in sorted(truths.items()) if name == chain]
    first, facts = seeds[0], seeds[0].facts
    steps = [facts["steps"][stage] for stage in ("pretrain", "finetune")]
    return {
        "chain": chain,
        "parameters": facts["parameters"],
        "pretraining examples": first.examples,
        "steps": " + ".join(map(str, steps)),
        "seeds": len(seeds),
        "subsets": len(first.subsets),
        "orders x subsets": f"{len(first.order_controls)} x {len(first.repeated)}",
        "mean test loss": sum(float(truth.control[0]) for truth in seeds) / len(seeds),
        "mean change at 10 %": sum(float(_changes(truth, 10)) for truth in seeds) / len(seeds),
        "largest gap to step by step": max(
            truth.facts["largest gap to the recording repeated step by step, of the largest change"] for truth in seeds
        ),
        "seconds of a retraining": sum(truth.facts["seconds of a retraining"] for truth in seeds) / len(seeds),
    }


def _changes(truth: Any, percent: int) -> Any:
    return truth.of(RECORDED, percent)[1][0].abs().mean()


def _order() -> list[str]:
    """Of the table's rows."""
    from benchmarks.two_stage.methods import methods
    from benchmarks.two_stage.predict import AVERAGED, PLAIN

    first, *rest = [method.name for method in methods()]
    return [first, *(f"exact, mean of {k} other order{'s' if k > 1 else ''}" for k in AVERAGED), PLAIN, *rest]
