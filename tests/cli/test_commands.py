"""The command line: what it prints and where, how it ends, and what its options mean."""

import inspect
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import stagetrace
from stagetrace import CG, EKFAC, Direct, GaussNewton, Lanczos, Normal, Shift, Trace
from stagetrace.cli import fits, options, settings
from stagetrace.cli.main import app, main
from stagetrace.curate.record import OutputFormat
from stagetrace.curate.verify import RANDOM
from stagetrace.curvature.auto import Auto
from stagetrace.curvature.named import CURVATURES
from stagetrace.curvature.subset import ENOUGH, PREDICTIONS
from stagetrace.errors import ResultsError, StagetraceWarning
from stagetrace.export import FORMATS
from stagetrace.index.basis import NUMBERS
from stagetrace.index.build import QUERIES, build
from stagetrace.progress import Bars
from stagetrace.solvers.named import SOLVERS
from stagetrace.solvers.together import MODES
from stagetrace.why.ask import TOKENS
from tests import jobs

TARGET = f"{jobs.FILE}:frozen"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on standard error that are no progress bars."""
        return [line for line in self.err.splitlines() if line.startswith(("error", "warning")) or "Error" in line]


Command = Callable[..., Ended]


def described(trace: Trace) -> Any:
    """The trace's description; its type does not say what lies where."""
    return trace.description


@pytest.fixture
def stage_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`stagetrace WORDS` in this process, 80 columns wide and not to a terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    path = list(sys.path)

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["stagetrace", *map(str, words)])
        with warnings.catch_warnings():
            warnings.simplefilter("always", StagetraceWarning)
            with pytest.raises(SystemExit) as ended:
                main()
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    yield run
    sys.path[:] = path
    for name in ("jobs", "described", "a_module_of_the_user"):
        sys.modules.pop(name, None)


def written(folder: Path, body: str, name: str = "described.py") -> Path:
    """A file with a TARGET in it."""
    (folder / name).write_text("from tests import jobs\n" + textwrap.dedent(body))
    return folder / name


# TARGET


def test_a_file_and_its_function(stage_trace: Command, tmp_path: Path):
    assert stage_trace("score", TARGET, "--out", tmp_path / "run").code == 0
    assert list(Trace.load(tmp_path / "run")) == ["pretrain", "finetune"]


