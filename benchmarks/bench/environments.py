"""One environment for each other library, beside the one that runs this.

It is made by `venv` and `pip` from `rivals/requirements/NAME.txt`. What it has not of its own, PyTorch above all, it
takes from the environment that runs this, by a `.pth` file: all rivals then compute with the same PyTorch, and an
environment takes megabytes. Where a library wants other versions of what is there, its own come first.
"""

import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import final

from benchmarks.rivals.call import ROOT
from stagetrace.results.files import write_text

REQUIREMENTS = ROOT / "benchmarks" / "rivals" / "requirements"
RIVALS = ("kronfluence", "curvlinops", "captum", "pydvl", "dattri", "trak", "bergson")
OURS = "stagetrace"
STAMP = ".made"


@final
@dataclass(frozen=True)
class Environment:
    """A library's interpreter; or why there is none."""

    python: Path | None
    why: str = ""


def environment(folder: Path, name: str) -> Environment:
    """This library's is the one that runs; another's is made now, unless it was made from the same requirements."""
    if name == OURS:
        return Environment(Path(sys.executable))
    wanted = (REQUIREMENTS / f"{name}.txt").read_text("utf-8")
    home = folder.absolute() / name
    python, stamp = home / "bin" / "python", home / STAMP
    if stamp.exists() and stamp.read_text("utf-8") == wanted and python.exists():
        return Environment(python)
    venv.create(home, clear=True, with_pip=False, symlinks=True)
    here = sysconfig.get_path("purelib")
    inside = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True
    )
    Path(inside.stdout.decode().strip(), "beside.pth").write_text(f"{here}\n", "utf-8")
    constraints = home / "constraints.txt"
    constraints.write_text(f"torch=={version('torch').partition('+')[0]}\n", "utf-8")
    words = [str(python), "-m", "pip", "install", "--no-compile", "--disable-pip-version-check"]
    words += ["--constraint", str(constraints), "--requirement", str(REQUIREMENTS / f"{name}.txt")]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        return Environment(None, f"{wanted.strip()} was not installed: {_why(done.stdout + done.stderr)}")
    # torchvision of another build than PyTorch's cannot be imported, and transformers tries to; nobody here needs it
    if subprocess.run([str(python), "-c", "import torchvision"], check=False, capture_output=True).returncode:
        remove = [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"]
        subprocess.run(remove, check=False, capture_output=True)
    write_text(stamp, wanted)
    return Environment(python)


def _why(errors: str) -> str:
    """The line that says which requirements clash, or the last that is an error."""
    lines = [line.strip() for line in errors.splitlines() if line.strip() and not line.startswith("WARNING")]
    clashes = [line for line in lines if "depends on" in line and " torch" in line]
    told = [line for line in lines if line.startswith("ERROR")] or lines or ["pip gave no reason"]
    return (clashes or told)[-1][:300]
