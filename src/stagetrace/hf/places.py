"""Where a model is: a folder, or a name on the Hub, without waiting for a network that does not answer."""

import json
from pathlib import Path
from typing import Any

from stagetrace.errors import refuse
from stagetrace.hf.packages import package

SECONDS = 5.0
"""How long the Hub has to answer."""

CODE = "auto_map"
"""The entry by which a folder asks for code of its own to be run."""


def place_of(given: str | Path, where: str, what: str = "model") -> str:
    """The folder, or the name on the Hub of something in the local cache or that the Hub has.

    Raises:
        DescriptionError: there is no such folder, and it is no name on the Hub either.
    """
    text = str(given)
    path = Path(text).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        refuse(f"{where}: {text} is a file; give the folder it lies in, as save_pretrained wrote it: {path.parent}")
    if isinstance(given, Path) or _looks_local(text):
        refuse(
            f"{where}: there is no folder {text}{_nearest(path)}; give the folder that save_pretrained wrote, as {what}"
        )
    if not _on_the_hub(text):
        refuse(
            f"{where}: no {what} can be loaded from '{text}': there is no folder of that name in {Path.cwd()}, none in "
            "the local cache, and the Hub has none or does not answer; give the folder that save_pretrained wrote"
        )
    return text


def refuse_code(settings: Any, place: str, where: str, remedy: str) -> None:
    """Refuse a folder that wants to run code of its own: it is never run.

    Raises:
        DescriptionError: the settings name such code.
    """
    if isinstance(settings, dict) and settings.get(CODE):
        names = sorted(map(str, settings[CODE])) if isinstance(settings[CODE], dict) else [str(settings[CODE])]
        refuse(
            f"{where}: {place} wants to run its own code ({CODE} for {', '.join(names)}), which stagetrace never does; "
            f"if you trust it, {remedy}"
        )


def read_json(path: Path, where: str) -> dict[str, Any]:
    """A file of settings.

    Raises:
        DescriptionError: it is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        refuse(f"{where}: {path} cannot be read as JSON ({str(cause).splitlines()[0]}); write the folder again")
    if not isinstance(found, dict):
        refuse(f"{where}: {path} holds no settings but {type(found).__name__}; write the folder again")
    return found


def _looks_local(text: str) -> bool:
    """Whether a text is a path rather than a name on the Hub (`name` or `owner/name`)."""
    parts = text.split("/")
    hub = len(parts) <= 2 and all(part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in parts)
    first = Path(parts[0])
    return not hub or text.startswith((".", "~")) or (len(parts) == 2 and first.is_dir())


def _nearest(path: Path) -> str:
    """The folders beside the missing one, where there are some, to show a misspelling at a glance."""
    parent = path.parent
    if not parent.is_dir():
        return f" (and no {parent})"
    beside = sorted(one.name for one in parent.iterdir() if one.is_dir() and not one.name.startswith("."))[:4]
    return f" ({'here' if str(parent) == '.' else parent} has {', '.join(beside)})" if beside else ""


def _on_the_hub(name: str) -> bool:
    """In the local cache, else one question to the Hub, asked once."""
    package("transformers")
    hub = package("huggingface_hub")
    for file in ("config.json", "adapter_config.json", "tokenizer_config.json", "tokenizer.json"):
        if isinstance(hub.try_to_load_from_cache(name, file), str):
            return True
    try:
        hub.HfApi().model_info(name, timeout=SECONDS)
    except Exception:  # no such name, no network, no right to it: all mean that it cannot be loaded from there
        return False
    return True
