"""curation.md, for whoever finds the folder later: what was dropped and why, what that should change, how to check."""

from collections.abc import Mapping, Sequence
from typing import Any

from stagetrace.curate.tables import GROUPS_NOTE, classes, groups, headline, verified
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
    return "\n".join(lines)


def _made_from(record: Mapping[str, Any]) -> list[str]:
    run = record["of"]["run"]
    lines = [f"- rule: `{record['of']['rule']}`"]
    if record["command"]:
        lines.append(f"- command: `{record['command']}`")
    if record["folder"]:
        lines.append(f"- run: `{record['folder']}`")
    for name, stage in run.get("stages", {}).items():
        digests = f"model sha256 {stage['model']['sha256'][:16]}, data sha256 {stage['data']['sha256'][:16]}"
        lines.append(f"- stage '{name}': {stage['data']['examples']:,} examples, {digests}")
    if "query" in run:
        query = run["query"]
        lines.append(f"- query: {query['data']['examples']:,} examples, data sha256 {query['data']['sha256'][:16]}")
    return lines


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
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    rule = ["---" if heading in sheet.words else "---:" for heading in sheet.headings]
    return [row(sheet.headings), row(rule), *(row(cells) for cells in sheet.rows)]
