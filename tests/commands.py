"""`stagetrace WORDS` in this process, for tests of the command line."""

import io
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout

import pytest

from stagetrace.cli.main import main
from stagetrace.errors import StagetraceWarning

Command = Callable[..., tuple[int, str, str]]
"""Takes the words; gives the exit code, standard output and standard error."""


def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int) -> Iterator[Command]:
    """The body of a fixture: the command on a terminal's width, and afterwards the imports as they were."""
    monkeypatch.setenv("COLUMNS", str(width))
    path = list(sys.path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stagetrace", *map(str, words)])
        with warnings.catch_warnings():
            warnings.simplefilter("always", StagetraceWarning)
            with pytest.raises(SystemExit) as ended:
                main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    yield run
    sys.path[:] = path
    sys.modules.pop("jobs", None)


def stagetrace(*words: object) -> tuple[int, str, str]:
    """The same where there are no fixtures of a single test."""
    path, out, err = list(sys.path), io.StringIO(), io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            patch.setenv("COLUMNS", "80")
            patch.setattr(sys, "argv", ["stagetrace", *map(str, words)])
            warnings.simplefilter("always", StagetraceWarning)
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
                main()
    finally:
        sys.path[:] = path
        sys.modules.pop("jobs", None)
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()
