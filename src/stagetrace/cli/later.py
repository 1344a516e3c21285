"""Commands that are imported when they are called, so that `stagetrace --help` answers without PyTorch."""

from importlib import import_module
from typing import Any, final

import typer
from typer.core import TyperCommand, TyperGroup

from stagetrace.cli.options import GONE

LATER: dict[str, tuple[str, str, str]] = {
    "validate": (
        "stagetrace.cli.validate",
        "validate",
        "Retrain without chosen examples, and compare with what the scores and simpler controls predicted.",
    ),
    "report": (
        "stagetrace.cli.report",
        "report",
        "Write a run's report: one HTML file that needs no network and no other file.",
    ),
    "show": (
        "stagetrace.cli.show_run",
        "show_run",
        "Show a saved run: its summary, and the most harmful and most helpful examples.",
    ),
    "curate": (
        "stagetrace.cli.curate",
        "curate_run",
        "Choose the examples to train on next by their scores; write them, and the change that is predicted.",
    ),
    "export": (
        "stagetrace.cli.export",
        "export_run",
        "Write a stage's scores for another tool, in its format and with its sign, and state that sign.",
    ),
}
"""Module, function and summary of each command; the summary is the first sentence of the function's docstring."""

ORDER = ("score", "check", *LATER, "demo")


@final
class Command(TyperCommand):
    """A command that says what to type in the place of an option it had in an earlier version."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as cause:  # Typer brings its own Click since 0.26: its errors are known by their name
            option = str(getattr(cause, "option_name", ""))
            if type(cause).__name__ != "NoSuchOption" or option not in GONE:
                raise
            new = GONE[option]
            one = new.replace(" ", " STAGE=")
            ctx.fail(f"{option} is now a part of {new.split()[0]}: type {new}, or for one stage {one}")
            raise


@final
class Commands(TyperGroup):
    """The commands of the application, those of `LATER` among them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in ORDER if name in LATER or name in self.commands]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in LATER:
            return super().get_command(ctx, cmd_name)
        module, function, _ = LATER[cmd_name]
        alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        alone.command(cmd_name, cls=Command)(getattr(import_module(module), function))
        return typer.main.get_command(alone)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """As Typer does, without importing what is only listed."""
        names = self.list_commands(ctx)
        width = formatter.width - 6 - max(map(len, names))
        with formatter.section("Commands"):
            formatter.write_dl([(name, _cut(self._summary(ctx, name), width)) for name in names])

    def _summary(self, ctx: Any, name: str) -> str:
        return LATER[name][2] if name in LATER else self.commands[name].get_short_help_str(1000)


def _cut(text: str, width: int) -> str:
    """As many words of the text as fit."""
    if len(text) <= width:
        return text
    return text[: width - 3].rsplit(" ", 1)[0] + "..."
