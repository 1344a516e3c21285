"""What a curation says: the tables of the terminal, curation.json, and curation.md for whoever finds the folder."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np

from stagetrace.curate.curation import Curation
from stagetrace.curate.rows import Rows
from stagetrace.curate.verify import Verified
from stagetrace.plaintext import printable
from stagetrace.results import JSON, SIGN, UNIT, Table
from stagetrace.results.jsonable import to_json
from stagetrace.results.manifest import versions

OutputFormat = Literal["indices", "parquet", "hf"]
"""What is written of the rows that are kept: nothing, one Parquet file, or a folder of the `datasets` library."""

FORMAT = 1

CHANGE = f"a change of the query loss (unit: {UNIT}) when the examples are left out; negative = leaving them out helps"

CAVEATS = (
    "The prediction is of first order: the sum of the examples' single effects. It is best for few examples and says "
    "less of many.",
    "It holds for the query that was traced. What hurts this query may help another.",
    "The examples were chosen by the same scores that predict, so errors of the scores make the prediction look better "
    "than it is. Retraining tells.",
)

INTERVAL = (
    "Interval: 2.5 % to 97.5 % of bootstrap samples of the source's examples, what as many others of the same source "
    "could give. It does not say how far the scores can be trusted."
)


@final
@dataclass(frozen=True)
class Record:
    """A curation and how it was made: what was dropped and why, what that should change, how to check.

    data: the rows that the examples were made of. command: that made the curation.
    verified: what retraining showed, None before it; fits: how each stage was trained, in words.
    """

    curation: Curation
    data: Rows | None = None
    as_: OutputFormat = "indices"
    command: str | None = None
    verified: Verified | None = None
    fits: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def identity(self) -> Mapping[str, JSON]:
        """What makes it this curation."""
        curation, data = self.curation, self.data
        return to_json(
            {
                "stage": curation.stage,
                "rule": curation.rule.words,
                "examples": curation.scores.n_examples,
                "queries": curation.scores.n_queries,
                "dropped_sha256": hashlib.sha256(np.array(curation.drop, dtype=np.int64).tobytes()).hexdigest(),
                "balanced": [count.name for count in curation.classes],
                "data": None if data is None else self._rows(data),
                "run": curation.run,
            }
        )

    def _rows(self, data: Rows) -> Mapping[str, JSON]:
        found: dict[str, JSON] = {"place": data.place, "as": self.as_, "columns": list(data.columns)}
        return found if data.by is None else {**found, "ids": data.by, "not traced": data.others}

    def json(self) -> Mapping[str, JSON]:
        """Everything but the index lists, as curation.json holds it."""
        curation = self.curation
        return to_json(
            {
                "format": FORMAT,
                "sign": SIGN,
                "unit": UNIT,
                "of": self.identity,
                "folder": curation.folder,
                "command": self.command,
                "kept": len(curation.keep),
                "dropped": len(curation.drop),
                "helpful_dropped": curation.helpful_dropped,
                "predicted_change": curation.predicted,
                "change": CHANGE,
                "caveats": CAVEATS,
                "classes": curation.classes,
                "groups": curation.groups,
                "versions": versions(),
                "verified": None if self.verified is None else {"fits": self.fits, **self.verified.record()},
            }
        )

    def markdown(self) -> str:
        """The same for the reader."""
        curation = self.curation
        blocks = [
            f"# Curated examples of stage '{printable(curation.stage)}'",
            "\n".join(map(printable, headline(curation))),
            _items(CAVEATS),
            f"Sign: {SIGN}.",
            *("## Made from", self._made_from()),
        ]
        if curation.classes:
            blocks += ["## Classes", class_table(curation).markdown()]
        if curation.groups:
            table = group_table(curation)
            blocks += ["## Sources", table.markdown(), f"Table: {table.title}. {INTERVAL}"]
        blocks += ["## Files", self._files(), "## How to verify", self._how_to_verify()]
        if self.verified is not None:
            table = verified_table(curation, self.verified, self.fits)
            blocks += ["## What retraining showed", table.markdown(), printable(table.caption)]
        return "\n\n".join(blocks) + "\n"

    def _made_from(self) -> str:
        curation, run = self.curation, self.curation.run
        stages = run.get("stages")
        made_from = [f"rule: `{curation.rule.words}`"]
        made_from += [f"command: `{self.command}`"] if self.command else []
        made_from += [f"run: `{curation.folder}`"] if curation.folder else []
        if isinstance(stages, Mapping):
            made_from += [f"stage '{name}': {_described(stage)}" for name, stage in stages.items()]
        made_from += [f"query: {_described(run['query'])}"] if "query" in run else []
        return _items(made_from)

    def _files(self) -> str:
        files = [
            "`keep.txt`, `drop.txt`: indices in the stage's data set, one a line",
            "`keep.parquet`, `drop.parquet`: the same with score and removal effect",
        ]
        if self.curation.scores.ids is not None:
            files.append("`keep-ids.txt`, `drop-ids.txt`: the examples' ids, one a line, in the same order")
        if self.data is not None and self.as_ != "indices":
            name = "data.parquet" if self.as_ == "parquet" else "data/"
            of = f"the kept rows of `{self.data.place}`; the column `original_index` says which they were"
            if self.data.by is not None:
                of += f"; rows and examples were matched by the column `{self.data.by}`"
            if self.data.others:
                of += f", and {self.data.others:,} rows that are no example of the stage were left out"
            files.append(f"`{name}`: {of}")
        return _items(files)

    def _how_to_verify(self) -> str:
        """What to type; TARGET is that of the run."""
        command, share = self.command, len(self.curation.drop) / self.curation.scores.n_examples
        if not command:
            command = "curate.verify(curation, chain, query, fit=...)  # in Python"
        elif "--verify" not in command:
            command += " --verify TARGET"
        return f"""\
