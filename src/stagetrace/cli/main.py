r"""stagetrace: trace a fine-tuned model's loss back through every training stage.

    stagetrace demo                                      the whole job on bundled real digits
    stagetrace check examples/mnist.py:job               what would be wrong, and what it would cost
    stagetrace score examples/mnist.py:job --out runs/a  the main job; run it again to resume
    stagetrace rank examples/mnist.py:job --out runs/r   both ends of the ranking for each of many queries
    stagetrace why examples/chat.py:job --prompt "..."   one answer of the model, and the examples behind it
    stagetrace show runs/a                               the run in the terminal
    stagetrace report runs/a                             the run as one HTML file (score writes it, too)
    stagetrace validate examples/mnist.py:job --out runs/b  retrains, and compares with what was predicted
    stagetrace curate runs/a --drop 10% --out runs/kept  what to train on next, and what that should change
    stagetrace index examples/mnist.py:job --out runs/i  a store of every example, for many queries
    stagetrace search runs/i --query 3                   one of these queries: few examples are looked at, exactly
    stagetrace export runs/a --format csv --out a.csv    the scores for other tools, the sign turned as they expect

Several processes, one machine:      torchrun --nproc-per-node 2 -m stagetrace score TARGET --out DIR
Several machines, on each of them:   torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d \
                                       --rdzv-endpoint HOST:PORT -m stagetrace score TARGET --out DIR

Exit codes: 0 done, 1 refused or failed (one line says why), 2 wrong usage, 130 interrupted.
"""

import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagetrace.cli import options
from stagetrace.cli.command import Command
from stagetrace.cli.curate import curate_run
from stagetrace.cli.export import export_run
from stagetrace.cli.index import index_target
from stagetrace.cli.rank import rank_queries
from stagetrace.cli.report import report, write_after
from stagetrace.cli.search import search_index
from stagetrace.cli.show_run import show_run
from stagetrace.cli.validate import validate
from stagetrace.cli.why import why
from stagetrace.errors import StagetraceError, StagetraceWarning
from stagetrace.plaintext import printable
from stagetrace.version import __version__

if TYPE_CHECKING:
    from stagetrace.cli.settings import SolveOptions
    from stagetrace.cli.target import Target
    from stagetrace.progress import Progress

app = typer.Typer(
    name="stagetrace",
    help="Trace a fine-tuned model's loss back through every training stage to the examples that caused it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: options.Debug = False,
) -> None:
    """Trace a fine-tuned model's loss back through every training stage to the examples that caused it."""
    del debug
    if version:
        typer.echo(f"stagetrace {__version__}")
        raise typer.Exit


@app.command(cls=Command)
def score(
    target: options.Target,
    out: options.Out,
    solve: options.Solve = [],  # noqa: B006
    quick: options.Quick = False,
    exact: options.Exact = False,
    of: Annotated[list[str], typer.Option("--of", metavar="STAGE", help="Score only this stage's examples.")] = [],  # noqa: B006
    parts: Annotated[bool, typer.Option("--parts", help="Also save the paper's two parts of each score.")] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Also score single tokens, of stages whose loss is a sum over them.")
    ] = False,
    moved: Annotated[
        bool, typer.Option("--sweep", help="Also score at a tenth and ten times the damping: how stable is the order?")
    ] = False,
    budget: options.Budget = None,
    precision: options.Precision = [],  # noqa: B006
    top: Annotated[int, typer.Option("--top", metavar="N", min=0, help="Rows of the most harmful and helpful.")] = 5,
    debug: options.Debug = False,
) -> None:
    """Score every stage's examples against the query loss, and save the run to a folder."""
    del debug

    from stagetrace import parallel
    from stagetrace.cli import settings, show
    from stagetrace.cli.target import load
    from stagetrace.progress import Bars, Silent
    from stagetrace.report.sweep import check_damped, sweep, write_sweep
    from stagetrace.results.lock import refuse_in_use
    from stagetrace.terminal import terminal
    from stagetrace.tracing.trace import trace

    typed = settings.SolveOptions(solve, options.preset(quick=quick, exact=exact))
    with parallel.started() as world:
        world.first(lambda: refuse_in_use(out), "the run's folder")  # before the target's models are loaded
        job = load(target, precision)
        how = _how(job, typed, Bars() if world.is_first else Silent())
        lines = settings.within(budget, job.chain, job.query, how)
        for line in (*lines, *settings.subsets(job.chain, how["curvature"])) if world.is_first else ():
            _say(f"note: {line}")
        if moved:
            check_damped(how["solver"])
        split, each = parts or job.options.get("parts", False), job.options.get("tokens", False) or tokens
        result = trace(job.chain, job.query, **how, of=of or job.options.get("of"), parts=split, tokens=each, out=out)
        found = sweep(result, job.chain, job.query, **how) if moved else ()
        is_first = world.is_first
    if is_first:  # the other processes are gone: what follows is one process's work
        if found:
            write_sweep(out, found)
        show.result(result, top, terminal(), out, write_after(out, job.chain, job.query))


