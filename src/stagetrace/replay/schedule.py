"""Which points of a way are held in memory while its steps run backwards, the last one first.

A step runs backwards from the point before it. From a point that is held, any later one is reached by replaying the
steps between. With s points held at once, each step replayed r times at most, a way of

    (1) length(s, r) = (s + r)! / (s! r!)

steps can be run backwards: hold the point after m steps, run what follows it backwards with s - 1 points, then the
first m steps with s: `length(s, r) = length(s - 1, r) + length(s, r - 1)`. With m as small as that and r allow, but
`length(s, r - 2)` at least, no schedule replays fewer steps.

Source: Griewank & Walther (2000), "revolve", proposition 1.
"""

from math import comb


def ahead(steps: int, held: int) -> int:
    """After how many of so many steps, at least 2, the next point is held. held: how many may be, the first included.

    Example:
        >>> ahead(5, 5), ahead(5, 1), ahead(6, 2)  # all fit; the first alone; 0 -> 3 -> 5, later 0 -> 1 -> 2
        (1, 4, 3)
    """
    times = 1
    while comb(held + times, held) < steps:
        times += 1
    return max(comb(held + times - 2, held), steps - comb(held - 1 + times, held - 1), 1)
