"""The digest of an object sees what can change a number, is the same in every process, and names what it cannot see."""

import collections
import dataclasses
import datetime
import enum
import functools
import itertools
import json
import logging
import os
import random
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stagetrace.stages.fingerprint import fingerprint_model, fingerprint_objective
from stagetrace.stages.identity import Identity

SCALE = 2.0
TABLE = {"one": [1.0, 2.0]}


def sha(value: Any) -> str:
    told = Identity().of(value)
    assert "unidentified" not in told, told
    return told["sha256"]


def scaled(x: Any) -> Any:
    return SCALE * x


def by_helper(model: Any, batch: Any) -> Any:
    return scaled(model(batch))


def by_table(model: Any, batch: Any) -> Any:
    return TABLE["one"][0] * model(batch)


@functools.lru_cache
def remembered(x: float) -> float:
    return SCALE * x


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Settings:
    strength: float = 1.0
    words: frozenset[str] = frozenset({"a", "b", "c", "d"})


@dataclasses.dataclass(slots=True)
class Slotted:
    strength: float = 1.0


class Point(NamedTuple):
    x: float
    y: float


class Weighted:
    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def outputs(self, model: Any, batch: Any) -> Any:
        return model(batch[0])

    def losses(self, outputs: Any, batch: Any) -> Any:
        return self.weight * outputs


