"""Checks of the hyper-parameters that solvers share, and their one-line form."""

from dataclasses import fields
from math import isfinite
from typing import Any

from stagetrace.errors import refuse


def check_damping(who: str, damping: float, name: str = "damping") -> None:
    """Refuse a damping, or what else adds to a curvature, that is negative or not finite."""
    if not (isinstance(damping, int | float) and isfinite(damping) and damping >= 0):
        refuse(f"{who}({name}=...) must be finite and not negative, got {damping!r}; type {who}({name}=0.01) instead")


def check_rule(who: str, damping: object) -> None:
    """Refuse anything but a number, "auto" or a damping rule."""
    if isinstance(damping, str) and damping != "auto":
        refuse(f"{who}(damping=...) must be a number or 'auto', got {damping!r}; type {who}(damping='auto') instead")
    if damping != "auto" and not callable(damping):
        check_damping(who, damping)  # pyright: ignore[reportArgumentType]


def check_rtol(who: str, rtol: float) -> None:
    """Refuse a relative tolerance outside (0, 1): the zero vector already has relative residual 1."""
    if not 0 < rtol < 1:
        refuse(f"{who}(rtol=...) must lie between 0 and 1, got {rtol!r}; type {who}(rtol=1e-4) instead")


def check_count(who: str, name: str, count: Any, example: int) -> None:
    """Refuse a count that is not a whole number of at least one."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        refuse(f"{who}({name}=...) must be a whole number above 0, got {count!r}; type {who}({name}={example}) instead")


def step_limit(solver: Any) -> int | None:
    """The most steps a solver takes, or the solver that it wraps; None: there is no limit.

    Example:
        >>> from stagetrace.solvers import CG, Direct, Normal
        >>> step_limit(Normal(CG(max_steps=7), damping=0.1)), step_limit(Direct())
        (7, None)
    """
    return getattr(solver, "max_steps", None) or getattr(getattr(solver, "inner", None), "max_steps", None)


def short_repr(solver: Any) -> str:
    """The solver in one line: its damping and tolerance, and whatever else differs from its default."""
    shown = [
        f"{field.name}={getattr(value, '__name__', value)}"
        for field in fields(solver)
        for value in [getattr(solver, field.name)]
        if field.name in ("damping", "rtol") or value != field.default
    ]
    return f"{type(solver).__name__}({', '.join(shown)})"
