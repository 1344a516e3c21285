"""What a submodule of a model returns, without running the model any further."""

from collections.abc import Callable
from typing import Any, NoReturn, final

from torch import nn

from stagetrace.errors import refuse


@final
class _Reached(BaseException):  # no Exception: a model that catches those would go on
    """The submodule was called, and returned `output`."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def check_submodule(model: nn.Module, name: str, where: str) -> None:
    """Refuse a name that is no submodule's.

    Raises:
        DescriptionError: with names there are.
    """
    names = [known for known, _ in model.named_modules() if known]
    if name not in names:
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        refuse(f"{where} has no submodule '{name}'; it has {', '.join(map(repr, names[:10])) or 'none'}{more}")


def output_of(model: nn.Module, name: str, run: Callable[[], object]) -> Any:
    """What the submodule first returns while `run()` runs the model; the run ends there.

    model: one whose hooks are ours to set; it is left without them.

    Raises:
        DescriptionError: the run ended without calling the submodule.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> output_of(model, "0", lambda: model(torch.ones(1, 2, 2)))
        tensor([[1., 1., 1., 1.]])
    """

    def stop(module: nn.Module, inputs: Any, output: Any) -> NoReturn:
        del module, inputs
        raise _Reached(output)

    hook = model.get_submodule(name).register_forward_hook(stop)
    try:
        run()
    except _Reached as reached:
        return reached.output
    finally:
        hook.remove()
    refuse(f"submodule '{name}' was not called when the model was; name one that is, or give a function")
