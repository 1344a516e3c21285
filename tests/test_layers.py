"""The direction of imports: who may import whom, read off the source without running it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src"
PACKAGE = "stagetrace"

# Each module may import from its own layer and from those before it. The package itself, `from stagetrace import ...`,
# is the public contract: only `demo` and `cli`, which use the library as a user does, stand after it.
LAYERS = [
    {"errors", "parallel", "plaintext", "progress", "renamed", "terminal", "version"},
    {"objectives"},
    {"stages"},
    {"taps"},
    {"curvature"},
    {"solvers"},
    {"results"},
    {"recording"},
    {"replay"},
    {"checks"},
    {"tracing"},
    {"preflight"},
    {"index"},
    {"corpora"},
    {"hf"},
    {"validation"},
    {"reweighting"},
    {"report"},
    {"why"},
    {"curate"},
    {"export"},
    {PACKAGE},
    {"demo"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# Solvers see operators and vectors, never a model, a data set or a process group.
SOLVERS_MAY_IMPORT = ("errors", "curvature.operator", "curvature.eigen", "curvature.shares", "solvers")

MODULES = {
    ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
    if path != ROOT / PACKAGE / "__init__.py"  # the contract gathers names from everywhere
}


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of all that a source imports, in functions and under `if TYPE_CHECKING` too.

    `from a import b` yields `a.b`, since b may be a module. `package` is what relative imports start from.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield node.lineno, "torch.distributed"


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def layer_of(name: str) -> str:
    """The layer of a module given without the package's name; a name that is no module is the contract's."""
    top = name.split(".")[0]
    return top if top in RANK else PACKAGE


def breaches(module: str, source: str, is_package: bool = False) -> list[str]:
    """What a module of the package (named without it) imports against the rules."""
    own = f"{PACKAGE}.{module}"
    found: list[str] = []
    for line, name in imported(source, own if is_package else own.rpartition(".")[0]):
        if within(name, "torch.distributed") and module != "parallel":
            found.append(f"{module}:{line} imports {name}: only parallel.py may know of several processes")
        if not within(name, PACKAGE):
            continue
        target = name.removeprefix(PACKAGE).removeprefix(".")
        if RANK[layer_of(target)] > RANK[layer_of(module)]:
            found.append(f"{module}:{line} imports {name}: {layer_of(target)} stands after {layer_of(module)}")
        if layer_of(module) == "solvers" and not any(within(target, allowed) for allowed in SOLVERS_MAY_IMPORT):
            found.append(f"{module}:{line} imports {name}: a solver sees {', '.join(SOLVERS_MAY_IMPORT)} only")
    return found


def sums(source: str) -> list[int]:
    """Lines that multiply vectors with something else than an operator: sums over what a vector holds."""
    products = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.BinOp)]
    return [
        node.lineno
        for node in products
        if isinstance(node.op, ast.MatMult)
        and not re.search(r"(operator|conditioner|_drawn\(\w+\))$", ast.unparse(node.left))
    ]


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("solvers.")])
def test_solvers_add_up_vectors_at_one_place(module: str) -> None:
    found = sums(MODULES[module].read_text(encoding="utf-8"))
    assert bool(found) == (module == "solvers.vectors"), f"{module}:{found} sums over vectors: use solvers/vectors.py"


def test_a_sum_over_vectors_is_seen() -> None:
    assert sums("a = left @ right\nb = self.operator @ right\nc = operator @ (right - operator @ left)") == [1]


def test_every_module_has_a_layer() -> None:
    strays = {name.split(".")[0] for name in MODULES} - set(RANK)
    assert not strays, f"give {sorted(strays)} a place in LAYERS"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    path = MODULES[module]
    assert not breaches(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors", "import stagetrace.stages.chain"),
        ("objectives.objective", "from stagetrace.stages import Stage"),
        ("stages.chain", "from stagetrace import curvature"),
        ("stages.chain", "from stagetrace import Query"),
        ("stages.chain", "def later():\n    from ..tracing.trace import trace"),
        ("curvature.operator", "from ..solvers import base"),
        ("solvers.cg", "from stagetrace.stages.space import Params"),
        ("solvers.cg", "from stagetrace.curvature.hessian import Hessian"),
        ("solvers.cg", "from stagetrace.curvature import operator_tools"),
        ("solvers.cg", "from stagetrace.progress import Silent"),
        ("tracing.score", "import torch.distributed as dist"),
        ("tracing.score", "from torch import distributed"),
        ("tracing.score", "from torch.distributed import all_reduce"),
        ("tracing.score", "import torch\ntorch.distributed.barrier()"),
    ],
)
def test_a_breach_is_seen(module: str, source: str) -> None:
    assert len(breaches(module, source)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("solvers.cg", "from stagetrace.curvature.operator import LinearOperator\nfrom .base import Solution"),
        ("solvers.cg", "from stagetrace.curvature import operator"),
        ("tracing.score", "from stagetrace import errors\nfrom ..stages.chain import Chain"),
        ("parallel", "import torch.distributed as dist"),
        ("cli.main", "from stagetrace import trace"),
        ("stages.chain", "import torch, stagetrace_extras"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert breaches(module, source) == []