Retrain without these examples, and without as many at random; TARGET is the one that was scored:

```sh
{printable(command)}
```

Whether scores predict retraining at all for this model, with random groups of this size:

```sh
stagetrace validate TARGET --stage {printable(self.curation.stage)} --groups {max(share, 1e-3):.3g} --out DIR
```"""


def _items(lines: tuple[str, ...] | list[str]) -> str:
    return "\n".join(f"- {printable(line)}" for line in lines)


def _described(described: Any) -> str:
    """What a run says of a stage or of the query; a run that somebody else wrote may say less."""
    parts = list[str]()
    for what in ("model", "data"):
        part = described.get(what) if isinstance(described, Mapping) else None
        digest, examples = (part.get("sha256"), part.get("examples")) if isinstance(part, Mapping) else (None, None)
        parts += [f"{examples:,} examples"] if isinstance(examples, int) else []
        parts += [f"{what} sha256 {digest[:16]}"] if isinstance(digest, str) else []
    return ", ".join(sorted(parts, key=lambda part: "sha256" in part)) or "not described"


# Tables, for the terminal and for curation.md


def headline(curation: Curation) -> list[str]:
    """What was dropped, and what that is predicted to change, in sentences."""
    scores, dropped = curation.scores, len(curation.drop)
    balance = f", the same share of each of {len(curation.classes)} classes" if curation.classes else ""
    lines = [
        f"`{curation.rule.words}` drops {dropped:,} of {scores.n_examples:,} examples "
        f"({100 * dropped / scores.n_examples:.3g} %) and keeps {len(curation.keep):,}{balance}.",
        f"Predicted change of the query loss without them: {curation.predicted:+.3e} (unit: {UNIT}; negative = "
        "leaving them out helps).",
    ]
    if curation.helpful_dropped:
        lines.append(
            f"{curation.helpful_dropped:,} of the dropped examples have a negative score: they are predicted to help, "
            "and the rule asked for more than are harmful."
        )
    if scores.n_queries:
        lines.append(f"Each example counts by the mean of its scores over {scores.n_queries:,} queries.")
    return lines


def class_table(curation: Curation) -> Table:
    """A line for each class that was balanced."""
    rows = tuple(
        (each.name, f"{each.examples:,}", f"{each.dropped:,}", f"{100 * each.dropped / each.examples:.3g} %")
        for each in curation.classes
    )
    headings = ("class", "examples", "dropped", "share dropped")
    return Table("classes (the same share of each is dropped)", headings, rows, words=frozenset({"class"}))


def group_table(curation: Curation) -> Table:
    """A line for each source, the most harmful first."""
    rows = list[tuple[str, ...]]()
    for each in curation.groups:
        low, high = each.total_interval
        interval = "interval unknown" if low != low else f"{low:+.2e} to {high:+.2e}"
        counts = each.name, f"{each.examples:,}", f"{each.dropped:,}"
        rows.append((*counts, f"{each.mean:+.3e}", f"{each.total:+.3e} ({interval})", f"{each.removal_effect:+.3e}"))
    return Table(
        f"sources, the most harmful first (scores: + harmful; effect of removal: - helps; unit: {UNIT})",
        ("source", "examples", "dropped", "mean score", "total score (95 %)", "effect of removal"),
        tuple(rows),
        INTERVAL,
        words=frozenset({"source"}),
    )


def verified_table(curation: Curation, found: Verified, fits: Mapping[str, str]) -> Table:
    """What was dropped beside each random set of as many examples.

    fits: how each stage was retrained, in words.
    """
    runs, sets = len(found.effects), found.random_effects.shape[1]
    names = ["dropped by the rule", *(f"random set {number}" for number in range(1, sets + 1))]
    predicted = [found.predicted, *found.random_predicted.tolist()]
    effects = [found.effects.tolist(), *found.random_effects.mT.tolist()]
    averaged = f", mean of {runs} runs (lowest to highest)" if runs > 1 else ""
    trained = "; ".join(f"stage '{name}' was retrained by {how}" for name, how in fits.items())
    caption = (
        f"The rule: {found.true:+.3e} true, {found.predicted:+.3e} predicted; random sets of as many examples: "
        f"{found.random_true.mean().item():+.3e} true on average; {found.random_better} of {sets} random sets did as "
        f"well or better. Negative = leaving them out helps; unit: {UNIT}. "
        f"{found.retrainings} retrainings{f'; {trained}' if trained else ''}."
    )
    return Table(
        f"retrained without {len(curation.drop):,} examples{averaged}",
        ("left out", f"predicted change ({UNIT}; - helps)", f"true change ({UNIT}; - helps)"),
        tuple((name, f"{p:+.3e}", _runs(each)) for name, p, each in zip(names, predicted, effects, strict=True)),
        caption,
        words=frozenset({"left out"}),
    )


def _runs(changes: list[float]) -> str:
    mean = f"{sum(changes) / len(changes):+.3e}"
    return mean if len(changes) == 1 else f"{mean} ({min(changes):+.2e} to {max(changes):+.2e})"
