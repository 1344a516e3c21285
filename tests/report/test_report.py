"""What the page says, without a browser: every part of the run, safely, and in good time."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from stagetrace import Scores, Trace
from stagetrace.errors import DescriptionError, ResultsError
from stagetrace.report import charts, write
from stagetrace.report.model import Report, rows_of
from stagetrace.report.numbers import percent, signed
from stagetrace.report.render import render
from stagetrace.validation import plots
from tests.report import pages


class Read(HTMLParser):
    """The page's tags with their attributes, its text, and its data."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.data, self._inside = [], [], "", ""
        self.feed(page)
        self.text = " ".join(" ".join(self.texts).split())
        self.embedded: dict[str, Any] = json.loads(self.data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = "data" if dict(attrs).get("id") == "data" else tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data += data
        elif not self._inside:
            self.texts.append(data)


@pytest.fixture(scope="module")
def page(pictures: Path) -> Read:
    return Read(pictures.read_text(encoding="utf-8"))


def test_the_whole_run_is_said(page: Read, pictures: Path):
    trace = Trace.load(pictures.parent)
    for words in (
        "4 examples, mean loss 0.650",
        "NOT CONVERGED (stopped at the step limit), relative residual 0.0200, asked for 1.00e−4",
        "converged, relative residual 3.00e−5",
        "(H^2 + 0.01 I) x = H b",
        "−0.300 to +10.0",
        "900 of 1,024 parameters trained here, 100 kept from the stage before, 24 constant",
        "through the later stages' heads (via_head)",
        "Lanczos(damping=0.01, rtol=0.0001)",
        "link to the stage before (alpha) 0.1",
        "finetune 0.1 +0.750 50 % of 6",
        "12 largest (n = 12, mean of 3 runs)",
        "multi-stage influence 0.9120 0.800 to 0.970 0.8850 1.20",
        "random - - - -",
        "finetune stationarity WARNING the gradient norm is 0.4",
        "score > 0 is harmful",
        "Multi-Stage Influence Function. Advances in Neural Information Processing Systems 33, 2020.",
        f"torch {trace.versions['torch']}",
        f"{trace['pretrain'].share_harmful:.0%}".replace("%", " %"),
    ):
        assert words in page.text, words
    assert [tag for tag, attrs in page.tags if tag == "img" and attrs["src"].startswith("data:image/png")] == [
        "img"
    ] * 2


def test_every_ranking_is_there(page: Read, pictures: Path):
    rows = page.embedded["rows"]
    for place, scores in enumerate(Trace.load(pictures.parent).scores.values()):
        for query in (None, 0, 1, 2, 3):
            found = [row["index"] for row in rows if (row["stage"], row["query"]) == (place, query)]
            count = 100 if query is None else 10
            harmful = [row.index for row in scores.top(count, query=query) if row.score > 0]
            helpful = [row.index for row in scores.top(count, harmful=False, query=query) if row.score < 0]
            assert found == harmful + helpful
    assert {f"{row['stage']}:{row['index']}" for row in rows} == set(page.embedded["previews"])


def test_the_parts_of_one_query_are_its_own():
    scores = pages.drawn("s", 8, 0, queries=3, parts=True)
    assert scores.via_shared is not None
    for row in rows_of(scores, [0, 1, 2]):
        values = [
            part.mean(dim=0) if row.query is None else part[row.query] for part in (scores.values, scores.via_shared)
        ]
        assert row.score == pytest.approx(float(values[0][row.index]))
        assert row.via_shared == pytest.approx(float(values[1][row.index]))
        assert row.removal_effect == pytest.approx(-row.score / 8)
        below = (values[0] < values[0][row.index]).sum() + 0.5
        assert row.percentile == pytest.approx(float(100 * below / 8))


@pytest.mark.parametrize("which", ["hostile", "pictures", "media"])
def test_the_file_asks_for_nothing_and_only_its_own_script_may_run(which: str, request: pytest.FixtureRequest):
    text = request.getfixturevalue(which).read_text(encoding="utf-8")
    found = Read(text)
    assert [attrs.get("type") for tag, attrs in found.tags if tag == "script"] == ["application/json", None]
    for tag, attrs in found.tags:
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert re.match(r"#|data:", attrs.get(name) or "#"), (tag, attrs)
    style = re.search(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert style is not None
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", style[1])
    (policy,) = (attrs["content"] for _, attrs in found.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; media-src data:;")
    assert "unsafe-eval" not in policy
    assert re.search(r"script-src 'sha256-[\w+/=]{44}';", policy)


def test_hostile_texts_come_through_as_data(hostile: Path):
    page = hostile.read_text(encoding="utf-8")
    found = Read(page)
    # nothing in the data can end its element, or put the parser into another state
    assert not set(page.split('id="data">')[1].split("</script>")[0]) & set("<>&\u2028\u2029")
    assert len(hostile.read_bytes()) < 400_000  # the megabytes of text were cut
    texts = {item["text"] for item in found.embedded["previews"].values()}
    assert texts >= set(pages.HOSTILE[:11])
    assert "half a character: \\ud83d, a null \x00, a bell \x07, and \u2028 a separator" in texts
    assert "<script>window.stolen = 5</script>" in found.text  # in the command, as text


def test_the_same_run_gives_the_same_page(pictures: Path):
    before = pictures.read_bytes()
    assert write(pictures.parent) == pictures
    assert pictures.read_bytes() == before


def test_a_bare_run_gives_indices_and_says_what_to_type(tmp_path: Path):
    Trace({"only": Scores("only", torch.tensor([0.5, -1.0, 0.0]).double())}).save(tmp_path / "run")
    found = Read(write(tmp_path / "run", out=tmp_path / "elsewhere.html").read_text(encoding="utf-8"))
    assert not (tmp_path / "run" / "report.html").exists()
    assert [row["index"] for row in found.embedded["rows"]] == [0, 1]
    assert found.embedded["previews"] == {}
    for command in ("stagetrace score TARGET --out DIR --sweep", "stagetrace validate TARGET --out DIR"):
        assert command in found.text
    assert "stagetrace check TARGET --out DIR" in found.text
    assert "Solve: not recorded" in found.text


def test_without_matplotlib_the_page_says_so(monkeypatch: pytest.MonkeyPatch, pictures: Path):
    monkeypatch.setattr(plots, "available", lambda: False)
    text = render(Report.of(Trace.load(pictures.parent)))
    assert "<svg" not in text
    assert "No charts: matplotlib was not installed" in text


def test_a_hundred_thousand_examples_take_no_time():
    """Under three seconds on an idle core; processor time is measured, so that a busy machine fails nobody."""
    trace = Trace({name: pages.drawn(name, 100_000, seed) for seed, name in enumerate(("pretrain", "finetune"))})
    render(Report.of(Trace({"only": pages.drawn("only", 10, 0)})))  # loads matplotlib and its fonts
    started = time.process_time()
    page = render(Report.of(trace))
    assert time.process_time() - started < 3
    assert len(page) < 500_000


def test_charts_count_as_the_scores_do(pictures: Path):
    stage = Report.of(Trace.load(pictures.parent)).stages[0]
    harmful, n = int((stage.scores.per_example > 0).sum()), stage.scores.n_examples
    chart = charts.scores_chart(stage)
    assert f"{harmful} of {n} examples are harmful" in chart
    assert f">{harmful} of {n} ({harmful / n:.0%})<" in chart
    assert "var(--harmful)" in chart
    assert "#0" not in re.sub(r'(?:href="|url\()#\w+', "", chart)  # every colour follows the page
    assert "2 below 0 (dashed)" in charts.spectrum_chart(stage)
    assert charts.spectrum_chart(Report.of(Trace({"a": Scores("a", torch.ones(1).double())})).stages[0]) == ""


def test_refusals(tmp_path: Path, pictures: Path):
    with pytest.raises(DescriptionError, match="chain and query come together"):
        write(pictures.parent, chain=object())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ResultsError, match=r"no run.json"):
        write(tmp_path)
    run = tmp_path / "run"
    Trace({"a": Scores("a", torch.ones(1).double())}).save(run)
    (run / "check.json").write_text("{")
    with pytest.raises(ResultsError, match=r"check.json cannot be read .* delete it"):
        write(run)


@pytest.mark.parametrize(
    "value", [1.2349e-12, -0.00012349, 0.0012349, 0.12349, -9.996, 12.349, 1234.9, 9999.9, -1.2349e300]
)
def test_numbers_keep_three_digits_and_their_sign(value: float):
    said = signed(value)
    assert float(said.replace("−", "-")) == pytest.approx(value, rel=5e-3)
    assert said[0] == ("+" if value > 0 else "−")


def test_hundred_per_cent_is_all():
    assert [percent(share) for share in (0.0, 0.99999, 1.0)] == ["0 %", "100.00 %", "100 %"]
