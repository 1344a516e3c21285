"""The tables, and what was aimed at beside what was found."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.bench import rows as parts
from benchmarks.bench.measured import Measured
from benchmarks.report import Report, Row

TITLES = {
    parts.ONE: "One query: the mean loss of all test examples",
    parts.HUNDRED: "100 queries",
    parts.THOUSAND: "1,000 queries",
    parts.TEXT: "GPT-2 on WikiText-2",
    parts.TWO_STAGE: "Two stages, which no other library here traces",
    parts.EXAMPLES: "Scores of more and more examples",
    parts.PARAMETERS: "More and more parameters",
    parts.QUERIES: "More and more queries",
    parts.RANKS: "Several processes",
}
JUDGED = (parts.ONE, parts.HUNDRED, parts.THOUSAND)
SIZES = {parts.EXAMPLES: "examples", parts.PARAMETERS: "parameters", parts.RANKS: "ranks"}
NAMES = {
    "stagetrace": "this library",
    "pydvl": "pyDVL",
    "trak": "TRAK",
}


def tables(report: Report, done: Sequence[Measured], quality: Mapping[str, Mapping[str, Any]]) -> None:
    """A table for each part, the rows that were left out with why; then the aims."""
    for part, title in TITLES.items():
        of = [row for row in done if row.ask.part == part]
        found = [_cells(row, quality.get(row.ask.name, {})) for row in of if row.seconds is not None]
        report.table(title, found, part)
        if part in JUDGED:
            found = [_judged(row, quality.get(row.ask.name, {})) for row in of if row.seconds is not None]
            report.table(f"{title}: how near", found, f"{part} judged")
    left = [
        {"library": library(row), "part": row.ask.part, "method": row.ask.method, "why": row.line["left out"]}
        for row in done
        if row.seconds is None
    ]
    report.table("Left out", left, "left_out")
    report.fields["rows"] = [{"row": row.ask.name, **row.line, **quality.get(row.ask.name, {})} for row in done]
    _aims(report, done)


def library(row: Measured) -> str:
    return NAMES.get(row.ask.rival, row.ask.rival)


def _cells(row: Measured, quality: Mapping[str, Any]) -> Row:
    line, ask = row.line, row.ask
    cells: Row = {"library": library(row), "method": ask.method}
    if ask.size:
        cells[SIZES.get(ask.part, "queries")] = line["of"] if ask.part == parts.PARAMETERS else ask.size
    cells |= {"in all, s": line["in all, s"]}
    if ask.part not in (parts.TWO_STAGE, parts.RANKS):
        cells |= {"fit, s": line.get("fit, s"), "score, s": line.get("score, s")}
    cells |= {
        "products": line["products"],
        "peak MB": line["peak MB"],
        "grew by, MB": line["peak MB"] - line["before MB"],
    }
    if ask.part not in (parts.TWO_STAGE, parts.RANKS):
        cells["covers, %"] = 100 * line["covers"] / line["of"]
    if ask.part == parts.RANKS:
        cells["scores differ by"] = quality.get("scores differ by")
    cells["notes"] = "; ".join(line["notes"]) or None
    return cells


def _judged(row: Measured, quality: Mapping[str, Any]) -> Row:
    line = row.line
    solves = line["system"] or (f"about {line['approximates']}" if line["approximates"] else None)
    columns = ("error of the solve", "error of the scores", "r", "recall@100", "r with retraining")
    found = {column: quality.get(column) for column in columns}
    return {"library": library(row), "method": row.ask.method, "solves": solves, **found}


# What was aimed at


def _aims(report: Report, done: Iterable[Measured]) -> None:
    seconds = {row.ask.name: row.seconds for row in done if row.seconds is not None}
    lines = {row.ask.name: row.line for row in done if row.seconds is not None}

    def ratio(what: str, ours: str, theirs: str, at_most: float) -> None:
        mine, other = seconds.get(f"{parts.OURS}/{ours}"), seconds.get(theirs)
        if mine is not None and other:
            report.target(what, mine / other, at_most)

    cg, ggn = "curvlinops/one/CG, Hessian", "curvlinops/one/CG, GGN"
    same = "one query, seconds over curvlinops' conjugate gradients"
    ratio(f"{same}: (H^2 + 0.001) against H + 0.01", "one/Hessian squared", cg, 0.1)
    ratio(f"{same}: H + 0.01, the same system", "one/Hessian", cg, 0.1)
    ratio(f"{same}: G + 0.01, the same system", "one/Gauss-Newton", ggn, 1 / 1.6)
    ratio(f"{same}: defaults against H + 0.01", "one/default", cg, 0.16)
    for number, exact, fast in ((100, 0.65, 0.45), (1000, 0.95, 0.65)):
        theirs, over = f"kronfluence/{number}/EK-FAC", f"{number:,} queries, seconds over kronfluence's"
        ratio(f"{over}: G + 0.01 to 1e-2", f"{number}/Gauss-Newton, 1e-2", theirs, exact)
        ratio(f"{over}: to 0.1, for a ranking", f"{number}/Gauss-Newton, 0.1", theirs, 0.5)
        ratio(f"{over}: EKFAC", f"{number}/EKFAC", theirs, fast)
    for number in (1, 10, 100):
        theirs, over = f"kronfluence/text/EK-FAC/{number}", f"GPT-2, {number} queries, seconds over kronfluence's"
        ratio(f"{over}: EKFAC, all parameters", f"text/EKFAC/{number}", theirs, 0.75)
        ratio(f"{over}: Gauss-Newton to 0.1", f"text/Gauss-Newton, 0.1/{number}", theirs, 3.0)
    scored = lines.get(f"{parts.OURS}/{parts.SCORING}/score one vector")
    if scored is not None:
        report.target("scores of one solution, in forward passes", float(scored["notes"][0].split()[0]), 2.2)
    ratio(
        "2 ranks of one thread, seconds of each over one's",
        "ranks/Gauss-Newton/2",
        f"{parts.OURS}/ranks/Gauss-Newton/1",
        1 / 1.9,
    )
