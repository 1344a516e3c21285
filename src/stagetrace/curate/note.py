"""curation.md, for whoever finds the folder later: what was dropped and why, what that should change, how to check."""

from collections.abc import Mapping, Sequence
from typing import Any

from stagetrace.curate.tables import GROUPS_NOTE, classes, groups, headline, verified
from stagetrace.plaintext import printable
from stagetrace.results import JSON, SIGN
from stagetrace.results.sheet import Sheet


def note(said: Mapping[str, JSON]) -> str:
    """The note as Markdown, from the record alone."""
    record: Mapping[str, Any] = said
    lines = [f"# Curated examples of stage '{record['of']['stage']}'", "", *headline(record), ""]
    lines += [f"- {caveat}" for caveat in record["caveats"]]
    lines += ["", f"Sign: {SIGN}.", "", "## Made from", "", *_made_from(record), ""]
    if record["classes"]:
        lines += ["## Classes", "", *_table(classes(record)), ""]
    if record["groups"]:
        sheet = groups(record)
        lines += ["## Sources", "", *_table(sheet), "", f"Table: {sheet.title}. {GROUPS_NOTE}", ""]
    lines += ["## Files", "", *_files(record), "", "## How to verify", "", *_check(record), ""]
    if record["verified"]:
        lines += ["## What training again said", "", *_table(verified(record)), "", verified(record).caption, ""]
    return "\n".join(printable(line) for line in lines)


def _made_from(record: Mapping[str, Any]) -> list[str]:
    run = record["of"]["run"]
    lines = [f"- rule: `{record['of']['rule']}`"]
    if record["command"]:
        lines.append(f"- command: `{record['command']}`")
    if record["folder"]:
        lines.append(f"- run: `{record['folder']}`")
    stages = run.get("stages")
    for name, stage in stages.items() if isinstance(stages, Mapping) else ():
        lines.append(f"- stage '{name}': {_made_of(stage)}")
    if "query" in run:
        lines.append(f"- query: {_made_of(run['query'])}")
    return lines


def _made_of(described: Any) -> str:
    """What a run says of a stage or of the query; a run that somebody else wrote may say less."""
    said = list[str]()
    for what in ("model", "data"):
        part = described.get(what) if isinstance(described, Mapping) else None
        digest, examples = (part.get("sha256"), part.get("examples")) if isinstance(part, Mapping) else (None, None)
        said += [f"{examples:,} examples"] if isinstance(examples, int) else []
        said += [f"{what} sha256 {digest[:16]}"] if isinstance(digest, str) else []
    return ", ".join(sorted(said, key=lambda part: "sha256" in part)) or "not described"


def _files(record: Mapping[str, Any]) -> list[str]:
    lines = [
        "- `keep.txt`, `drop.txt`: indices in the stage's data set, one a line",
        "- `keep.parquet`, `drop.parquet`: the same with score and removal effect",
    ]
    data = record["of"]["data"]
    if data and data["as"] != "indices":
        name = "data.parquet" if data["as"] == "parquet" else "data/"
        lines.append(
            f"- `{name}`: the kept rows of `{data['place']}`; the column `original_index` says which they were"
        )
    return lines


def _check(record: Mapping[str, Any]) -> list[str]:
    """What to type; TARGET is that of the run."""
    stage, share = record["of"]["stage"], record["dropped"] / record["of"]["examples"]
    command = record["command"]
    mine = command if command and "--verify" in command else f"{command} --verify TARGET" if command else None
    how = mine or "curate.verify(curation, chain, query, fit=...)  # in Python"
    return [
        "Train again without these examples, and without as many at random; TARGET is the one that was scored:",
        "",
        *("```sh", how, "```"),
        "",
        "Whether scores predict retraining at all for this model, with random groups of this size:",
        "",
        *("```sh", f"stagetrace validate TARGET --stage {stage} --groups {max(share, 1e-3):.3g} --out DIR", "```"),
    ]


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
