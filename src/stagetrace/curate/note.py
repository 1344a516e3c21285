"""What is written beside the index lists: curation.json, and curation.md for whoever finds the folder later."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np

from stagetrace.curate.curation import Curation
from stagetrace.curate.source import Rows
from stagetrace.curate.tables import GROUPS_NOTE, classes, groups, headline, verified
from stagetrace.curate.verify import Verified
from stagetrace.plaintext import printable
from stagetrace.results import JSON, SIGN, UNIT
from stagetrace.results.jsonable import to_json
from stagetrace.results.manifest import versions
from stagetrace.results.table import Sheet

As = Literal["indices", "parquet", "hf"]

FORMAT = 1

CHANGE = f"a change of the query loss (unit: {UNIT}) when the examples are left out; negative = leaving them out helps"

CAVEATS = (
    "The prediction is of first order: the sum of the examples' single effects. It is best for few examples and says "
    "less of many.",
    "It holds for the query that was traced. What hurts this query may help another.",
    "The examples were chosen by the same scores that predict, so errors of the scores make the prediction look better "
    "than it is. Training again tells.",
)


@final
@dataclass(frozen=True)
class Note:
    """A curation and how it was made: what was dropped and why, what that should change, how to check.

    data: the rows that the examples were made of; as_: what is written of those that are kept.
    command: that made the curation.
    verified: what training again said, None before; fits: how each stage was trained, in words.
    """

    curation: Curation
    data: Rows | None = None
    as_: As = "indices"
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
                "data": None if data is None else {"place": data.place, "as": self.as_, "columns": list(data.columns)},
                "run": dict(curation.run),
            }
        )

    def record(self) -> Mapping[str, JSON]:
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
                "verified": None if self.verified is None else _verification(self.verified, self.fits),
            }
        )

    def markdown(self) -> str:
        """The same for people."""
        curation = self.curation
        lines = [f"# Curated examples of stage '{curation.stage}'", "", *headline(curation), ""]
        lines += [f"- {caveat}" for caveat in CAVEATS]
        lines += ["", f"Sign: {SIGN}.", "", "## Made from", "", *self._made_from(), ""]
        if curation.classes:
            lines += ["## Classes", "", *_table(classes(curation)), ""]
        if curation.groups:
            sheet = groups(curation)
            lines += ["## Sources", "", *_table(sheet), "", f"Table: {sheet.title}. {GROUPS_NOTE}", ""]
        lines += ["## Files", "", *self._files(), "", "## How to verify", "", *self._check(), ""]
        if self.verified is not None:
            sheet = verified(curation, self.verified, self.fits)
            lines += ["## What training again said", "", *_table(sheet), "", sheet.caption, ""]
        return "\n".join(printable(line) for line in lines)

    def _made_from(self) -> list[str]:
        curation, run = self.curation, self.curation.run
        lines = [f"- rule: `{curation.rule.words}`"]
        lines += [f"- command: `{self.command}`"] if self.command else []
        lines += [f"- run: `{curation.folder}`"] if curation.folder else []
        stages = run.get("stages")
        for name, stage in stages.items() if isinstance(stages, Mapping) else ():
            lines.append(f"- stage '{name}': {_made_of(stage)}")
        return [*lines, f"- query: {_made_of(run['query'])}"] if "query" in run else lines

    def _files(self) -> list[str]:
        lines = [
            "- `keep.txt`, `drop.txt`: indices in the stage's data set, one a line",
            "- `keep.parquet`, `drop.parquet`: the same with score and removal effect",
        ]
        if self.data is not None and self.as_ != "indices":
            name = "data.parquet" if self.as_ == "parquet" else "data/"
            of = f"the kept rows of `{self.data.place}`; the column `original_index` says which they were"
            lines.append(f"- `{name}`: {of}")
        return lines

    def _check(self) -> list[str]:
        """What to type; TARGET is that of the run."""
        curation, command = self.curation, self.command
        share = len(curation.drop) / curation.scores.n_examples
        mine = command if command and "--verify" in command else f"{command} --verify TARGET" if command else None
        how = mine or "curate.verify(curation, chain, query, fit=...)  # in Python"
        return [
            "Train again without these examples, and without as many at random; TARGET is the one that was scored:",
            "",
            *("```sh", how, "```"),
            "",
            "Whether scores predict retraining at all for this model, with random groups of this size:",
            "",
            "```sh",
            f"stagetrace validate TARGET --stage {curation.stage} --groups {max(share, 1e-3):.3g} --out DIR",
            "```",
        ]


def _verification(found: Verified, fits: Mapping[str, str]) -> dict[str, object]:
    random = zip(found.random_predicted.tolist(), found.random_effects.mT.tolist(), strict=True)
    return {
        "fits": fits,
        "predicted_change": found.predicted,
        "true_change": found.true,
        "true_change_of_each_run": found.effects.tolist(),
        "random_sets": [{"predicted_change": predicted, "true_change_of_each_run": true} for predicted, true in random],
        "random_mean_change": found.random_true.mean().item(),
        "random_sets_as_good": found.random_better,
        "retrainings": found.retrainings,
        "seconds": found.seconds,
    }


def _made_of(described: Any) -> str:
    """What a run says of a stage or of the query; a run that somebody else wrote may say less."""
    said = list[str]()
    for what in ("model", "data"):
        part = described.get(what) if isinstance(described, Mapping) else None
        digest, examples = (part.get("sha256"), part.get("examples")) if isinstance(part, Mapping) else (None, None)
        said += [f"{examples:,} examples"] if isinstance(examples, int) else []
        said += [f"{what} sha256 {digest[:16]}"] if isinstance(digest, str) else []
    return ", ".join(sorted(said, key=lambda part: "sha256" in part)) or "not described"


def _table(sheet: Sheet) -> list[str]:
    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |"

    rule = ["---" if heading in sheet.words else "---:" for heading in sheet.headings]
    return [row(sheet.headings), row(rule), *(row(cells) for cells in sheet.rows)]


def _cell(text: str) -> str:
    """A cell's text, not taken for a table's or a page's own marks."""
    for mark, written in (("&", "&amp;"), ("<", "&lt;"), ("|", r"\|")):
        text = text.replace(mark, written)
    return text
