"""Consoles on which only the program's own words act: the one way in which anything reaches a terminal."""

import io
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.control import Control
from rich.measure import Measurement
from rich.segment import Segment

from stagetrace.plaintext import printable


def terminal(*, stderr: bool = False, in_lines: bool = False) -> Console:
    """Standard output or standard error; no text on it is taken for markup, an emoji's name or a control sequence.

    Text is written out before it is laid out wherever that is known to be somebody else's (see `printable`); here it
    is done once more for everything, so that nothing can be forgotten. What the terminal's encoding lacks is escaped.

    in_lines: whole lines in one colour, however long, as errors and warnings are.
    """
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    console = Console(stderr=stderr, markup=False, emoji=False, soft_wrap=in_lines, highlight=not in_lines)
    console.push_render_hook(_Legible())
    return console


@final
class _Legible(RenderHook):
    """Lets text through as `printable` has it, and styles and rich's own cursor movements as they are."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [each if isinstance(each, Control) else _Shown(each) for each in renderables]


@final
@dataclass(frozen=True)
class _Shown:
    content: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _legible(console.render(self.content, options))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.content)


def _legible(segments: Iterable[Segment]) -> Iterable[Segment]:
    for segment in segments:
        yield segment if segment.control else Segment(printable(segment.text, lines=True), segment.style)
