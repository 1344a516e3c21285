"""A report as one HTML string: everything that people or data sets wrote is escaped, and nothing is fetched."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from stagetrace.plaintext import printable
from stagetrace.report import charts
from stagetrace.report.heat import heat_of
from stagetrace.report.model import Report, Row
from stagetrace.report.numbers import number, percent, signed
from stagetrace.report.preview import Preview
from stagetrace.report.shown import compact, data_uri, shown
from stagetrace.results.sign import SIGN, UNIT
from stagetrace.version import __version__

CITATION = (
    "Hongge Chen, Si Si, Yang Li, Ciprian Chelba, Sanjiv Kumar, Duane Boning, Cho-Jui Hsieh. Multi-Stage Influence "
    "Function. Advances in Neural Information Processing Systems 33, 2020."
)
_ACTING = re.compile(
    r"[<>&\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    r"\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""What the page's data hold as JSON's escapes: what could end a script element, and what would hide in the file."""


def render(report: Report) -> str:
    """The page.

    Example:
        >>> import torch
        >>> from stagetrace import Scores, Trace
        >>> page = render(Report.of(Trace({"<b>": Scores("<b>", torch.tensor([0.5, -1.0]).double())})))
        >>> page.startswith("<!doctype html>"), "<b>" in page
        (True, False)
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=legible
    )
    environment.filters.update(signed=signed, number=number, percent=percent)
    script = _asset("preview.js") + _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    drawn = charts.available()
    return environment.from_string(_asset("page.html")).render(
        report=report,
        histograms=[Markup(charts.scores_chart(stage)) for stage in report.stages] if drawn else [],
        spectra=[Markup(charts.spectrum_chart(stage)) for stage in report.stages] if drawn else [],
        plots={name: data_uri(content) for name, content in report.attachments.plots.items()},
        data=Markup(embedded(data_of(report))),
        style=Markup(_asset("style.css")),
        script=Markup(script),
        digest=digest,
        sign=SIGN,
        unit=UNIT,
        citation=CITATION,
        version=__version__,
    )


def data_of(report: Report) -> dict[str, Any]:
    """What the page's script shows: rankings, and a preview for each place that a ranking or the query names."""
    wanted = {(row.stage, row.index) for row in report.rows}
    names = [stage.name for stage in report.stages]
    items = [item for item in report.previews.values() if item.stage is not None and (item.stage, item.index) in wanted]
    return {
        "stages": names,
        "rows": [_row(row, names.index(row.stage)) for row in report.rows],
        "previews": {
            f"{names.index(str(item.stage))}:{item.index}": {**_preview(item), **same}
            for item, same in zip(items, _look_alikes(items), strict=True)
        },
        "heat": heat_of(report, names),
        "queries": [{"index": item.index, **_preview(item)} for item in report.queries],
        "each": any(row.query is not None for row in report.rows),
    }


def embedded(value: Any) -> str:
    r"""JSON that can stand in a script element: no text in it can end the element or open another.

    Example:
        >>> print(embedded({"text": "</script>"}))
        {"text": "\u003c/script\u003e"}
    """
    return _ACTING.sub(_escaped, json.dumps(value, ensure_ascii=False, allow_nan=False))


def legible(value: Any) -> Any:
    """A value of the template as it is shown: what would hide or act in a text is written out; our own markup stays."""
    return printable(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def _escaped(found: re.Match[str]) -> str:
    escaped = json.dumps(found[0])[1:-1]
    return escaped if escaped.startswith("\\") else f"\\u{ord(found[0]):04x}"


def _row(row: Row, stage: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "stage": stage,
        "query": row.query,
        "index": row.index,
        "score": row.score,
        "said": signed(row.score),
        "removal": signed(row.removal_effect),
        "percentile": f"{row.percentile:.1f}",
    }
    if row.name:
        found["id"] = row.name
    if row.via_shared is not None and row.via_head is not None:
        found["parts"] = [signed(row.via_shared), signed(row.via_head)]
    return found


def _preview(item: Preview) -> dict[str, Any]:
    said = {
        "prediction": item.prediction,
        "loss": None if item.loss is None else number(item.loss),
        "value": item.loss if item.loss is not None and math.isfinite(item.loss) else None,
    }
    return compact({**shown(item), **said})


def _look_alikes(items: Sequence[Preview]) -> list[dict[str, int]]:
    """For each example that looks as another of its stage does a number that they share."""
    places: dict[object, list[int]] = {}
    for place, item in enumerate(items):
        if item.look is not None:
            places.setdefault((item.stage, item.look), []).append(place)
    found: list[dict[str, int]] = [{} for _ in items]
    for group, alike in enumerate(places.values()):
        for place in alike if len(alike) > 1 else ():
            found[place] = {"same": group}
    return found


def _asset(name: str) -> str:
    return (files("stagetrace.report") / "assets" / name).read_text(encoding="utf-8")