class Nested(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.part = nn.Sequential(nn.Linear(2, 2), Weighing(value))


class Weighing(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def closing(value: Any) -> Callable[..., Any]:
    def loss(model: Any, batch: Any) -> Any:
        return value * model(batch)

    return loss


def with_default(value: Any) -> Callable[..., Any]:
    def loss(model: Any, batch: Any, weight: Any = value, *, other: Any = value) -> Any:
        return weight * other * model(batch)

    return loss


def queue(value: Any) -> Any:
    return collections.deque([value, 1.0], maxlen=3)


def generator(seed: float) -> Any:
    return torch.Generator().manual_seed(int(seed))


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "an attribute": Weighted,
    "a list in a dict": lambda v: Weighted({"deep": [0, (1, v)]}),
    "a closure": closing,
    "a closure in a closure": lambda v: closing(closing(v)),
    "defaults": with_default,
    "a partial": lambda v: functools.partial(by_helper, batch=v),
    "a partial's positions": lambda v: functools.partial(by_helper, v),
    "a bound method": lambda v: Weighted(v).losses,
    "a dataclass": Settings,
    "slots": Slotted,
    "a named tuple": lambda v: Point(v, 2.0),
    "a set": lambda v: {1.0, v, "three"},
    "a dict's key": lambda v: {v: 1},
    "a queue": queue,
    "an array": lambda v: np.array([1.0, v]),
    "an array of objects": lambda v: np.array([1.0, [v]], dtype=object),
    "a scalar of numpy": np.float32,
    "a sparse tensor": lambda v: torch.tensor([[0.0, v]]).to_sparse(),
    "a tensor in half precision": lambda v: torch.tensor([v], dtype=torch.bfloat16),
    "a time": lambda v: datetime.timedelta(days=v),
    "a path": lambda v: Path("weights") / str(v),
    "a namespace": lambda v: types.SimpleNamespace(inner=v),
    "a weak reference": lambda v: weakref.ref(kept(v)),
    "a module's attribute": Nested,
    "a module's configuration": lambda v: Nested(Settings(v)),
    "a random generator": generator,
    "python's random generator": lambda v: random.Random(int(v)),
    "numpy's random generator": lambda v: np.random.default_rng(int(v)),
    "a picture": lambda v: Image.new("L", (2, 2), int(v)),
    "a mapping that cannot be changed": lambda v: types.MappingProxyType({"a": v}),
    "an attribute of a function": lambda v: attributed(v),
    "a class's attribute": lambda v: type("Made", (Weighted,), {"power": v})(1.0),
}

_KEPT: list[Any] = []


def kept(value: Any) -> Any:
    _KEPT.append(Weighted(value))
    return _KEPT[-1]


def attributed(value: Any) -> Any:
    loss: Any = closing(1.0)
    loss.weight = value
    return loss


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_number_is_seen_wherever_it_is_held(holder: str):
    make = HOLDERS[holder]
    assert sha(make(3.0)) == sha(make(3.0))
    assert sha(make(3.0)) != sha(make(4.0))


def first(model: Any, batch: Any) -> Any:
    return model(batch) + 1


def second(model: Any, batch: Any) -> Any:
    return model(batch) - 1


PAIRS: dict[str, tuple[Any, Any]] = {
    "operators": (lambda x: x + 1, lambda x: x - 1),
    "constants": (lambda x: x * 2.0, lambda x: x * 2.5),
    "the function called": (lambda x: torch.exp(x), lambda x: torch.sin(x)),
    "types": (Weighted(1), Weighted(1.0)),
    "one and true": ({"x": 1}, {"x": True}),
    "order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "nesting": ([[1], 2], [1, [2]]),
    "text cut elsewhere": (["ab", "c"], ["a", "bc"]),
    "an enumeration's members": (Colour.RED, Colour.BLUE),
    "a tensor's type": (torch.ones(2), torch.ones(2).double()),
    "a tensor's shape": (torch.ones(2, 1), torch.ones(1, 2)),
    "an array's type": (np.ones(2), np.ones(2, dtype=np.float32)),
    "signs of zero": (0.0, -0.0),
    "a list and a tuple": ([1], (1,)),
    "classes": (nn.Linear, nn.Conv2d),
    "builtin functions": (torch.relu, torch.tanh),
    "dtypes": (torch.float32, torch.float64),
    "operations": (nn.functional.gelu, nn.functional.relu),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_different_things_have_different_digests(pair: str):
    one, other = PAIRS[pair]
    assert sha(one) != sha(other)


def test_globals_of_a_function_and_of_those_it_calls_are_seen(monkeypatch: pytest.MonkeyPatch):
    before = sha(by_helper), sha(by_table), sha(remembered)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    TABLE["one"][0] = 5.0
    try:
        changed = sha(by_helper), sha(by_table), sha(remembered)
    finally:
        TABLE["one"][0] = 1.0
    assert all(one != other for one, other in zip(before, changed, strict=True))


def test_a_name_that_a_function_does_not_use_is_not_looked_at(monkeypatch: pytest.MonkeyPatch):
    before = sha(by_table)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert sha(by_table) == before


def test_members_of_a_module_of_the_user_s_own_are_seen():
    settings: Any = types.ModuleType("settings_of_a_test")
    vars(settings).update(strength=1.0, unused=1.0, deeper=types.ModuleType("deeper_of_a_test"))
    settings.deeper.power = 1.0
    space: dict[str, Any] = {"__name__": "job", "settings": settings}
    exec("def loss(x):\n    return settings.strength * x ** settings.deeper.power", space)
    loss = space["loss"]
    before = sha(loss)
    settings.unused = 2.0
    assert sha(loss) == before
    settings.deeper.power = 2.0
    assert sha(loss) != before


def test_an_import_within_a_function_is_seen(monkeypatch: pytest.MonkeyPatch):
    settings: Any = types.ModuleType("imported_by_a_test")
    settings.strength = 1.0
    monkeypatch.setitem(sys.modules, "imported_by_a_test", settings)
    space: dict[str, Any] = {"__name__": "job"}
    exec("def loss(x):\n    from imported_by_a_test import strength\n    return strength * x", space)
    before = sha(space["loss"])
    settings.strength = 2.0
    assert sha(space["loss"]) != before


def test_a_method_edited_and_a_method_put_into_a_package_s_class_are_seen(monkeypatch: pytest.MonkeyPatch):
    one, layer = Weighted(1.0), nn.Linear(2, 2)
    before = sha(one), sha(layer)
    monkeypatch.setattr(Weighted, "losses", lambda self, outputs, batch: outputs * 7)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x @ self.weight.T)
    assert sha(one) != before[0]
    assert sha(layer) != before[1]


def test_comments_and_line_numbers_do_not_count():
    def defined(source: str) -> Any:
        space: dict[str, Any] = {"__name__": "job"}
        exec(source, space)
        return space["loss"]

    plain = "def loss(x):\n    return x + 1"
    assert sha(defined(plain)) == sha(defined("\n\n\ndef loss(x):  # the loss\n    # adds one\n    return x + 1"))
    assert sha(defined(plain)) != sha(defined("def loss(x):\n    return x + 2"))


def test_a_circle_has_an_end():
    def ring(value: float) -> Any:
        one: Any = Weighted(value)
        one.itself, one.inside = one, [one, {"again": one}]
        return one

    assert sha(ring(1.0)) == sha(ring(1.0))
    assert sha(ring(1.0)) != sha(ring(2.0))


def test_which_equal_objects_are_one_does_not_count():
    row = [1.0, 2.0]
    assert sha([row, row]) == sha([[1.0, 2.0], [1.0, 2.0]])


class Watched:
    """Fails when a property of it is read."""

    def __init__(self) -> None:
        self.held = 1.0

    @property
    def costly(self) -> float:
        raise AssertionError("a property was read")

    @functools.cached_property
    def lazy(self) -> float:
        raise AssertionError("a property was read")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")

    def __repr__(self) -> str:
        raise AssertionError("the text was asked for")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("it was compared")

    __hash__ = object.__hash__


def test_no_property_and_no_method_is_called():
    assert sha(Watched()) == sha(Watched())


class Declared:
    """Says itself what its state is."""

    def __init__(self, weight: float) -> None:
        self.weight, self.calls = weight, 0
        self.stream = iter([1])

    def __getstate__(self) -> dict[str, float]:
        return {"weight": self.weight}


def test_a_declared_state_is_what_counts():
    one, other = Declared(1.0), Declared(1.0)
    one.calls = 5
    assert sha(one) == sha(other)
    assert sha(one) != sha(Declared(2.0))


STREAMS: dict[str, Callable[[], Any]] = {
    "a generator": lambda: (i for i in [1]),
    "a list_iterator": lambda: iter([1]),
    "an itertools.count": itertools.count,
    "a _thread._local": threading.local,
    "a frame": sys._getframe,
    "a tensor without numbers": lambda: torch.empty(2, device="meta"),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_what_cannot_be_identified_is_named_with_its_place(stream: str):
    told = Identity().of(Weighted({"inner": [0, STREAMS[stream]()]}))
    [name] = told["unidentified"]
    assert name.startswith("weight.inner[1] (")
    assert stream in name


def test_an_open_file_is_named(tmp_path: Path):
    with (tmp_path / "log").open("w") as file:
        told = Identity().of(closing(file))
    assert told["unidentified"] == ["'s value (a _io.TextIOWrapper)"]


def test_a_nesting_without_end_is_named():
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    [name] = Identity().of(deep)["unidentified"]
    assert "nested too deeply" in name


def test_loggers_and_locks_carry_no_number():
    def held() -> Any:
        return Weighted([logging.getLogger("a"), threading.Lock(), threading.RLock(), threading.Event()])

    assert sha(held()) == sha(held())


# Models


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))


