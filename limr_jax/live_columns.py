"""What decode reads of the cache beside what it must, for rollouts of given lengths.

The schedule is that of slots.py on one device, step by step without a model: which
rollout sits where, and how many columns it has. A step must read the weights and the
columns of live rows; what it does read, attention decides (look_back.py, cache.py).
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from limr_jax import cache, look_back, slots
from limr_jax.look_back import Cut

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


def planned(config, mesh, generation: dict) -> list[Steps]:
    """Of a config's run, prompts as long as allowed.

    None where layers have rings of several lengths.
    """
    model = generation["config"]
    if set(model.pattern) != {"full"}:
        return []
    by_rows = mesh.shape["data"] * mesh.shape["fsdp"]
    rollouts = config.prompts_per_step * config.group_size // by_rows
    length, longest = config.rollout.max_prompt_length, generation["response_length"]
    columns = length + longest
    shared = shares(mesh, length, generation)
    with jax.set_mesh(mesh):
        cuts = look_back.cuts(length, longest, model)

    def read(row_S, count_S, column):
        if shared:
            seen_S = np.where(count_S > 0, length, 0)
            given = count_S - seen_S, seen_S, row_S // config.group_size
            return columns_read(*given, column - length, *cuts)
        width = next((w for w in cache.widths(columns) if w > column), columns)
        return np.full(len(count_S), width)

    return simulated(
        lengths(rollouts, longest),
        np.full(rollouts, length),
        size=min(generation["slots"] // by_rows, rollouts),
        shrinks=generation["shrinks"],
        length=length,
        longest=longest,
        read=read,
        group=config.group_size if shared else 1,
    )


def shares(mesh, length: int, generation: dict) -> bool:
    """`cache.shares` on a mesh, of prompts so long."""
    columns = generation["response_length"]
    with jax.set_mesh(mesh):
        return cache.shares(generation["config"], length=length, columns=columns)


def simulated(
    length_B: np.ndarray,
    prompt_B: np.ndarray,
    *,
    size: int,
    shrinks: int,
    length: int,
    longest: int,
    read: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
    group: int = 1,
) -> list[Steps]:
    """One device's rollouts in `size` slots, by number of slots.

    length_B, prompt_B: tokens of its rollouts, in order, and of their prompts. length:
    columns of a prompt, where the first step writes. read: (the rollout of each row;
    columns that it has after it wrote, 0 of one that ended; the column written) →
    columns read of each. group: rollouts of a prompt that share its columns, which are
    live once then.
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
            _, first_X = np.unique(row_S[live_S] // group, return_index=True)
            prompts = prompt_B[row_S[live_S]]
            live, were_read = (
                live + (t_S * live_S).sum() + prompts[first_X].sum(),
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


def columns_read(own_B, seen_B, prompt_B, column, prompt: Cut, own: Cut):
    """Columns of the cache that each row reads: whole blocks, one of the ring at least.

    As look_back.entries, in arrays of numpy; what the report adds up. Prompts of one
    block are read by the first row that has them.
    """
    blocks_B = prompt.blocks - (prompt.columns - seen_B) // prompt.size
    if prompt.blocks == 1:
        _, first_X = np.unique(np.where(blocks_B, prompt_B, -1), return_index=True)
        first_B = np.zeros_like(blocks_B)
        first_B[first_X] = 1
        blocks_B = blocks_B * first_B
    return own_read(own_B, column, own) + blocks_B * prompt.size


def own_read(own_B, column, own: Cut):
    """Those of the ring."""
    first_B = (column - own_B.clip(1, own.columns) + 1) // own.size
    return (column // own.size - first_B + 1).clip(1, own.blocks) * own.size


@dataclasses.dataclass(frozen=True)
class Read:
    """A step in which each row reads so many columns, in whichever of the two."""

    columns: float
    group: int = 1

    def of_prompt(self, prompt: Cut) -> float:
        return 0.0

    def of_ring(self, own: Cut) -> float:
        return self.columns


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Steps of decode in which all rows begin and end together, in rounds."""

    length: int  # of every prompt
    steps: int  # of a round: one column more each
    rounds: int = 1
    group: int = 1  # rows of a prompt, which follow one another

    def of_prompt(self, prompt: Cut) -> float:
        """Of a prompt's columns, those in which a row looks at a step, in the mean."""
        seen = np.full(self.steps, self.length)
        if prompt.columns < self.length:  # a window's: one less for each of its own
            seen = (prompt.columns - 1 - np.arange(self.steps)).clip(0)
        blocks = prompt.blocks - (prompt.columns - seen) // prompt.size
        return float(np.mean(blocks)) * prompt.size

    def of_ring(self, own: Cut) -> float:
        """Of the ring's likewise."""
        step = np.arange(self.steps)
        read = [
            own_read(1 + step, round_ * self.steps + step, own)
            for round_ in range(self.rounds)
        ]
        return float(np.mean(read))
