"""What all commands share: an answer to an option that an earlier version had."""

import os
from typing import Any, final

from typer.core import TyperCommand

from stagetrace.cli.options import GONE
from stagetrace.errors import DescriptionError

__all__ = ["SHARED", "Command"]

SHARED = ("score", "rank")
"""The commands whose work several processes share."""


@final
class Command(TyperCommand):
    """A command that says what to type in the place of an option it had in an earlier version."""

    def invoke(self, ctx: Any) -> Any:
        """Run it; of several processes, only a command that shares its work among them."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and self.name not in (*SHARED, "validate"):  # it says more
            raise DescriptionError(
                f"stagetrace {self.name} runs in one process, and torchrun has started {os.environ['WORLD_SIZE']}; "
                f"start it without torchrun (several processes share the work of: {', '.join(SHARED)})"
            )
        return super().invoke(ctx)

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
