"""What all commands share: an answer to an option that an earlier version had."""

from typing import Any, final

from typer.core import TyperCommand

from stagetrace.cli.options import GONE

__all__ = ["Command"]


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
