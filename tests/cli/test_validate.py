"""`stagetrace validate`: the numbers it writes are the library's, and nothing is trained twice."""

import json
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from stagetrace import Identity, Lanczos
from stagetrace.cli import fits
from stagetrace.cli.main import app, main
from stagetrace.errors import DescriptionError, StagetraceWarning
from stagetrace.results.lock import Lock
from stagetrace.validation import (
    SGD,
    Adam,
    AdamW,
    EmbeddingSimilarity,
    GradientDot,
    GroupRemovals,
    Influence,
    LinearDatamodelling,
    Random,
    RandomRemovals,
    Rerun,
    Resolve,
    SingleStage,
    Steps,
    TopRemovals,
)
from stagetrace.validation import validate as library
from tests import jobs
from tests.oracles import one_thread
from tests.replay.runs import Run, Stages

TARGET = f"{jobs.FILE}:frozen"
QUICK = "--retrain", "sgd:lr=0.05,steps=4,batch_size=8", "--processes", "1"
FEW = "--largest", "4", "--random", "3", "--seeds", "2"
CONTROLS = ["identity curvature", "single-stage influence", "gradient dot product", "random"]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """What was printed, in one line."""
        return " ".join(f"{self.out} {self.err}".split())


Command = Callable[..., Ended]


@pytest.fixture
def validate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`stagetrace validate WORDS` in this process, 80 columns wide and not to a terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    path = list(sys.path)

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["stagetrace", "validate", *map(str, words)])
        with warnings.catch_warnings():
            warnings.simplefilter("always", StagetraceWarning)
            with pytest.raises(SystemExit) as ended:
                main()
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    with one_thread():
        yield run
    sys.path[:] = path
    for name in ("jobs", "described"):
        sys.modules.pop(name, None)


def said(folder: Path) -> Any:
    """What `validate.json` holds."""
    return json.loads((folder / "validate.json").read_text())


def trained(folder: Path) -> list[dict[str, Any]]:
    """The retrainings that are kept."""
    return [json.loads(line) for line in (folder / "retrainings.jsonl").read_text().splitlines()]


def target(folder: Path, body: str) -> str:
    """A TARGET of its own."""
    (folder / "described.py").write_text("from tests import jobs\n" + textwrap.dedent(body))
    return f"{folder / 'described.py'}:job"


# The numbers


@pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning", "ignore:validate. query loss")
def test_every_number_is_the_librarys(validate: Command, tmp_path: Path):
    words = "--groups", 0.2, "--group-count", 3, "--seed", 5, "--solve", "damping=0.01", "--embedding", "embedding"
    ended = validate(TARGET, "--out", tmp_path, *QUICK, *FEW, *words, "--by", 1, "--by", 0.5)
    assert ended.code == 0, ended.err
    chain, query, _ = jobs.frozen()
    solver = Lanczos(damping=0.01, rtol=1e-9)
    truth = library(
        chain,
        query,
        fit=Steps(SGD(0.05), 4, 8),
        choices=[
            *(TopRemovals(4), TopRemovals(4, 0.5), RandomRemovals(3, seed=5), RandomRemovals(3, 0.5, 5)),
            *(GroupRemovals(0.2, 3, 5), GroupRemovals(0.2, 3, 5, 0.5)),
        ],
        estimators=[
            Influence(solver=solver),
            Influence(Identity(), Lanczos(damping=0.0), "identity curvature"),
            SingleStage(solver=solver),
            GradientDot(),
            Random(5),
            EmbeddingSimilarity("embedding"),
        ],
        seeds=range(2),
        processes=1,
    )
    record = said(tmp_path)
    assert (record["stage"], record["unit"], record["not_applicable"]) == ("pretrain", "query loss", {})
    assert record["estimators"] == {name: {"unit": unit} for name, unit in truth.units.items()}
    assert list(record["estimators"])[1:] == [*CONTROLS, "embedding similarity"]
    assert [choice["choice"] for choice in record["choices"]] == [measured.choice for measured in truth.measured]
    assert len(truth.measured) == 6
    for written, measured in zip(record["choices"], truth.measured, strict=True):
        assert [tuple(removal["removed"]) for removal in written["removals"]] == list(measured.removals)
        effects = torch.tensor([removal["true"] for removal in written["removals"]], dtype=torch.float64).mT
        assert torch.equal(effects, measured.effects)
        assert written["reliability"] == measured.reliability.record()
        for name, agreement in measured.agreement.items():
            found = dict(written["agreement"][name])
            if "groups" in measured.choice:
                lds = LinearDatamodelling.of(measured.predicted[name], measured.true).record()
                assert found.pop("lds") == lds
            assert found == agreement.record()
    assert record["retrainings"] == truth.retrainings == len(trained(tmp_path))
    settings = record["settings"]
    assert (settings["target"], settings["seeds"]) == (TARGET, [0, 1])
    assert settings["fit"]["finetune"]["optimizer"] == {"name": "SGD", "lr": 0.05, "momentum": 0.0}
    assert settings["solver"]["pretrain"]["damping"] == 0.01
    assert settings["choices"][2] == {"name": "RandomRemovals", "count": 3, "by": 1.0, "seed": 5}


