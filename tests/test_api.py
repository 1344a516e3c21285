"""The public names: adding or removing one is a decision, taken here."""

import importlib.metadata
import inspect

import pytest

import stagetrace

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
