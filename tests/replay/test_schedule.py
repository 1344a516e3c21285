"""Which points are held: never more than there is room for, and no schedule replays fewer steps."""

from functools import cache

import pytest

from stagetrace.replay.schedule import ahead


def replayed(steps: int, room: int) -> int:
    """How many steps are replayed, by holding what `ahead` says: as `Reverse` does."""
    held, end, count = [0], steps, 0
    while held:
        assert len(held) <= room
        if end - held[-1] == 1:
            end = held.pop()
            continue
        later = ahead(end - held[-1], room - len(held))
        assert 0 < later < end - held[-1]
        count += later
        held.append(held[-1] + later)
    assert end == 0
    return count


@cache
def fewest(steps: int, held: int) -> int:
    """The best of all schedules, by trying every place for the next point."""
    if steps == 1:
        return 0
    if held == 1:
        return steps * (steps - 1) // 2
    return min(m + fewest(steps - m, held - 1) + fewest(m, held) for m in range(1, steps))


@pytest.mark.parametrize("room", [2, 3, 4, 6, 9])
def test_no_schedule_replays_fewer_steps(room: int):
    assert [replayed(steps, room) for steps in range(1, 40)] == [fewest(steps, room - 1) for steps in range(1, 40)]


def test_where_all_fit_each_step_is_replayed_once():
    assert replayed(5000, 5000) == 4999