def hooked(module: nn.Module, factor: float, **kwargs: Any) -> nn.Module:
    def scaled(layer: nn.Module, args: Any, output: Any) -> Any:
        return output * factor

    module.get_submodule("0").register_forward_hook(scaled, **kwargs)
    return module


def changed_buffer(module: nn.Module) -> nn.Module:
    module.register_buffer("mask", torch.tensor([1.0]), persistent=False)
    return module


MODELS: dict[str, Callable[[], nn.Module]] = {
    "as it is": model,
    "a hook": lambda: hooked(model(), 1.0),
    "another hook": lambda: hooked(model(), 2.0),
    "two hooks": lambda: hooked(hooked(model(), 1.0), 2.0),
    "two hooks the other way": lambda: hooked(hooked(model(), 2.0), 1.0),
    "a buffer that is not saved": lambda: changed_buffer(model()),
    "another eps": lambda: with_attribute(model(), "1", "eps", 1e-3),
    "another dropout": lambda: with_attribute(model(), "2", "p", 0.1),
    "forward replaced": lambda: with_attribute(model(), "2", "forward", lambda x: x),
    "a name beside": lambda: with_attribute(model(), "", "scale", 2.0),
    "a layer frozen": lambda: with_frozen(model()),
    "a layer tied": lambda: with_tied(model()),
    "another order": lambda: nn.Sequential(*reversed(list(model().children()))),
}


def with_attribute(module: nn.Module, path: str, name: str, value: Any) -> nn.Module:
    setattr(module.get_submodule(path), name, value)
    return module


def with_frozen(module: nn.Module) -> nn.Module:
    module.get_submodule("0").requires_grad_(False)
    return module


def with_tied(module: nn.Module) -> nn.Module:
    module.again = module.get_submodule("0")
    return module


def test_every_way_to_change_a_model_changes_its_fingerprint():
    found = {name: json.dumps(fingerprint_model(make())) for name, make in MODELS.items()}
    assert len(set(found.values())) == len(found)
    assert found == {name: json.dumps(fingerprint_model(make())) for name, make in MODELS.items()}


def test_modes_and_gradients_do_not_count():
    before = fingerprint_model(model())
    used = model().eval()
    used(torch.ones(4, 2)).sum().backward()
    assert fingerprint_model(used) == before


def test_a_hook_on_every_module_is_seen():
    before = fingerprint_model(model())
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: output)
    try:
        assert fingerprint_model(model()) != before
    finally:
        handle.remove()


def test_a_loss_of_the_model_itself_differs_from_one_of_a_copy_of_it():
    net, copy = model(), model()
    against_itself = fingerprint_objective(Weighted(net), net)
    against_copy = fingerprint_objective(Weighted(copy), net)
    assert against_itself["sha256"] != against_copy["sha256"]
    with torch.no_grad():
        net.get_parameter("0.weight").add_(1)
    assert fingerprint_objective(Weighted(net), net) == against_itself


@pytest.mark.slow
def test_another_process_finds_the_same(tmp_path: Path):
    """With other addresses and another order of sets."""
    script = tmp_path / "job.py"
    script.write_text(
        "import json, sys\n"
        "import tests.stages.test_identity as t\n"
        "found = {name: t.sha(make(3.0)) for name, make in t.HOLDERS.items()}\n"
        "found |= {name: [t.sha(one), t.sha(other)] for name, (one, other) in t.PAIRS.items()}\n"
        "found |= {name: t.fingerprint_model(make()) for name, make in t.MODELS.items()}\n"
        "print(json.dumps(found))\n"
    )
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), *sys.path])
    found: list[str] = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert found[0] == found[1]