def _how(job: "Target", typed: "SolveOptions", progress: "Progress") -> dict[str, Any]:
    """How the stages are solved, by the target and by what was typed, as keyword arguments."""
    from stagetrace.cli import settings

    return {**settings.asked(job.chain, typed, job.options), "progress": progress}


@app.command(cls=Command)
def check(
    target: options.Target,
    solve: options.Solve = [],  # noqa: B006
    quick: options.Quick = False,
    exact: options.Exact = False,
    budget: options.Budget = None,
    precision: options.Precision = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="A run's folder: its report then shows the findings.")
    ] = None,
    smoothness: Annotated[
        bool,
        typer.Option(
            "--smoothness",
            help="Repeat recorded trainings without two random groups of examples, and say how far scores reach.",
        ),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Look before you run: mapping, coverage, stationarity, curvature, differentiability, memory and time."""
    del debug

    from stagetrace.cli import settings, show
    from stagetrace.cli.target import load
    from stagetrace.preflight import inspect
    from stagetrace.progress import Bars
    from stagetrace.report.attachments import write_findings
    from stagetrace.results.manifest import read_manifest
    from stagetrace.terminal import terminal

    typed = settings.SolveOptions(solve, options.preset(quick=quick, exact=exact))
    if out is not None:
        read_manifest(out)  # a folder without a run is refused now: `score` would not take it afterwards
    job = load(target, precision)
    findings = inspect(job.chain, job.query, **_how(job, typed, Bars()), budget=budget)
    if smoothness:
        from stagetrace.validation.smoothness import findings_of_smoothness

        findings = chain(findings, findings_of_smoothness(job.chain, job.query, Bars()))
    found = show.findings(job.chain, findings, terminal())
    if out is not None:
        write_findings(out, found)


for name, command in {
    "rank": rank_queries,
    "why": why,
    "validate": validate,
    "report": report,
    "show": show_run,
    "index": index_target,
    "search": search_index,
    "curate": curate_run,
    "export": export_run,
}.items():
    app.command(name, cls=Command)(command)


@app.command(cls=Command)
def demo(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder of the run and its report; an earlier demo's is replaced."),
    ] = Path("runs/demo"),
    debug: options.Debug = False,
) -> None:
    """Pretrain, fine-tune and trace on bundled real digits, and check scores by really retraining."""
    del debug
    from stagetrace.demo import run  # scikit-learn is needed here only
    from stagetrace.progress import Bars
    from stagetrace.terminal import terminal

    run(out=out, progress=Bars(), console=terminal())


def main() -> None:
    """The entry point: library errors are one line on standard error, tracebacks only with --debug."""
    warnings.showwarning = _one_line()
    if sys.argv[1:] == ["--version"]:  # Typer would import pydantic first, where that is installed
        print(f"stagetrace {__version__}")
        sys.exit(0)
    try:
        app()
    except SystemExit as ended:
        if ended.code == 130:  # what typer makes of a KeyboardInterrupt
            _say("Interrupted. Finished work is saved; rerun the same command to resume.")
        raise
    except Exception as error:
        if "--debug" in sys.argv:
            sys.excepthook = lambda *raised: _say("".join(traceback.format_exception(*raised)), end="")
            raise
        if _said_elsewhere(error):
            time.sleep(2)  # until it has: torchrun ends all processes once the first has ended
        else:
            _say(f"error: {_in_a_line(error)}", style="red")
        sys.exit(1)


def _said_elsewhere(error: Exception) -> bool:
    """Whether another process of the job says what went wrong."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False  # without importing PyTorch
    from stagetrace.parallel import raised_by

    who = raised_by(error)
    return who is not None and str(who) != os.environ.get("RANK", "0")


def _say(line: str, style: str | None = None, end: str = "\n") -> None:
    """Lines on standard error, however long, in which nothing but the words acts."""
    from stagetrace.terminal import terminal  # rich is about a fifth of what `--help` takes

    terminal(stderr=True, in_lines=True).print(printable(line, lines=True), style=style, end=end)


def _in_a_line(error: Exception) -> str:
    """What to say of an error: ours as it is; of others where to look, which may be another process."""
    if isinstance(error, StagetraceError):
        return f"{error}"
    text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        return f"process {rank} stopped ({text}); if another process refused, its message says why"
    return f"{text} (a bug? --debug shows where it happened)"


def _one_line() -> Callable[..., None]:
    """Shows our own warnings as one line each, others in the words that Python has for them."""

    def show_one(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        del file
        if issubclass(category, StagetraceWarning):
            _say(f"warning: {message}", style="yellow")
        else:
            _say(warnings.formatwarning(message, category, filename, lineno, line), end="")

    return show_one
