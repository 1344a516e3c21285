"""`examples/hugging_face.py`: what a user copies, run by the command line on folders as a user has them."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from stagetrace import Trace, hf, trace
from stagetrace.cli.main import app
from stagetrace.errors import StagetraceError
from tests.hf import tiny

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "hugging_face.py"
VARIABLES = (
    "STAGETRACE_PRETRAINED",
    "STAGETRACE_FINETUNED",
    "STAGETRACE_PRETRAINING_DATA",
    "STAGETRACE_FINETUNING_DATA",
)

pytestmark = pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning")


def write(folder: Path, **splits: list[dict[str, Any]]) -> str:
    folder.mkdir()
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Two folders of models and two of data, in the example's environment variables."""
    before, tokenizer = tiny.model("BertForMaskedLM"), tiny.tokenizer()
    found = (
        tiny.saved(tmp_path / "language", before, tokenizer),
        tiny.saved(tmp_path / "classifier", tiny.grown("BertForSequenceClassification", before, 0.1), tokenizer),
        write(tmp_path / "sentences", train=[{"text": ""}, {"text": "a dog"}, *tiny.rows()]),
        write(tmp_path / "reviews", train=tiny.rows(2), test=tiny.rows(2)[:3]),
    )
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for variable, place in zip(VARIABLES, found, strict=True):
        monkeypatch.setenv(variable, place)
    return dict(zip(VARIABLES, found, strict=True))


def job() -> Any:
    spec = importlib.util.spec_from_file_location("hugging_face_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.job()


def test_the_command_line_scores_it(places: dict[str, str], tmp_path: Path):
    ended = CliRunner().invoke(app, ["score", f"{EXAMPLE}:job", "--out", str(tmp_path / "run")])
    assert ended.exit_code == 0, ended.output
    assert "harmful" in ended.output
    kept = Trace.load(tmp_path / "run")
    long = [row for row in tiny.rows() if len(row["text"].split()) > 3]
    first = hf.stage("pretrain", places["STAGETRACE_PRETRAINED"], long)
    second = hf.stage("finetune", places["STAGETRACE_FINETUNED"], tiny.rows(2), after=first)
    chain, _ = job()
    assert chain.names == ("pretrain", "finetune")
    expected = trace(type(chain)(first, second), hf.query(tiny.rows(2)[:3], stage=second))
    for name in chain.names:
        torch.testing.assert_close(kept[name].values, expected[name].values)
        assert bool((kept[name].values != 0).any())


@pytest.mark.parametrize("variable", VARIABLES)
def test_it_says_what_is_not_set(variable: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    assert variable in places
    monkeypatch.delenv(variable)
    with pytest.raises(StagetraceError, match=f"{variable} is not set"):
        job()
