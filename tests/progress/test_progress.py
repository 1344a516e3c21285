"""Progress that tells the truth: how far, how fast, how long still, in the columns there are."""

from io import StringIO

import pytest
import torch
from rich.console import Console

from stagetrace.curvature import Hessian
from stagetrace.progress import KEPT, Bars, listening, part_done
from stagetrace.progress.task import Task, clock
from tests.curvature.specimens import MLP, N


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def advanced(task: Task, *steps: tuple[float, int]) -> Task:
    for now, n in steps:
        task.advance(n, "", now)
    return task


def test_rate_and_time_left_are_those_measured() -> None:
    task = advanced(Task("scoring", 1000, "examples", 0.0), (4.0, 100), (8.0, 100))
    assert task.seconds_each == pytest.approx(8 / 200)
    assert task.left() == pytest.approx(800 * 8 / 200)
    assert task.line(8.0) == "scoring  200/1,000 examples  25/s  0:32 left"


def test_the_rate_follows_a_change_of_pace() -> None:
    task = Task("scoring", 10_000, "examples", 0.0)
    for second in range(1, 61):
        task.advance(100, "", float(second))
    for second in range(61, 121):
        task.advance(10, "", float(second))
    assert task.seconds_each == pytest.approx(1 / 10)


def test_what_an_earlier_run_had_done_says_nothing_of_the_rate() -> None:
    task = Task("scoring", 1000, "examples", 0.0)
    task.advance(900, KEPT, 0.01, measured=False)
    assert task.left() is None
    task.advance(10, "", 5.01)
    assert task.left() == pytest.approx(90 * 5 / 10)


def test_a_solve_has_no_total_and_counts_parts_of_a_product() -> None:
    task = advanced(Task("solving", None, "products", 0.0), (4.0, 1), (8.0, 1))
    task.part = 0.5
    assert task.line(10.0) == "solving  2.5 products  4 s each  0:10"


@pytest.mark.parametrize("width", range(1, 130))
def test_no_line_is_wider_than_the_console(width: int) -> None:
    task = Task("solving stage 'a-stage-with-a-rather-long-name'", None, "products", 0.0)
    task.advance(12, "residual 1.0e-03, < 18:20 left", 30.0)
    assert len(task.line(31.0, width)) <= width


def test_the_residual_is_seen_in_80_columns_and_in_60() -> None:
    task = Task("solving stage 'finetune'", None, "products", 0.0)
    task.advance(14, "residual 1.1e-03", 32.0)
    for width in (80, 60):
        assert "solving stage 'finetune'  14 products" in task.line(33.0, width)
        assert "residual 1.1e-03" in task.line(33.0, width)


def test_a_bar_fills_what_room_there_is() -> None:
    task = advanced(Task("scoring", 10, "examples", 0.0), (1.0, 5))
    assert "━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌" in task.line(1.0, 100)
    assert "━" not in task.line(1.0, 45)


def test_a_file_gets_a_line_every_few_seconds_and_one_at_the_end() -> None:
    drawn, now = StringIO(), Clock()
    bars = Bars(Console(file=drawn, width=80, force_terminal=False), period=5.0, clock=now)
    with bars.task("solving stage 'a'", None, "products") as advance:
        for second in range(1, 13):
            now.now = float(second)
            advance(1, note=f"residual {second}")
    lines = drawn.getvalue().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["5 products", "10 products", "12 products"]
    assert all("residual" in line and "\x1b" not in line for line in lines)


def test_a_file_hears_of_a_product_that_takes_long() -> None:
    drawn, now = StringIO(), Clock()
    bars = Bars(Console(file=drawn, width=80, force_terminal=False), period=5.0, clock=now)
    with bars.task("solving stage 'a'", None, "products"):
        now.now = 6.0
        part_done(0.3)
    assert drawn.getvalue().splitlines()[0].startswith("solving stage 'a'  0.3 products")


def test_a_terminal_of_40_columns_gets_whole_lines() -> None:
    drawn, now = StringIO(), Clock()
    console = Console(file=drawn, width=40, force_terminal=True, color_system=None, legacy_windows=False)
    with Bars(console, clock=now).task("scoring stage 'finetune'", 23_318, "examples") as advance:
        now.now = 2.0
        advance(11_000)
    shown = [line for line in drawn.getvalue().replace("\r", "\n").splitlines() if "examples" in line]
    assert shown
    assert "11,000/23,318 examples" in shown[-1]


def test_nothing_hears_of_a_part_after_its_task() -> None:
    heard: list[float] = []
    with listening(heard.append):
        part_done(0.5)
    part_done(0.7)
    assert heard == [0.5]


def test_a_product_says_how_much_of_it_is_done() -> None:
    operator = Hessian(memory=1).operator(MLP.bound())  # a chunk an example
    heard: list[float] = []
    with listening(heard.append):
        operator.apply(torch.ones(operator.size, 1, dtype=torch.float64))
    assert heard == pytest.approx([(done + 1) / N for done in range(N)])


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0:00"), (59.9, "0:59"), (600.0, "10:00"), (3600.0, "1:00:00")])
def test_the_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
