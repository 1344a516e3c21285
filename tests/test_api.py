"""The public names: adding or removing one is a decision, taken here."""

import importlib
import importlib.metadata
import inspect
import pkgutil
from types import ModuleType

import pytest
import torch

import stagetrace
from stagetrace import Chain, Stage
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Regression

NAMES = [
    # describe
    "Chain",
    "Frozen",
    "Link",
    "Objective",
    "Proximal",
    "Query",
    "Stage",
    # curvature
    "Auto",
    "EKFAC",
    "GaussNewton",
    "Hessian",
    "Identity",
    "LinearOperator",
    # solve
    "CG",
    "Direct",
    "EarlyStopping",
    "Lanczos",
    "LiSSA",
    "Normal",
    "Shift",
    "Solution",
    "System",
    "Tikhonov",
    # record
    "Recording",
    "Unrolled",
    # trace
    "Scores",
    "Trace",
    "reweight",
    "trace",
    # about
    "__version__",
]


def test_the_public_names_are_these() -> None:
    assert sorted(stagetrace.__all__) == sorted(NAMES)
    assert len(NAMES) <= 30


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__version__"])
def test_a_public_name_has_a_docstring_of_its_own(name: str) -> None:
    public = getattr(stagetrace, name)
    text = vars(public).get("__doc__") if inspect.isclass(public) else public.__doc__
    # A dataclass without a docstring is given its signature for one.
    assert text
    assert text.strip()
    assert not text.startswith(f"{name}(")


def test_the_version_is_the_distribution_s() -> None:
    assert stagetrace.__version__ == importlib.metadata.version("stagetrace")


PACKAGES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(stagetrace.__path__, "stagetrace.")
    if found.ispkg
]


@pytest.mark.parametrize("package", [stagetrace, *PACKAGES], ids=lambda package: package.__name__)
def test_a_package_exports_what_it_imports_and_nothing_else(package: ModuleType) -> None:
    ours = {
        name
        for name, value in vars(package).items()
        if getattr(value, "__module__", "").startswith(package.__name__) and not name.startswith("_")
    }
    assert ours <= set(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)
    assert len(set(package.__all__)) == len(package.__all__)


REMOVED = {
    "stagetrace.curate": ["HuggingFace", "Table"],
    "stagetrace.validation": [
        *("Choice", "Drawn", "Groups", "Largest", "MeanInterval", "Measured", "Minimum", "Preconditioner", "Resolved"),
        *("leave_out", "mean_over_seeds", "minimise", "query_loss", "resolve"),
    ],
}


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in REMOVED.items() for name in names])
def test_a_name_that_is_gone_is_refused_with_what_to_write(package: str, name: str) -> None:
    with pytest.raises(ImportError, match=f"{package}.{name} is gone; write") as caught:
        exec(f"from {package} import {name}", {})
    instead = str(caught.value).partition("write ")[2]
    if instead.startswith("from "):
        exec(instead, {})
    else:
        assert instead.partition("(")[0] in importlib.import_module(package).__all__
    with pytest.raises(ImportError, match="cannot import name 'Nonesuch'"):
        exec(f"from {package} import Nonesuch", {})


def test_old_names_of_attributes_and_arguments_are_refused() -> None:
    from stagetrace.validation import SGD, Adam, Steps

    model = torch.nn.Linear(1, 1)
    only = Stage("only", model=model, objective=Regression(), data=[(torch.ones(1), torch.ones(1))])
    bound = Chain(only)["only"]
    for owner, old, new in (
        *((bound, old, new) for old, new in (("own", "trained"), ("own_values", "trained_values"))),
        *((bound, old, new) for old, new in (("kept", "inherited_from"), ("moved", "anchored_to"))),
        (bound, "moved_values", "anchored"),
        (Chain(only), "problems", "bound_stages"),
        (Chain(only), "anew", "refreshed"),
        (Adam(), "rate", "lr"),
    ):
        with pytest.raises(AttributeError, match=f"{old} is now {type(owner).__name__}.{new}$"):
            getattr(owner, old)
        assert hasattr(owner, new)
    for kind, old, new in ((Adam, "rate", "lr"), (SGD, "rate", "lr"), (Steps, "rule", "optimizer")):
        with pytest.raises(
            DescriptionError, match=rf"{kind.__name__}\({old}=...\) is now {kind.__name__}\({new}=...\)"
        ):
            kind(**{old: 0.1})  # pyright: ignore[reportArgumentType]
