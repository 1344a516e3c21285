"""`stagetrace why`: from a prompt to the examples behind what the model says to it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stagetrace.cli import options
from stagetrace.errors import refuse

__all__ = ["why"]


def why(
    target: options.Target,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="What the model was asked; for a masked model with its mask."),
    ] = None,
    completion: Annotated[
        str | None,
        typer.Option("--completion", metavar="TEXT", help="What was said (default: what the model itself says)."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="NAME", help="Of a classifier the class (default: the predicted one)."),
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option("--contrast", metavar="TEXT", help="Another answer: why the first, and not this one?"),
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            "--messages",
            metavar="FILE",
            help="A conversation in the place of --prompt: JSON, a list of {role, content}; a last turn of the "
            "assistant's is what was said.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder of answers; a question that was asked before is read."),
    ] = Path("runs/why"),
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Examples of each stage on each side.")] = 5,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Tokens that the model writes at most.")
    ] = options.NEW_TOKENS,
    index: Annotated[
        Path | None,
        typer.Option("--index", metavar="DIR", help="Score only what this index of the target's names, exactly."),
    ] = None,
    solve: options.Solve = [],  # noqa: B006
    quick: options.Quick = False,
    exact: options.Exact = False,
    precision: options.Precision = [],  # noqa: B006
    debug: options.Debug = False,
) -> None:
    """Why did it say this? Trace one answer of the last stage's model back to the examples of every stage.

    The target's own query is not used. Without --completion or --label the model answers itself.
    """
    del debug

    asked, said = _asked(prompt, completion, messages)

    from stagetrace.cli import settings
    from stagetrace.cli.show import legible
    from stagetrace.cli.target import load
    from stagetrace.progress import Bars
    from stagetrace.terminal import terminal
    from stagetrace.why import ask

    typed = settings.SolveOptions(solve, options.preset(quick=quick, exact=exact))
    job = load(target, precision)
    found = ask(
        job.chain,
        asked,
        said,
        label=label,
        contrast=contrast,
        max_new_tokens=max_new_tokens,
        top=top,
        index=index,
        out=out,
        progress=Bars(),
        **settings.asked(job.chain, typed, job.options),
    )
    console = terminal()
    for table in found.tables():
        console.print(legible(table.rich(), console.width))
    for line in found.lines():
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"to look at it, open {found.page}", soft_wrap=True, highlight=False)


def _asked(prompt: str | None, completion: str | None, messages: Path | None) -> tuple[Any, str | None]:
    """The prompt, or the conversation before the assistant's turn, and what was said to it."""
    if (prompt is None) == (messages is None):
        raise typer.BadParameter("type --prompt TEXT or --messages FILE: one of the two")
    if messages is None:
        return prompt, completion
    try:
        turns: Any = json.loads(messages.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        refuse(f"--messages {messages}: no file of JSON that can be read ({cause})")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        refuse(f"--messages {messages}: must hold a list of messages, [{{'role': ..., 'content': ...}}, ...]")
    if turns[-1].get("role") != "assistant":
        return turns, completion
    if completion is not None:
        refuse(f"--messages {messages} ends with the assistant's turn, which is what was said; leave out --completion")
    return turns[:-1], str(turns[-1].get("content"))
