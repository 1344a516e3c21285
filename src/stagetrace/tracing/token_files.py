"""Where the token scores of a stage come from and go to, by the part's number."""

from dataclasses import dataclass
from typing import final

from stagetrace.results import RunFolder
from stagetrace.results.token_parts import TokenPart

__all__ = ["TokenFiles"]


@final
@dataclass(frozen=True)
class TokenFiles:
    """Those of one stage of a run. examples: how many the stage has."""

    folder: RunFolder
    stage: str
    examples: int

    def kept(self, number: int) -> TokenPart | None:
        """What was kept of a part."""
        return self.folder.tokens(self.stage, number)

    def keep(self, number: int, tokens: TokenPart) -> None:
        """Keep what was found of a part."""
        self.folder.write_tokens(self.stage, number, self.examples, tokens)
