"""Models and tokenizers from folders, and nothing newly initialised."""

import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from stagetrace.errors import refuse
from stagetrace.hf.admit import admit, unwrapped
from stagetrace.hf.packages import is_adapted, package, quiet
from stagetrace.hf.places import CODE, place_of, read_json, refuse_code
from stagetrace.hf.task import Task, task_named

ADAPTER = "adapter_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")

ADAPTED = {"SEQ_CLS": Task.CLASSIFICATION, "TOKEN_CLS": Task.TOKENS}
"""The `task_type` of adapters that bring a new head -> the task of the class that has it."""

YOURSELF = "load the model yourself and give it as model="

AUTO = {Task.CLASSIFICATION: "AutoModelForSequenceClassification", Task.TOKENS: "AutoModelForTokenClassification"}


@final
@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, and where a tokenizer may lie: folders or hub names, the likelier first.

    notices: what was ignored, for the user to know.
    """

    model: Any
    tokenizers: tuple[str, ...]
    notices: tuple[str, ...] = ()


def load(model: Any, where: str) -> Loaded:
    """A model as given, or from a folder or hub name.

    Weights are read from safetensors files only, in their own dtype, into the class that `config.architectures` names;
    an adapter's base is read likewise, and its adapters stay trainable.

    Raises:
        DescriptionError: nothing to load there; files that are no safetensors; code of the folder's own; weights that
            are missing, quantised, of another shape, or left over below the base model; adapters that are not in use.
            A left-over head (such as BERT's for next sentences) is reported in a notice.
    """
    transformers = package("transformers")
    model = unwrapped(model, where)
    if isinstance(model, transformers.PreTrainedModel) or is_adapted(model):
        admit(model, where)
        return Loaded(model, ())
    if not isinstance(model, (str, Path)):
        refuse(
            f"{where}: model must be a folder written by save_pretrained, a hub name, a PreTrainedModel or a "
            f"PeftModel, got {type(model).__name__}; for other modules write Stage(...)"
        )
    with quiet(), _same_draws():
        place = place_of(model, where)
        loaded = _adapted(place, where) if (Path(place) / ADAPTER).is_file() else _plain(place, where)
    admit(loaded.model, where)
    return loaded


def load_tokenizer(given: Any, places: Iterable[str], where: str) -> Any:
    """The tokenizer as given or named, or that beside the model.

    Raises:
        DescriptionError: there is none.
    """
    if given is not None and not isinstance(given, (str, Path)):
        if isinstance(given, type) or not callable(given):
            what = f"the class {given.__name__}" if isinstance(given, type) else repr(given)
            refuse(f"{where}: tokenizer must be a tokenizer or the folder of one, got {what}; type tokenizer='folder'")
        return given
    transformers = package("transformers")
    tried = [place_of(given, where, "tokenizer")] if given is not None else list(places)
    for place in tried:
        folder = Path(place)
        if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZERS):
            continue
        for name in TOKENIZERS:
            if (folder / name).is_file():
                settings = read_json(folder / name, where)
                refuse_code(settings, place, where, "load the tokenizer yourself and give it as tokenizer=")
        with quiet():
            try:
                return transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
            except Exception as cause:  # whatever a broken or foreign file makes the libraries raise
                refuse(f"{where}: no tokenizer can be loaded from {place} ({_line(cause)}); give tokenizer=")
    lies = f"none lies in {tried[0]}" if tried else "a model in memory has none"
    refuse(f"{where}: the texts need a tokenizer, and {lies}; give tokenizer=, a tokenizer or the folder of one")


def _plain(place: str, where: str) -> Loaded:
    cls = _architecture(place, where)
    model, report = _from_pretrained(cls, place, where)
    return Loaded(model, (place,), _check_complete(report, place, where, base=cls.base_model_prefix))


def _adapted(place: str, where: str) -> Loaded:
    """Adapters on their base; the base may lack what the adapters' file brings, such as a new head."""
    peft, transformers = package("peft"), package("transformers")
    settings = read_json(Path(place) / ADAPTER, where)
    refuse_code(settings, place, where, YOURSELF)
    if settings.get("megatron_config"):
        refuse(f"{where}: {ADAPTER} in {place} asks for a module to be imported (megatron_core); {YOURSELF}")
    saved = _saved_shapes(Path(place), where)
    base_place = settings.get("base_model_name_or_path")
    if not base_place:
        refuse(
            f"{where}: {ADAPTER} in {place} does not say which base the adapters were trained on; load it yourself and "
            "give model=PeftModel.from_pretrained(base, folder, is_trainable=True)"
        )
    base_place = place_of(base_place, f"{where}: the base that {ADAPTER} in {place} names")
    cls, extra = _architecture(base_place, where, adapted=True), dict[str, Any]()
    task = ADAPTED.get(settings.get("task_type") or "")
    if task is not None and task_named(cls) is not task:  # the base is still that of an earlier task
        cls = getattr(transformers, AUTO[task])
        counts = {shape[0] for name, shape in saved.items() if name.endswith(("classifier.weight", "score.weight"))}
        extra = {"num_labels": counts.pop()} if len(counts) == 1 else {}
    base, report = _from_pretrained(cls, base_place, where, **extra)
    brought = {name.removeprefix("base_model.model.") for name in saved}
    _check_complete(report, base_place, where, brought, new_head=bool(extra))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between the two libraries, nothing to do with the weights
        warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)  # checked below
        try:
            model = peft.PeftModel.from_pretrained(base, place, is_trainable=True)
        except Exception as cause:  # settings that peft does not know, weights that do not fit
            refuse(f"{where}: the adapters in {place} cannot be put on {base_place} ({_line(cause)})")
    wanted = set(peft.get_peft_model_state_dict(model))
    if wanted != set(saved):
        refuse(f"{where}: the adapters' file in {place} has other weights than the model: {_few(wanted ^ set(saved))}")
    return Loaded(model.eval(), (place, base_place))  # the adapters' dropout too