def test_what_is_printed(validate: Command, tmp_path: Path):
    ended = validate(TARGET, "--out", tmp_path / "run", *QUICK, *FEW)
    record = said(tmp_path / "run")
    figures = record["choices"][0]["agreement"]["multi-stage influence"]
    row = next(line for line in ended.out.splitlines() if line.split()[:1] == ["multi-stage"])
    assert f"{figures['pearson_r']:.4f}" in row
    assert f"{figures['slope']:.2f}" in row
    for title in ("stage 'pretrain', 4 largest (n = 4, mean of 2 runs)", "stage 'pretrain', 3 at random (n = 3"):
        assert title in ended.out
    for control in CONTROLS:
        assert control.split()[0] in ended.out
    words = " ".join(ended.out.split())
    assert "unit: query loss" in words
    assert "negative = removing them helps" in words
    assert re.search(r"truth: reliability .* noise floor", words)
    assert re.search(rf"{record['retrainings']} retrainings from stage 'pretrain' on, [\d.e+]+ a minute", words)
    assert "stage 'finetune' was retrained by SGD: 4 steps, learning rate 0.05, batches of 8, warm start" in words
    assert re.search(rf"training again  {record['retrainings']}/{record['retrainings']} retrainings", ended.err)
    files = [tmp_path / "run" / name for name in ("validate.json", "agreement.png", "estimators.png")]
    assert ended.out.endswith(f"saved to {', '.join(map(str, files))}\n")
    assert all(path.stat().st_size > 1000 for path in files)
    assert max(len(line) for line in ended.out.splitlines() if not line.startswith("saved to")) <= 80


# Nothing twice


