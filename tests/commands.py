"""`stagetrace WORDS` in this process, for tests of the command line."""

import sys
import warnings
from collections.abc import Callable, Iterator

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