def _saved_shapes(folder: Path, where: str) -> dict[str, list[int]]:
    from safetensors import safe_open

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        refuse(f"{where}: {folder} has no {file.name}; write it by model.save_pretrained(folder)")
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    except Exception as cause:
        refuse(f"{where}: {file} is no whole safetensors file ({_line(cause)}); copy or write it again")


def _architecture(place: str, where: str, *, adapted: bool = False) -> Any:
    """The class that `config.architectures` names. adapted: whether adapters stand on it; it may be quantised then."""
    transformers = package("transformers")
    folder = Path(place)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            refuse(f"{where}: {place} has no config.json; give a folder written by save_pretrained")
        if not any(folder.glob("*.safetensors")):
            refuse(
                f"{where}: {place} has no *.safetensors file, and other files may run code when they are read; write "
                "one by model.save_pretrained(folder) after loading the model yourself, or give the loaded model"
            )
        refuse_code(read_json(folder / "config.json", where), place, where, YOURSELF)
    try:
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as cause:  # whatever a broken or foreign file makes the libraries raise
        refuse(f"{where}: no model can be loaded from '{place}' ({_line(cause)}); {YOURSELF}")
    refuse_code({CODE: getattr(config, CODE, None)}, place, where, YOURSELF)
    if getattr(config, "quantization_config", None) and not adapted:
        refuse(
            f"{where}: the weights in {place} are quantised (quantization_config), so the loss has no derivative in "
            "them; give the folder of the model in full precision. (Adapters on it can be traced: give their folder)"
        )
    names: list[str] = list(config.architectures or [])
    if not names:
        refuse(
            f"{where}: config.json in {place} does not name the model's class ('architectures'); load it "
            "yourself, e.g. transformers.AutoModelForCausalLM.from_pretrained(folder), and give it as model="
        )
    cls = getattr(transformers, str(names[0]), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        refuse(
            f"{where}: config.json in {place} names the class {names[0]}, which transformers does not have; {YOURSELF}"
        )
    return cls


def _from_pretrained(cls: Any, place: str, where: str, **extra: Any) -> tuple[Any, dict[str, Any]]:
    try:
        return cls.from_pretrained(
            place, use_safetensors=True, output_loading_info=True, dtype="auto", trust_remote_code=False, **extra
        )
    except Exception as cause:  # whatever a broken or foreign file makes the libraries raise
        refuse(f"{where}: no {cls.__name__} can be loaded from '{place}' ({_line(cause)})")


def _check_complete(
    report: dict[str, Any],
    place: str,
    where: str,
    brought: Iterable[str] = (),
    *,
    base: str = "",
    new_head: bool = False,
) -> tuple[str, ...]:
    """Refuse missing, left-over or misshapen weights: new ones give numbers that look right.

    brought: names that another file brings. base: the prefix of the base model, beside which a head may be left over.
    new_head: whether the file's own head may be left over silently.

    Returns:
        A notice of a head that was left over, if there was one.
    """
    missing = set(report["missing_keys"]) - set(brought)
    over = set() if new_head else set(report["unexpected_keys"])
    heads = {name for name in over if base and not name.startswith(f"{base}.")}
    over -= heads
    misshapen = {str(key) for key in report["mismatched_keys"]}
    faults = {
        "lacks weights, which would be random": missing,
        "has weights that the model does not": over,
        "has weights of another shape": misshapen,
    }
    for what, names in faults.items():
        if names:
            refuse(
                f"{where}: the file in {place} {what}: {_few(names)}; give the folder that this stage's training "
                "wrote, or load the model yourself and give it as model="
            )
    if not heads:
        return ()
    return (f"{where}: the file in {place} has a head that this model does not have, which is left out: {_few(heads)}",)


@contextmanager
def _same_draws() -> Generator[None]:
    """The same random numbers each time for weights that are replaced, such as the head of a base with adapters."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _few(names: Iterable[str], limit: int = 4) -> str:
    listed = sorted(names)
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
