"""TARGET: `module:function` or `path/to/file.py:function`, returning what is to be traced."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, final

from stagetrace.errors import StagetraceError, refuse
from stagetrace.stages.chain import Chain
from stagetrace.tracing.query import Query

OPTIONS = ("curvature", "solver", "of", "parts", "tokens")
"""For `trace`."""

VALIDATE_OPTIONS = ("fit", "estimators")
"""For `validate` alone; other commands pass them by."""


class TargetError(StagetraceError):
    """The user's own function failed; its traceback is shown with --debug."""


@final
@dataclass(frozen=True)
class Target:
    """What a target returned: a chain, a query and keyword arguments for `trace` and `validate`."""

    chain: Chain
    query: Query
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


def load(target: str, precision: Sequence[str] = ()) -> Target:
    """Import the target, call it, and check what it returns.

    precision: each value of `--precision`, which takes the place of what the target says of a stage.

    Raises:
        DescriptionError: no such file, module or function, or it returned something else.
        TargetError: importing or calling it failed.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        refuse(f"TARGET must be module:function or path/to/file.py:function, got '{target}'")
    module = _import(place, target)
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        refuse(f"'{place}' has no function '{name}'; it has {', '.join(functions) or 'none'}")
    return _in_precision(_checked(_call(function, target), target), precision)


def _in_precision(job: Target, typed: Sequence[str]) -> Target:
    """The same, its stages' matrix products in the precision that was typed.

    Raises:
        DescriptionError: no such stage or precision, or one that does not fit the stage.
    """
    if not typed:
        return job
    words = [word.rpartition("=")[::2] for word in typed]
    job.chain.check_names([stage for stage, _ in words if stage], "--precision")
    chosen = {stage: word for stage, word in words if not stage} | {stage: word for stage, word in words if stage}
    stages = [replace(s, precision=chosen.get(s.name, chosen.get("", s.precision))) for s in job.chain.stages]
    return replace(job, chain=Chain(*stages))


def _import(place: str, target: str) -> ModuleType:
    path = Path(place)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        refuse(f"there is no file {place}; TARGET is path/to/file.py:function, seen from {Path.cwd()}")
    folder = str(path.parent.resolve()) if is_file else str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if not is_file:
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # workers and pickled functions look it up
        spec.loader.exec_module(module)
        return module
    except ModuleNotFoundError as cause:
        if cause.name is not None and (place == cause.name or place.startswith(cause.name + ".")):
            refuse(f"there is no module '{cause.name}'; TARGET is module:function or path/to/file.py:function")
        raise _failed("importing", target, cause) from cause
    except Exception as cause:
        raise _failed("importing", target, cause) from cause


def _call(function: Callable[[], Any], target: str) -> Any:
    try:
        return function()
    except StagetraceError:
        raise
    except Exception as cause:
        raise _failed("running", target, cause) from cause


def _failed(doing: str, target: str, cause: Exception) -> TargetError:
    text = (str(cause).strip().splitlines() or [""])[0]
    return TargetError(f"while {doing} {target}: {type(cause).__name__}: {text} (--debug shows where)")


def _checked(returned: Any, target: str) -> Target:
    if isinstance(returned, tuple) and len(returned) in (2, 3):
        chain, query, *rest = returned
        options = rest[0] if rest else {}
        if isinstance(chain, Chain) and isinstance(query, Query) and isinstance(options, Mapping):
            unknown = [key for key in options if key not in (*OPTIONS, *VALIDATE_OPTIONS)]
            if unknown:
                refuse(
                    f"{target} returned the option '{unknown[0]}'; options for trace are {', '.join(OPTIONS)}, "
                    f"for validate also {', '.join(VALIDATE_OPTIONS)}"
                )
            return Target(chain, query, options)
    kind = (
        f"({', '.join(type(part).__name__ for part in returned)})"
        if isinstance(returned, tuple)
        else type(returned).__name__
    )
    refuse(f"{target} must return (chain, query), or (chain, query, options); got {kind}")
