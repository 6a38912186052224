"""What decode reads of the cache beside what it must, for rollouts of given lengths.

The schedule is that of slots.py on one device, step by step without a model: which
rollout sits where, and how many columns it has. A step must read the weights and the
columns of live rows; what it does read, attention decides (look_back.py, cache.py).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from limr_jax import slots

# Response tokens of a simulated step: the shape of what models write of MATH, cut off
# at the longest response. Median as a share of that, and σ of the logarithm.
MEDIAN, SIGMA = 600 / 3072, 0.7


@dataclasses.dataclass(frozen=True)
class Steps:
    """Sums over the decode steps with one number of slots."""

    slots: int
    steps: int
    live: int  # columns of live rows
    read: int  # columns that were read


def lengths(rollouts: int, longest: int) -> np.ndarray:
    """Lognormal lengths from 1 to `longest`; the same whenever it is asked."""
    random = np.random.default_rng(0)
    drawn = random.lognormal(np.log(MEDIAN * longest), SIGMA, rollouts)
    return np.clip(drawn, 1, longest).astype(int)


def simulated(
    length_B: np.ndarray,
    prompt_B: np.ndarray,
    *,
    size: int,
    shrinks: int,
    length: int,
    longest: int,
    read: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
) -> list[Steps]:
    """One device's rollouts in `size` slots, by number of slots.

    length_B, prompt_B: tokens of its rollouts, in order, and of their prompts. length:
    columns of a prompt, where the first step writes. read: (the rollout of each row;
    columns that it has after it wrote, 0 of one that ended; the column written) →
    columns read of each.
    """
    size, rows = min(size, len(length_B)), len(length_B)
    numbers = slots.sizes(size, longest, shrinks)
    row_S, t_S, begun = np.arange(size), np.ones(size, int), size
    live_S = length_B[:size] > 1
    column, found = length, []
    for i, size in enumerate(numbers):
        if i:
            seats_X = np.argsort(~live_S, kind="stable")[:size]
            row_S, t_S, live_S = row_S[seats_X], t_S[seats_X], live_S[seats_X]
        smaller = numbers[i + 1] if i + 1 < len(numbers) else 0
        enough = max(1, int(size * slots.EMPTY))
        steps, live, were_read = 0, 0, 0
        while begun < rows or live_S.sum() > smaller:
            waiting = rows - begun
            empty_X = np.flatnonzero(~live_S)[:waiting]
            if waiting and len(empty_X) >= np.clip(waiting, 1, enough):
                row_S[empty_X] = begun + np.arange(len(empty_X))
                t_S[empty_X], begun = 1, begun + len(empty_X)
                live_S[empty_X] = length_B[row_S[empty_X]] > 1
                continue
            count_S = np.where(live_S, prompt_B[row_S] + t_S, 0)
            live, were_read = (
                live + count_S.sum(),
                were_read + read(row_S, count_S, column).sum(),
            )
            t_S = t_S + 1
            live_S = live_S & (t_S < length_B[row_S])
            column, steps = column + 1, steps + 1
        found.append(Steps(size, steps, int(live), int(were_read)))
    return found


def must(parts: list[Steps], *, weights: float, column: float) -> float:
    """Bytes that the steps must read; `weights` of a step, `column` of a row."""
    return sum(weights * part.steps + column * part.live for part in parts)


def ratio(parts: list[Steps], *, weights: float, column: float) -> float:
    """Bytes read over bytes that must be."""
    read = sum(weights * part.steps + column * part.read for part in parts)
    return read / must(parts, weights=weights, column=column)