@pytest.mark.slow
def test_the_same_command_trains_nothing_again(validate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert validate(TARGET, "--out", tmp_path, *QUICK, *FEW).code == 0
    before, lines = said(tmp_path), (tmp_path / "retrainings.jsonl").read_text()
    monkeypatch.setattr("stagetrace.validation.retrain.Retraining.losses", None)
    assert validate(TARGET, "--out", tmp_path, *QUICK, *FEW).code == 0
    after = said(tmp_path)
    for key in ("seconds", "retrainings_per_minute"):
        assert after.pop(key) == pytest.approx(before.pop(key))
    assert after == before
    assert (tmp_path / "retrainings.jsonl").read_text() == lines


@pytest.mark.slow
def test_an_interrupted_command_goes_on_with_what_is_left(
    validate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from stagetrace.validation.store import Store

    add, left = Store.add, [3]

    def interrupted(store: Store, *given: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        add(store, *given)

    words = *QUICK, *FEW, "--together", 2
    assert validate(TARGET, "--out", tmp_path / "whole", *words).code == 0
    monkeypatch.setattr(Store, "add", interrupted)
    ended = validate(TARGET, "--out", tmp_path / "cut", *words)
    assert ended.code == 130
    assert "rerun the same command to resume" in ended.err
    kept = trained(tmp_path / "cut")
    assert len(kept) == 6
    assert not (tmp_path / "cut" / "validate.json").exists()
    monkeypatch.setattr(Store, "add", add)
    assert validate(TARGET, "--out", tmp_path / "cut", *words).code == 0
    assert trained(tmp_path / "cut")[:6] == kept
    assert len(trained(tmp_path / "cut")) == len(trained(tmp_path / "whole")) > 6
    assert said(tmp_path / "cut")["choices"] == said(tmp_path / "whole")["choices"]


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(validate: Command, tmp_path: Path):
    assert validate(TARGET, "--out", tmp_path, *QUICK, *FEW).code == 0
    ended = validate(TARGET, "--out", tmp_path, *QUICK, *FEW, "--retrain", "lr=0.06")
    assert ended.code == 1
    assert "holds another set of retrainings" in ended.err
    assert "lr: 0.05 -> 0.06" in ended.err


def test_a_folder_in_use_is_refused_before_the_target_is_loaded(validate: Command, tmp_path: Path):
    lock = Lock(tmp_path)
    ended = validate("no such target", "--out", tmp_path)
    lock.release()
    assert ended.code == 1
    assert "is in use" in ended.err


# How stages are retrained


@pytest.mark.slow
def test_the_default_is_resolve_in_double_precision_and_adam_below(validate: Command, tmp_path: Path):
    words = "--largest", 3, "--random", 3, "--processes", 1
    assert validate(TARGET, "--stage", "finetune", "--out", tmp_path / "double", *words).code == 0
    record = said(tmp_path / "double")
    assert record["settings"]["fit"]["finetune"]["name"] == "Resolve"
    assert record["settings"]["seeds"] == [0]
    assert record["stage"] == "finetune"
    assert [choice["by"] for choice in record["choices"]] == [1.0, 0.1, 1.0, 0.1]
    assert {choice["reliability"] for choice in record["choices"]} == {None}
    ended = validate(f"{jobs.FILE}:single_precision", "--out", tmp_path / "single", *words)
    assert ended.code == 0, ended.err
    said_of_it = "is retrained by Adam: 5 steps, learning rate 0.0001, batches of 37, warm start"
    assert f"stage 'pretrain' {said_of_it}" in ended.words
    assert said(tmp_path / "single")["settings"]["seeds"] == [0, 1, 2]


def settled(*typed: str, given: Any = None, stage: str = "pretrain", job: str = "frozen") -> dict[str, Any]:
    return fits.fits(getattr(jobs, job)()[0], stage, typed, given)


def test_words_per_stage():
    found = settled("finetune=adam", "sgd:steps=7,batch_size=4", "pretrain=lr=0.5")
    assert found == {"pretrain": Steps(SGD(0.5), 7, 4), "finetune": Steps(Adam(1e-4), 7, 4)}
    assert list(settled(stage="finetune")) == ["finetune"]
    assert settled("adamw:decay=0.1,steps=3,batch_size=4")["pretrain"] == Steps(AdamW(1e-4, weight_decay=0.1), 3, 4)
    assert settled("sgd:momentum=0.9,steps=3,batch_size=4")["pretrain"] == Steps(SGD(momentum=0.9), 3, 4)


def test_five_epochs_are_the_default():
    found = settled("adam", "pretrain=batch_size=10")
    assert (found["pretrain"].steps, found["pretrain"].batch_size) == (20, 10)
    assert (found["finetune"].steps, found["finetune"].batch_size) == (5, 23)


def test_a_word_for_all_stages_goes_where_it_applies():
    found = settled("adam:steps=3,start=cold", "tolerance=1e-6,proximity=0.1", "finetune=resolve")
    assert (found["pretrain"].steps, found["pretrain"].start) == (3, "cold")
    assert (found["finetune"].tolerance, found["finetune"].proximity) == (1e-6, 0.1)
    assert settled("schedule=cosine", given=Steps(SGD(), 9, 9))["finetune"].schedule == "cosine"


def test_the_targets_fits_are_changed_by_what_is_typed():
    given = {"finetune": Steps(SGD(0.3), 9, 4)}
    found = settled("finetune=steps=5", given=given)
    assert found["finetune"] == Steps(SGD(0.3), 5, 4)
    assert isinstance(found["pretrain"], Resolve)
    assert isinstance(settled("finetune=resolve", given=given)["finetune"], Resolve)


BAD_FITS = [
    ("magic", "--retrain must be one of rerun, resolve, adam, adamw, sgd, got 'magic'"),
    ("nope=sgd", "--retrain: 'nope' is neither a stage .pretrain, finetune. nor a setting .batch_size, steps, lr,"),
    ("steps=3", "^--retrain: steps does not apply to Resolve, which takes tolerance, proximity$"),
    ("resolve:lr=1", "^--retrain: lr does not apply to Resolve, which takes tolerance, proximity$"),
    ("adam:decay=1", "decay does not apply to Adam, which takes batch_size, steps, lr, start, schedule$"),
    ("sgd:tolerance=1e-6", "--retrain: tolerance does not apply to SGD, which takes batch_size, steps, lr, momentum,"),
    ("sgd:steps=many", "--retrain: steps needs a whole number, got 'many'"),
    ("sgd:steps=0", "--retrain: steps needs a whole number of at least 1, got '0'"),
    ("sgd:batch_size=0", "--retrain: batch_size needs a whole number of at least 1, got '0'"),
    ("adam:lr=-1", "--retrain: lr needs a number above 0, got '-1'"),
    ("adam:lr=nan", "--retrain: lr needs a number above 0, got 'nan'"),
    ("adamw:decay=-1", "AdamW: weight_decay must be a number of at least 0"),
    ("sgd:momentum=1", "SGD: momentum must be from 0 to below 1"),
    ("sgd:start=lukewarm", "--retrain: start must be one of warm, previous, cold, got 'lukewarm'"),
    ("sgd:schedule=linear", "--retrain: schedule must be one of constant, cosine, got 'linear'"),
    ("proximity=-1", "proximity must be a number of at least 0"),
]


@pytest.mark.parametrize(("typed", "message"), BAD_FITS, ids=[case[0] for case in BAD_FITS])
def test_words_that_make_no_fit(typed: str, message: str):
    with pytest.raises(DescriptionError, match=message):
        settled(typed)


def test_a_word_for_a_stage_that_is_not_trained_again_is_refused():
    with pytest.raises(
        DescriptionError, match="stage 'pretrain' is not retrained; the retrained stages are 'finetune'"
    ):
        settled("pretrain=sgd", stage="finetune")


# Recorded stages


RECORDED = """
    import tempfile
    from functools import partial
    from pathlib import Path
    import torch
    from tests.replay.runs import Run, Stages

    SGD = partial(torch.optim.SGD, lr=0.05)
    STAGES = Stages((Run(SGD, epochs=2), Run(SGD, epochs=2)), (9, 8))

    def job():
        return STAGES.chain(Path(tempfile.mkdtemp())), STAGES.query("mean")
"""


def test_a_recorded_training_is_repeated_without_a_word(validate: Command, tmp_path: Path):
    ended = validate(target(tmp_path, RECORDED), "--out", tmp_path / "run", *FEW, "--processes", 1)
    assert ended.code == 0, ended.err
    for stage in ("stage0", "stage1"):
        how = "rerun: its recorded training repeated, in the recorded order"
        assert f"stage '{stage}' was retrained by {how}" in ended.words
    record = said(tmp_path / "run")
    assert record["control"]["losses"] == [pytest.approx(record["control"]["traced"], rel=1e-12)]
    assert f"query loss: {record['control']['traced']:.4g} of the traced model" in ended.words
    names = ["4 largest", "4 largest, 0.1 of each", "3 at random", "3 at random, 0.1 of each"]
    assert [choice["choice"] for choice in record["choices"]] == names
    assert list(record["estimators"]) == ["multi-stage influence", *CONTROLS[1:]]  # nothing has a curvature
    for choice in record["choices"]:
        assert choice["agreement"]["multi-stage influence"]["pearson_r"] > 0.98
        assert abs(choice["agreement"]["multi-stage influence"]["slope"] - 1) < 0.1


def test_words_for_recorded_stages(tmp_path: Path):
    stages = Stages((Run(partial(torch.optim.SGD, lr=0.05), epochs=1),) * 2, (6, 5))
    chain = stages.chain(tmp_path)
    both = fits.fits(chain, "stage0", ["order=other"], None)
    assert both == {"stage0": Rerun("other"), "stage1": Rerun("other")}
    mixed = fits.fits(chain, "stage0", ["stage0=adam:steps=7", "stage1=rerun:order=other"], None)
    assert mixed == {"stage0": Steps(Adam(1e-4), 7, 6), "stage1": Rerun("other")}
    assert fits.describe(chain, mixed)["stage1"] == "rerun: its recorded training repeated, in other orders"
    steps = fits.fits(chain, "stage0", ["adam", "stage1=steps=3"], None)
    assert "warm start" in fits.describe(chain, steps)["stage0"]
    assert fits.describe(chain, steps)["stage1"].endswith(
        "from where the stage before ends, the rest from its trained values"
    )
    with pytest.raises(DescriptionError, match="order must be one of recorded, other, got 'reversed'"):
        fits.fits(chain, "stage0", ["stage1=rerun:order=reversed"], None)


# What the target gives


OPTIONS = """
    from stagetrace import Lanczos
    from stagetrace.validation import GradientDot, Influence, Random

    def fit(weights):
        return jobs.frozen()[0].stages[0].model

    def tune(weights, previous):
        model = jobs.frozen()[0].stages[1].model
        import torch
        with torch.no_grad():
            model.head.bias += 0.01 * (weights - 1).sum() + 0.01 * torch.arange(3) * previous.head.bias[0]
        return model

    def job():
        chain, query, options = jobs.frozen()
        estimators = [GradientDot(), Influence(name="mine", solver=Lanczos(damping=0.1))]
        return chain, query, options | {"fit": {"pretrain": fit, "finetune": tune}, "estimators": estimators}
"""


def test_the_targets_fit_and_estimators(validate: Command, tmp_path: Path):
    ended = validate(target(tmp_path, OPTIONS), "--out", tmp_path / "run", *FEW, "--processes", 1)
    assert ended.code == 0, ended.err
    record = said(tmp_path / "run")
    assert list(record["estimators"]) == ["gradient dot product", "mine"]
    assert record["settings"]["fit"]["pretrain"]["function"].startswith("fit (")
    assert "solver" not in record["settings"]
    assert "stage 'finetune' was retrained by tune(): the target's own training" in ended.words
    assert len(record["choices"][0]["removals"][0]["true"]) == 1, "no seed, one run"


def test_typed_words_stand_above_the_targets(validate: Command, tmp_path: Path):
    words = *QUICK, *FEW, "--solve", "damping=0.2"
    ended = validate(target(tmp_path, OPTIONS), "--out", tmp_path / "run", *words)
    assert ended.code == 0, ended.err
    record = said(tmp_path / "run")
    assert list(record["estimators"]) == ["multi-stage influence", *CONTROLS]
    assert record["settings"]["solver"]["pretrain"]["damping"] == 0.2
    assert record["settings"]["fit"]["pretrain"]["optimizer"]["name"] == "SGD"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('{"fit": 3}', "a fit must be Rerun(), Resolve(), Steps(...) or a function fit(weights) -> model, got int"),
        ('{"fit": {"nope": None}}', "the target's option 'fit': no stage is called 'nope'"),
        ('{"estimators": []}', "the target's option 'estimators' is empty"),
        ('{"estimators": [3]}', "the target's option 'estimators' must be a list such as [Influence(), Random()]"),
        ('{"fits": 3}', "the option 'fits'; options for trace are curvature, solver, of, parts, tokens, for validate"),
    ],
)
def test_options_of_the_target_that_say_nothing(validate: Command, options: str, message: str, tmp_path: Path):
    job = target(tmp_path, f"def job():\n    return *jobs.frozen()[:2], {options}\n")
    ended = validate(job, "--out", tmp_path / "run", *QUICK, *FEW)
    assert (ended.code, ended.out) == (1, "")
    assert message in ended.err
    assert not (tmp_path / "run").exists()


# Controls


def test_a_control_that_does_not_apply_is_named_with_its_reason(validate: Command, tmp_path: Path):
    ended = validate(f"{jobs.FILE}:unrelated", "--out", tmp_path, *QUICK, *FEW)
    assert ended.code == 0, ended.err
    record = said(tmp_path)
    assert list(record["estimators"]) == ["multi-stage influence", "identity curvature", "random"]
    assert list(record["not_applicable"]) == ["single-stage influence", "gradient dot product"]
    for name, reason in record["not_applicable"].items():
        assert "has no parameter that stage 'pretrain' trained" in reason
        assert f"{name} does not apply: {reason}" in " ".join(ended.out.split())
    assert list(record["choices"][0]["agreement"]) == list(record["estimators"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--embedding", "nope"), "embedding similarity: .* has no submodule 'nope'"),
        (("--text", "nope"), "BM25"),
        (("--solve", "lissa:damping=-1"), "damping"),
    ],
)
def test_a_control_that_was_asked_for_and_the_score_itself_must_apply(
    validate: Command, words: tuple[str, ...], message: str, tmp_path: Path
):
    ended = validate(TARGET, "--out", tmp_path / "run", *QUICK, *FEW, *words)
    assert (ended.code, ended.out) == (1, "")
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_score_stops_the_command(validate: Command, tmp_path: Path):
    body = """
        def job():
            chain, query, _ = jobs.frozen()
            chain.stages[1].data.tensors[0][2] = float("nan")
            return chain, query
    """
    ended = validate(target(tmp_path, body), "--out", tmp_path / "run", *QUICK, *FEW)
    assert (ended.code, ended.out) == (1, "")
    assert "error: stage 'finetune': the loss of example 2 is nan" in ended.err
    assert not (tmp_path / "run").exists()


def test_without_matplotlib_the_rest_is_written(validate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = validate(TARGET, "--out", tmp_path, *QUICK, *FEW)
    assert ended.code == 0
    lines = [line for line in ended.err.splitlines() if "matplotlib" in line]
    assert lines == ["warning: no plots: matplotlib is not installed; type: pip install 'stagetrace[report]'"]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".jsonl"]


# Wrong words

NOWHERE = "nowhere.py:job"  # usage is looked at before the target


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((NOWHERE,), "Missing option '--out'"),
        (("--out", "run"), "Missing argument 'TARGET'"),
        ((NOWHERE, "--out", "run", "--nonsense"), "No such option"),
        *(((NOWHERE, "--out", "run", f"{option}=-1"), option) for option in ("--largest", "--random")),
        *(((NOWHERE, "--out", "run", option, "0"), option) for option in ("--seeds", "--processes", "--together")),
        *(((NOWHERE, "--out", "run", option, "x"), option) for option in ("--by", "--groups", "--seed", "--largest")),
        ((NOWHERE, "--out", "run", "--group-count", "2"), "--group-count"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_wrong_usage_exits_2(words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["validate", *words], env={"COLUMNS": "80"})
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert not (tmp_path / "run").exists()


BAD_WORDS = [
    (("--stage", "nope"), "--stage: no stage is called 'nope'; the chain's stages are 'pretrain', 'finetune'"),
    (("--largest", "0", "--random", "0"), "nothing to remove: type --largest, --random or --groups"),
    (("--largest", "2"), "--largest: a correlation needs at least 3 removals, got 2"),
    (("--random", "1"), "--random: a correlation needs at least 3 removals, got 1"),
    (("--by", "0"), "by must be above 0"),
    (("--by", "1.5"), "at most 1"),
    (("--groups", "1"), "share must be above 0 and below 1"),
    (("--retrain", "magic"), "--retrain must be one of rerun, resolve, adam, adamw, sgd, got 'magic'"),
    (("--solve", "nope=cg"), "--solve: 'nope' is neither a stage (pretrain, finetune) nor a setting"),
]


@pytest.mark.parametrize(("words", "message"), BAD_WORDS, ids=[" ".join(case[0]) for case in BAD_WORDS])
def test_words_that_say_nothing_are_refused_in_one_line(
    validate: Command, words: tuple[str, ...], message: str, tmp_path: Path
):
    ended = validate(TARGET, "--out", tmp_path / "run", *QUICK, *words)
    assert (ended.code, ended.out) == (1, "")
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert not (tmp_path / "run").exists()


def test_a_stage_too_small_to_correlate_is_refused_before_it_is_trained(validate: Command, tmp_path: Path):
    body = """
        from stagetrace import Chain, Frozen, Query

        def job():
            return jobs.chain(Frozen("embedding"), sizes=(2, 9)), Query(jobs.examples(3, 9))
    """
    ended = validate(target(tmp_path, body), "--out", tmp_path / "run", *QUICK)
    assert ended.code == 1
    assert "--largest: a correlation needs at least 3 removals, stage 'pretrain' has 2 examples" in ended.err


def test_several_processes_that_would_train_the_same_are_refused(
    validate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = validate(TARGET, "--out", tmp_path / "run", *QUICK, *FEW)
    assert ended.code == 1
    assert "start it once, without torchrun, and type --processes N" in ended.err