def test_a_module_in_the_working_folder_and_its_function(
    stage_trace: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written(tmp_path, "def job():\n    return jobs.frozen()[:2]\n", "a_module_of_the_user.py")
    monkeypatch.chdir(tmp_path)
    ended = stage_trace("score", "a_module_of_the_user:job", "--out", "run", "--of", "finetune")
    assert ended.code == 0, ended.err
    assert list(Trace.load(tmp_path / "run")) == ["finetune"]


def test_options_that_the_target_returns_and_words_that_change_them(stage_trace: Command, tmp_path: Path):
    """The target's options are the defaults of its own command line."""
    target = written(
        tmp_path,
        """
        from stagetrace import GaussNewton, Lanczos

        def job():
            chain, query, _ = jobs.frozen()
            settings = {"curvature": GaussNewton(), "solver": {"pretrain": Lanczos(damping=0.5, rtol=1e-8)}}
            return chain, query, settings | {"of": ["finetune", "pretrain"], "parts": True}
        """,
    )
    assert stage_trace("score", f"{target}:job", "--out", tmp_path / "own").code == 0
    own = Trace.load(tmp_path / "own")
    assert own["pretrain"].via_shared is not None
    assert described(own)["curvature"]["pretrain"]["name"] == "GaussNewton"
    assert described(own)["solver"]["pretrain"]["damping"] == 0.5
    words = (
        "--solve",
        "pretrain=damping=0.25",
        "--solve",
        "damping=2",
        "--of",
        "pretrain",
        "--solve",
        "finetune=curvature=identity",
    )
    assert stage_trace("score", f"{target}:job", "--out", tmp_path / "changed", *words).code == 0
    changed = described(Trace.load(tmp_path / "changed"))
    assert [changed["solver"][name]["damping"] for name in ("pretrain", "finetune")] == [0.25, 2.0]
    assert changed["solver"]["pretrain"]["rtol"] == 1e-8
    assert [changed["curvature"][name]["name"] for name in ("pretrain", "finetune")] == ["GaussNewton", "Identity"]
    assert changed["of"] == ["pretrain"]


BAD_TARGETS = [
    ("nothing after it", "{file}", "TARGET must be module:function or path/to/file.py:function"),
    ("no such file", "no/such/file.py:job", "there is no file no/such/file.py"),
    ("no such module", "no_such_module:job", "there is no module 'no_such_module'"),
    ("no such function", "{file}:nope", "has no function 'nope'; it has job, broken, nothing, odd"),
    ("a function that fails", "{file}:broken", "while running .*ZeroDivisionError: division by zero .--debug"),
    ("a function that returns nothing", "{file}:nothing", "must return .chain, query., .*got NoneType"),
    ("an unknown option", "{file}:odd", "the option 'solvers'; options for trace are curvature, solver, of, parts"),
]


@pytest.mark.parametrize(("target", "message"), [case[1:] for case in BAD_TARGETS], ids=[c[0] for c in BAD_TARGETS])
@pytest.mark.parametrize("command", ["score", "check"])
def test_a_target_that_is_none(stage_trace: Command, command: str, target: str, message: str, tmp_path: Path):
    file = written(
        tmp_path,
        """
        def job():
            return jobs.frozen()

        def broken():
            return 1 / 0

        def nothing():
            pass

        def odd():
            return *jobs.frozen()[:2], {"solvers": None}
        """,
    )
    out = ("--out", tmp_path / "run") if command == "score" else ()
    ended = stage_trace(command, target.format(file=file), *out)
    assert ended.code == 1
    assert ended.out == ""
    assert len(ended.err.splitlines()) == 1, ended.err
    assert re.match(f"error: .*{message}", ended.err), ended.err
    assert not (tmp_path / "run").exists()


# Options


def solving(*typed: str, job: str = "frozen", preset: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The solvers and curvatures that `--solve TYPED ...` makes of the defaults."""
    chain, options = getattr(jobs, job)()[0], settings.SolveOptions(typed, preset)
    return settings.solvers(chain, options, None), settings.curvatures(chain, options, None)


def test_solving_per_stage():
    solver, curvature = solving(
        "pretrain=lanczos:max_steps=70,examples=9",
        "normal-cg:damping=1e-3,curvature=gauss-newton,seed=4",
        "finetune=damping=0.5",
        "finetune=rtol=0.01",
    )
    assert solver["pretrain"] == Lanczos(damping=1e-3, max_steps=70)
    assert solver["finetune"] == Normal(CG(rtol=0.01), damping=0.5)
    assert curvature == {"pretrain": GaussNewton(9, 4), "finetune": GaussNewton("auto", 4)}


@pytest.mark.parametrize(
    ("typed", "curvatures"),
    [
        ((), [Auto("auto"), Auto("auto")]),
        (("examples=all",), [Auto(None), Auto(None)]),
        (("curvature=gauss-newton",), [GaussNewton("auto"), GaussNewton("auto")]),
        (("curvature=gauss-newton", "pretrain=examples=all"), [GaussNewton(None), GaussNewton("auto")]),
        (("finetune=examples=auto", "pretrain=examples=7"), [Auto(7), Auto("auto")]),
    ],
)
def test_nothing_typed_means_the_rule_and_all_means_all(typed: tuple[str, ...], curvatures: list[Any]):
    assert list(solving(*typed, job="moved")[1].values()) == curvatures


def test_ek_fac_is_solved_in_closed_form_where_no_solver_was_typed():
    chain, typed = (
        jobs.moved()[0],
        settings.SolveOptions(("curvature=ekfac,damping=0.1", "finetune=lanczos:damping=0.2")),
    )
    curvature = settings.curvatures(chain, typed, None)
    assert curvature == dict.fromkeys(chain.names, EKFAC())
    solver = settings.solvers(chain, typed, None, curvature)
    assert solver == {"pretrain": Direct(0.1, Shift), "finetune": Lanczos(0.2)}


@pytest.mark.parametrize("typed", ["many=shared-basis", "lanczos:many=shared basis"])
def test_how_many_queries_are_solved_is_typed(typed: str):
    chain = jobs.frozen()[0]
    assert settings.solvers(chain, settings.SolveOptions((typed,)), None)["finetune"] == Lanczos(many="shared basis")


@pytest.mark.parametrize("command", ["check", "score"])
def test_a_budget_that_nothing_fits_is_refused_in_one_line(stage_trace: Command, command: str, tmp_path: Path):
    """Before a product is made, and with nothing on disk."""
    out = ("--out", tmp_path / "run") if command == "score" else ()
    ended = stage_trace(command, TARGET, *out, "--budget", "20MiB")
    assert ended.code == 1
    (error,) = ended.errors
    assert re.match(r"error: --budget: solving stage 'finetune' is left 20 MiB, but .* type --budget \d", error)
    assert not (tmp_path / "run").exists()
    wrong = stage_trace(command, TARGET, *out, "--budget", "lots")
    assert (wrong.code, len(wrong.errors)) == (1, 1)
    assert "--budget needs a number and a unit" in wrong.errors[0]


def test_presets_change_what_was_not_typed():
    solver, curvature = solving(job="moved", preset="quick")
    assert solver == dict.fromkeys(solver, Lanczos(rtol=1e-2, max_steps=50))
    assert curvature == dict.fromkeys(curvature, Auto(250))
    solver, curvature = solving(job="moved", preset="exact")
    assert (solver["pretrain"], curvature["pretrain"]) == (Lanczos(rtol=1e-8, max_steps=5000), Auto(None))
    solver, curvature = solving("pretrain=rtol=0.005", "finetune=examples=9", job="moved", preset="quick")
    assert [each.rtol for each in solver.values()] == [0.005, 1e-2]
    assert list(curvature.values()) == [Auto(250), Auto(9)]


def test_what_is_typed_reaches_the_run(stage_trace: Command, tmp_path: Path):
    words = "--quick", "--solve", "pretrain=cg:damping=0.5,curvature=gauss-newton,examples=9"
    assert stage_trace("score", TARGET, "--out", tmp_path / "run", "--top", 0, *words).code == 0
    said = described(Trace.load(tmp_path / "run"))
    assert (said["solver"]["pretrain"]["name"], said["solver"]["pretrain"]["damping"]) == ("CG", 0.5)
    assert said["curvature"]["pretrain"] == {"name": "GaussNewton", "examples": 9, "seed": 0}
    assert said["solver"]["finetune"]["max_steps"] == 50


def test_presets_exclude_each_other(tmp_path: Path):
    words = ["score", TARGET, "--out", str(tmp_path / "run"), "--quick", "--exact"]
    ended = CliRunner().invoke(app, words, env={"COLUMNS": "80"})
    assert ended.exit_code == 2
    assert "exclude each other" in ended.stderr


def test_score_says_which_examples_the_curvature_leaves_out(
    stage_trace: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stagetrace.curvature.subset.ENOUGH", 30)
    ended = stage_trace("score", f"{jobs.FILE}:moved", "--out", tmp_path / "run", "--top", 0)
    notes = [line for line in ended.err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "stage 'pretrain': the curvature is the mean over 30 of 37 examples" in notes[0]
    assert "30 of 37" in " ".join(Trace.load(tmp_path / "run").solutions["pretrain"].notes)


BAD_WORDS = [
    ("magic", "--solve must be one of lanczos, normal-cg, cg, lissa, direct, got 'magic'; e.g. --solve finetune=lan"),
    ("pretrain=magic:damping=1", "--solve must be one of lanczos, normal-cg, cg, lissa, direct, got 'magic'"),
    (
        "pretrain=curvature=flat",
        "--solve: curvature must be one of auto, hessian, gauss-newton, ekfac, identity, got 'flat'",
    ),
    ("nope=damping=1", "--solve: 'nope' is neither a stage (pretrain, finetune) nor a setting (damping, rtol,"),
    (
        "cg:dampin=1",
        "--solve: 'dampin=1' is no setting; these are KEY=VALUE, separated by commas, with the keys damping",
    ),
    ("cg:damping", "--solve: 'damping' is no setting"),
    ("damping=much", "--solve: damping needs a number or auto, got 'much'"),
    ("many=all", "--solve: many must be one of auto, separate, shared-basis, sample-space, got 'all'"),
    ("cg:many=separate", "--solve: many does not apply to CG"),
    ("max_steps=1.5", "--solve: max_steps needs a whole number, got '1.5'"),
    ("damping=-1", "damping"),
    ("direct:rtol=0.1", "--solve: rtol does not apply to Direct"),
    ("examples=most", "--solve: examples needs a whole number, all or auto, got 'most'"),
    ("examples=0", "must be a whole number of at least 1, got 0"),
    ("curvature=identity,examples=5", "--solve: examples does not apply to Identity"),
    ("lanczos:damping=auto,damping=3", "--solve: damping is given twice in 'damping=auto,damping=3'; give it once"),
    ("", "--solve got '', which has neither a method nor a setting; e.g. --solve finetune="),
    (":", "--solve got ':', which has neither a method nor a setting"),
    ("direct:", "--solve: '' is no setting"),
    ("seed=-1", "--solve: seed needs a whole number of at least 0, got '-1'"),
    ("finetune=curvature=identity,seed=5", "--solve: seed does not apply to Identity"),
]


@pytest.mark.parametrize(("typed", "message"), BAD_WORDS, ids=[case[0] for case in BAD_WORDS])
def test_a_solve_that_says_nothing_is_refused_in_one_line(
    stage_trace: Command, typed: str, message: str, tmp_path: Path
):
    ended = stage_trace("score", TARGET, "--out", tmp_path / "run", "--solve", typed)
    assert (ended.code, ended.out) == (1, "")
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("score", TARGET), "Missing option '--out'"),
        (("score", "--out", "run"), "Missing argument 'TARGET'"),
        (("score", TARGET, "--out", "run", "--nonsense"), "No such option"),
        (("score", TARGET, "--out", "run", "--top=-1"), "--top"),
        (("validate", TARGET, "--out", "run", "--seed", "x"), "--seed"),
        *(
            ((command, TARGET, *out, option, "1"), f"type {new}")
            for option, new in options.GONE.items()
            for command, out in (("score", ("--out", "run")), ("check", ()))
        ),
        (("validate", TARGET, "--out", "run", "--fit", "sgd"), "--fit is now a part of --retrain"),
        (("scores", TARGET), "No such command"),
        (("check",), "Missing argument 'TARGET'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_exits_2(words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, list(words), env={"COLUMNS": "80"})
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_the_version_and_the_help(stage_trace: Command):
    assert stage_trace("--version") == Ended(0, f"stagetrace {stagetrace.__version__}\n", "")
    for command in ("score", "check", "demo"):
        ended = stage_trace(command, "--help")
        assert (ended.code, ended.err) == (0, "")
        assert "Usage:" in ended.out
        assert command in stage_trace("--help").out


# What is printed


def test_the_summary_is_on_standard_output_and_all_else_on_standard_error(stage_trace: Command, tmp_path: Path):
    ended = stage_trace("score", f"{jobs.FILE}:unconverged", "--out", tmp_path / "run", "--top", 0)
    assert ended.code == 0
    assert ended.out.startswith("trace (scores in query loss)")
    assert "score > 0 is harmful" in ended.out
    assert ended.out.endswith(f"saved to {tmp_path / 'run'}\n"), "on one line, however long, so that it can be copied"
    assert "warning" not in ended.out
    assert len([line for line in ended.errors if line.startswith("warning: stage '")]) == 3


@pytest.mark.slow
def test_words_are_whole_in_80_columns(stage_trace: Command, tmp_path: Path):
    out = stage_trace("score", f"{jobs.FILE}:unconverged", "--out", tmp_path / "run", "--top", 2, "--parts").out
    lines = [line for line in out.splitlines() if not line.startswith(("saved to", "to look at it, open"))]
    assert max(map(len, lines)) <= 80
    table = out[: out.index("NOT CONVERGED: a solve")].split()
    assert table.count("pretrain") == table.count("finetune") == 1
    assert table.count("NOT") == table.count("CONVERGED:") == 2
    for word in ("stage", "examples", "smallest", "largest", "harmful", "residual", "status"):
        assert table.count(word) == 1
    assert [table.count(word) for word in ("stopped", "step", "limit,", "asked")] == [2, 2, 2, 2]


@pytest.mark.parametrize("top", [0, pytest.param(1, marks=pytest.mark.slow), 3])
def test_top_says_how_many_examples_are_shown(stage_trace: Command, top: int, tmp_path: Path):
    out = stage_trace("score", TARGET, "--out", tmp_path / "run", "--top", top).out
    shown = re.findall(r"^ +(\d+) +([+-]\d\.\d+e[+-]\d\d) +[+-]\d\.\d+e[+-]\d\d\b", out, flags=re.MULTILINE)
    assert len(shown) == 4 * top  # harmful and helpful, of two stages
    assert out.count(f"{top} most harmful") == out.count(f"{top} most helpful") == (2 if top else 0)
    if top:
        scores = Trace.load(tmp_path / "run")["pretrain"]
        assert int(shown[0][0]) == int(scores.values.argmax())
        assert int(shown[top][0]) == int(scores.values.argmin())


def test_parts_keeps_the_two_terms(stage_trace: Command, tmp_path: Path):
    assert stage_trace("score", TARGET, "--out", tmp_path / "run", "--parts").code == 0
    scores = Trace.load(tmp_path / "run")["pretrain"]
    assert scores.via_shared is not None
    assert scores.via_head is not None
    assert (scores.via_shared + scores.via_head - scores.values).abs().max() < 1e-12


def test_the_bars_say_what_is_being_done(stage_trace: Command, tmp_path: Path):
    """Also where there is no terminal to draw on: each task leaves a line once it is done."""
    lines = stage_trace("score", TARGET, "--out", tmp_path / "run").err.splitlines()
    tasks = [
        ("fingerprint of stage 'pretrain'", "37/37"),
        ("fingerprint of stage 'finetune'", "23/23"),
        ("fingerprint of the query", "6/6"),
        ("gradient of the query", "6/6"),
        ("solving stage 'finetune'", "residual"),
        ("scoring stage 'finetune'", "23/23"),
        ("coupling of stage 'finetune'", "23/23"),
        ("solving stage 'pretrain'", "residual"),
        ("scoring stage 'pretrain'", "37/37"),
    ]
    found = [next(n for n, line in enumerate(lines) if line.startswith(what) and far in line) for what, far in tasks]
    assert found == sorted(found)


def test_a_bar_shows_how_far_it_is_and_its_note():
    drawn = StringIO()
    console = Console(file=drawn, width=100, force_terminal=False)
    with Bars(console).task("solving stage 'a'", 40, "steps") as advance:
        advance(10)
        advance(5, note="residual 1.0e-03")
    line = drawn.getvalue()
    assert [word in line for word in ("solving stage 'a'", "steps", "15/40", "residual 1.0e-03")] == [True] * 4


def test_check_says_everything_there_is_to_know(stage_trace: Command):
    ended = stage_trace("check", f"{jobs.FILE}:three")
    assert ended.code == 0, ended.err
    found = {tuple(line.split()[:2]) for line in ended.out.splitlines()}
    everywhere = ("data", "coverage", "stationarity", "curvature", "solving", "plan")
    for stage in ("pretrain", "middle", "finetune"):
        assert [(stage, what) in found for what in everywhere] == [True] * len(everywhere), ended.out
    assert {("middle", "mapping"), ("finetune", "mapping"), ("middle", "distance"), ("query", "data")} <= found
    assert ("pretrain", "mapping") not in found
    assert "embedding.weight <-" in ended.out
    assert "spectrum of stage 'pretrain'" in ended.err
    assert re.search(r"^\d+ warnings?$", ended.out.splitlines()[-1])
    assert max(map(len, ended.out.splitlines())) <= 80


def test_check_refuses_what_score_would(stage_trace: Command, tmp_path: Path):
    target = written(
        tmp_path,
        """
        def job():
            chain, query, _ = jobs.frozen()
            chain.stages[1].data.tensors[0][2] = float("nan")
            return chain, query
        """,
    )
    said = [
        stage_trace(*words)
        for words in (("check", f"{target}:job"), ("score", f"{target}:job", "--out", tmp_path / "run"))
    ]
    assert [ended.code for ended in said] == [1, 1]
    assert said[0].errors == said[1].errors
    assert not (tmp_path / "run").exists()
    assert said[0].errors[0].startswith("error: stage 'finetune': the loss of example 2 is nan; remove the example")


# How it ends


def test_an_error_is_one_line_and_a_traceback_only_with_debug(
    stage_trace: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "thesis.tex").write_text("years of work")
    words = "score", TARGET, "--out", tmp_path
    ended = stage_trace(*words)
    assert (ended.code, ended.out) == (1, "")
    assert ended.errors == [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(ended.errors) == 1
    assert "not a stagetrace run folder" in ended.errors[0]
    monkeypatch.setattr(sys, "argv", ["stagetrace", *map(str, words), "--debug"])
    with pytest.raises(ResultsError, match="not a stagetrace run folder"):
        main()


def test_an_interrupted_run_says_how_to_go_on(stage_trace: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stagetrace.results.RunFolder.write_part", interrupted)
    ended = stage_trace("score", TARGET, "--out", tmp_path / "run")
    assert ended.code == 130
    assert "Finished work is saved; rerun the same command to resume" in ended.err
    assert (tmp_path / "run" / "adjoints" / "finetune.safetensors").exists()


@pytest.mark.slow
def test_processes_end_as_the_same_commands_do_here(tmp_path: Path):
    """Exit code and streams of `python -m stagetrace` itself; `test_hostile_runs` has a traceback."""
    ended = jobs.score("nope", tmp_path / "run")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(r"error: .*jobs\.py' has no function 'nope'; it has [^\n]*\n", ended.stderr)
    assert not (tmp_path / "run").exists()


# What is imported


COMMANDS = (
    *("score", "check", "rank", "why", "validate", "report", "show"),
    *("index", "search", "curate", "export", "demo"),
)
QUICK_WORDS = [("--help",), ("--version",), *((name, "--help") for name in COMMANDS)]


@pytest.mark.parametrize("words", QUICK_WORDS, ids=" ".join)
def test_help_and_version_do_not_wait_for_pytorch(words: tuple[str, ...]):
    code = (
        "import sys; from stagetrace.cli.main import main; sys.argv = ['stagetrace', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = [name for name in ('torch', 'numpy', 'pyarrow', 'transformers') if name in sys.modules]\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


def test_the_package_is_imported_when_it_is_used():
    code = (
        "import sys, stagetrace; assert 'torch' not in sys.modules; stagetrace.__version__\n"
        "from stagetrace import Chain, trace; assert 'torch' in sys.modules\n"
        "assert callable(trace) and isinstance(Chain, type) and stagetrace.solvers.CG is stagetrace.CG\n"
        "assert set(stagetrace.__all__) <= set(dir(stagetrace))\n"
        "try: stagetrace.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
        "else: raise SystemExit('an unknown name was found')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_and_numbers_in_the_help_are_those_of_the_settings():
    assert tuple(SOLVERS) == options.SOLVERS
    assert tuple(CURVATURES) == options.CURVATURES
    assert tuple(mode.replace(" ", "-") for mode in MODES) == options.MANY
    assert ("rerun", "resolve", *fits.OPTIMIZERS) == options.FITS
    assert (fits.OPTIMIZERS["adam"].lr, fits.OPTIMIZERS["sgd"].lr) == (options.ADAM_RATE, options.SGD_RATE)
    assert (options.ENOUGH, options.TOKENS) == (ENOUGH, PREDICTIONS)
    defaults = (NUMBERS, QUERIES, inspect.signature(build).parameters["memory"].default / 2**30)
    assert defaults == (options.INDEX_NUMBERS, options.INDEX_QUERIES, options.INDEX_MEMORY)
    assert options.NEW_TOKENS == TOKENS
    assert (tuple(FORMATS), OutputFormat, RANDOM) == (options.EXPORTS, options.RowFormat, options.RANDOM_SETS)


def test_the_list_of_commands_says_what_each_says_of_itself(stage_trace: Command):
    listed = stage_trace("--help").out
    assert re.findall(r"^  ([a-z]+) +[A-Z]", listed.partition("Commands:")[2], flags=re.MULTILINE) == list(COMMANDS)
    for name in COMMANDS:
        said = " ".join(stage_trace(name, "--help").out.split())
        shown = re.search(rf"^  {name} +(.*?)(\.\.\.)?$", listed, flags=re.MULTILINE)
        assert shown is not None
        assert shown[1] in said
